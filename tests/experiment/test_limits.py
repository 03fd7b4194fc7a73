"""Settings that ask for more than there is are refused in one sentence before any job has run for them."""

import json
import os
from pathlib import Path

import pytest

from minirec.errors import InputError
from minirec.experiment import config, limits, paths

TOP = Path("results/cds")


@pytest.fixture
def given(defaults, tmp_path, monkeypatch):
    """A function that gives the paper's configuration with changes; the test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda **changes: config.validate(config.overlay(defaults.model_dump(mode="json"), changes))


def prepared(settings, train: int) -> None:
    """What `prepare` leaves of so many training samples."""
    declared = settings.datasets["cds"]
    used = settings.prepare.model_dump() | {"filter": declared.filter.model_dump()}
    used["format"] = declared.model_dump(include={"time_unit", "cast"})
    TOP.mkdir(parents=True, exist_ok=True)
    report = {"train": train, "provenance": {"settings": used | {"of_a_later_version": 1}}}
    (TOP / "prepare.json").write_text(json.dumps(report, default=str))


def require(settings) -> None:
    limits.require(settings, TOP, paths.main_runs(settings))


def test_nothing_is_refused_before_samples_and_models_exist(given):
    require(given(main={"budget": 10**6}))


def test_a_budget_above_max_train_is_refused_before_prepare_has_run(given):
    with pytest.raises(InputError, match=r"the budget is 256, but prepare\.max_train is 255"):
        require(given(prepare={"max_train": 255}, proxy={"size": 9}))
    require(given(prepare={"max_train": 256}))
    require(given(prepare={"max_train": 255}, proxy={"size": 9}, main={"budget": "all"}))


def test_a_budget_or_a_proxy_above_the_prepared_samples_is_refused(given):
    prepared(given(), 300)
    require(given(main={"budget": 300}))
    with pytest.raises(InputError, match="the budget is 301, but there are only 300 training samples"):
        require(given(main={"budget": 301}))
    with pytest.raises(InputError, match=r"proxy\.size is 301, but there are only 300"):
        require(given(proxy={"size": 301}))
    require(given(proxy={"size": 301}, main={"method": "random"}))  # which has no proxy
    require(given(proxy={"size": 301, "kind": "heads", "head": "shared"}, main={"method": "hardest"}))  # nor has this
    small = {"small": {"proxy": {"size": 301}}}
    with pytest.raises(InputError, match=r"proxy\.size is 301"):
        require(given(variants=small, main={"method": "small"}))


@pytest.mark.parametrize(
    "change",
    [
        {"prepare": {"max_train": 900}},
        {"prepare": {"train_share": 0.7}},
        {"datasets": {"cds": {"filter": {"core": 5}}}},
        {"datasets": {"cds": {"time_unit": "s"}}},
    ],
)
def test_samples_that_other_settings_made_say_nothing(given, change):
    prepared(given(), 300)
    require(given(**change, main={"budget": 800}))


@pytest.mark.parametrize("name", ["interactions.parquet", "interactions.csv.gz", "interactions.parquet/part-1"])
def test_samples_older_than_the_data_say_nothing(given, name):
    prepared(given(), 300)
    interactions = Path("data/cds") / name
    interactions.parent.mkdir(parents=True)
    interactions.touch()
    os.utime(TOP / "prepare.json", (1, 1))
    require(given(main={"budget": 800}))


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"train": 5, "provenance": 3}'])
def test_a_damaged_report_says_nothing(given, damage):
    prepared(given(), 300)
    (TOP / "prepare.json").write_text(damage)
    require(given(main={"budget": 800}))


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_a_folder_of_your_own_lacks_is_named(given, missing):
    for name in {"config.json", "tokenizer.json", "model.safetensors"} - {missing}:
        Path("mine").mkdir(exist_ok=True)
        (Path("mine") / name).write_text("{}")
    settings = given(models={"own": {"source": "folder", "path": "mine"}}, main={"model": "own"})
    what = missing if missing.endswith(".json") else "weights in safetensors"
    with pytest.raises(
        InputError, match=rf"models\.own\.path is mine, which has no {what}; name the folder of a model"
    ):
        require(settings)
    Path("data/models/own").mkdir(parents=True)  # fetched before, so the folder may be gone
    require(settings)
