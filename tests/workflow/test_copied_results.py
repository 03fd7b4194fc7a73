"""Results that were copied, restored or moved, so that Snakemake has no records of them. Stages only pretend here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import snakemake
from test_workflow import CONFIG, TARGET, copy_of_a_run, plan, pretending, spawn

COPIES = {"cp -r": ["cp", "-r"], "cp -a": ["cp", "-a"], "rsync -a": ["rsync", "-a"], "rsync -r": ["rsync", "-r"]}


@pytest.fixture(scope="module")
def colleague(tmp_path_factory) -> Path:
    """A folder in which the workflow has run with `score.mu` .5."""
    return copy_of_a_run(tmp_path_factory)


@pytest.fixture
def received(colleague, tmp_path):
    """A function: another project that has received the colleague's data and results, by a command for copying."""

    def project(command=("cp", "-a"), results="results", name="mine"):
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        folder = tmp_path / name
        pretending(folder)
        shutil.rmtree(folder / "data")
        (folder / "toy.yaml").write_text(f"{CONFIG}\nresults: {results}\n", encoding="utf-8")
        for part, new in (("data", "data"), ("results", results)):
            source = f"{colleague / part}/" if command[0] == "rsync" else str(colleague / part)
            (folder / new).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*command, source, folder / new], check=True)
        return folder

    return project


@pytest.mark.parametrize("command", COPIES.values(), ids=COPIES.keys())
def test_a_changed_setting_is_refused_with_the_way_out_and_the_way_works(received, command):
    folder = received(command)
    changed = ("score: {mu: 0.3}",)
    done = spawn(folder, "-n", TARGET, configs=changed)
    assert done.returncode != 0
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("minirec: ")]
    assert "results/toy/signals/tiny/seed0/scores.parquet: made elsewhere with other settings or code" in said
    assert "--forcerun score" in said
    assert "(--configfile results/toy/config.yaml)" in said
    taken = snakemake(
        folder, "--cores", "1", "--touch", "--forceall", "--configfile", "results/toy/config.yaml", "--", TARGET
    )
    assert taken.returncode == 0, taken.stdout
    planned = plan(folder, TARGET, configs=changed)
    assert set(planned) == {"score", "select", "curriculum", "train", "evaluate", "measure", "summarise"}


def test_after_the_stage_has_run_again_nothing_is_refused_and_its_record_counts(received):
    folder = received()
    changed = ("score: {mu: 0.3}",)
    assert spawn(folder, "--cores", "1", "--forcerun", "score", "--", TARGET, configs=changed).returncode == 0
    assert plan(folder, TARGET, configs=changed) == {}
    assert "score" in plan(folder, TARGET, configs=("score: {mu: 0.4}",))


@pytest.mark.parametrize("command", COPIES.values(), ids=COPIES.keys())
def test_unchanged_results_are_taken_as_they_are_after_a_touch(received, command):
    folder = received(command)
    first = spawn(folder, "-n", TARGET)
    assert "files below results were made elsewhere with these settings and code" in first.stdout
    assert spawn(folder, "--cores", "1", "--touch", "--forceall", TARGET).returncode == 0
    after = spawn(folder, "-n", TARGET)
    assert "made elsewhere" not in after.stdout
    assert "Nothing to be done" in after.stdout


def test_a_copy_that_keeps_times_needs_no_touch(received):
    assert plan(received(("cp", "-a")), TARGET) == {}


def test_results_under_another_name_are_compared_too(received):
    folder = received(results="theirs/of_may")
    target = TARGET.replace("results", "theirs/of_may")
    assert plan(folder, target) == {}
    done = spawn(folder, "-n", target, configs=("measure: {bootstrap: 200}",))
    assert "theirs/of_may/toy/runs/tiny/tiny/minirec-8/seed0/metrics.json" in done.stdout
    assert "--forcerun measure" in done.stdout


def test_changed_code_counts_as_a_changed_setting(received):
    folder = received()
    stage = folder / "src/minirec/selection/curriculum.py"
    stage.write_text(stage.read_text(encoding="utf-8") + "\nCHANGED = 1\n", encoding="utf-8")
    done = spawn(folder, "-n", TARGET)
    assert done.returncode != 0
    assert "curriculum.parquet: made elsewhere with other settings or code" in done.stdout


def test_with_snakemake_s_own_records_a_change_plans_what_it_must_and_nothing_is_refused(colleague):
    assert "score" in plan(colleague, TARGET, configs=("score: {mu: 0.3}",))
