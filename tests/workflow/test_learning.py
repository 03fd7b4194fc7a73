"""What the documents say of learning, against the runs that were finished."""

import importlib.util

import pyarrow as pa
import pytest
from conftest import ROOT

from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance

spec = importlib.util.spec_from_file_location("learning", ROOT / "benchmarks" / "long" / "learning.py")
learning = importlib.util.module_from_spec(spec)
spec.loader.exec_module(learning)


def row(arm, seed, before, after, p, **more):
    names = dict.fromkeys([*learning.NAMES, *learning.VALUES, *learning.BASELINES, *learning.P_VALUES], "0.01")
    key = {"dataset": "toys", "model": "tiny", "arm": arm, "seed": str(seed)}
    return names | key | {"before": str(before), "after": str(after), "p": str(p)} | more


@pytest.mark.parametrize(("file", "made"), [(learning.RESULTS, learning.table), (learning.DOCS, learning.ablations)])
def test_the_documents_show_the_finished_runs(file, made):
    shown = file.read_text(encoding="utf-8").partition("<!-- learning -->\n")[2].partition("<!-- end learning -->")[0]
    assert shown == made(learning.read())


def test_a_line_of_the_table_counts_the_seeds_that_are_significantly_better():
    rows = [
        row("full", 0, 0.05, 0.09, 0.001, tfidf_last="0.02", tfidf_history="0.03"),
        row("full", 1, 0.05, 0.08, 0.2),
        row("full", 2, 0.05, 0.01, 0.001),  # significantly worse
        row("token_loss", 0, 0.05, 0.05, 1.0),
    ]
    *_, line = learning.table(rows).splitlines()
    assert line.split(" | ") == [
        "| toys, tiny",
        "0.0500",
        "0.0600 (0.0100 to 0.0900; 1 of 3)",
        "0.0100",
        "not run",
        "0.0500 (0 of 1)",
        "0.0100",
        "0.0300",
        "0.0100 |",
    ]


def test_the_digest_of_settings_sees_the_loss_and_what_decides_a_run_but_not_its_neighbours():
    _, settings, model = learning.settings_of("tiny", "toys")

    def digest(settings, arm="full"):
        return learning.digest(settings, "toys", model, arm)

    assert digest(settings, "item_loss") != digest(settings) != digest(settings, "token_loss")
    changed = settings.model_copy(update={"train": settings.train.model_copy(update={"learning_rate": 1e-9})})
    assert digest(changed) != digest(settings)
    others = settings.model_copy(
        update={"score": settings.score.model_copy(update={"mu": 0.9}), "results": "elsewhere"}
    )
    assert digest(others) == digest(settings)


def test_a_row_is_what_the_run_and_the_policy_before_it_say(tmp_path):
    def of(mean):
        return {"ndcg@10": {"mean": mean, "low": 0.111149, "high": 0.3}, "hr@10": {"mean": 0.9}}

    run = {"samples": 7, "metrics": of(0.20001), "metrics_without_reasoning": of(0.25), "before": of(0.1)}
    run |= {"before_without_reasoning": of(0.15), "improvement": {"p": 0.01234}}
    run["baselines"] = {name: of(0.3 + i / 100) for i, name in enumerate(learning.BASELINES)}
    run["paired_tests"] = {name: {"p": 0.4 + i / 100} for i, name in enumerate(learning.BASELINES)}
    artefact.write_json(run, tmp_path / "run" / "metrics.json", Provenance("test"))
    schema = tables.TABLES["history"].schema()
    steps = {name: [1, 2] for name in schema.names} | {"sample_ids": [[3, 1, 2], [0, 5]], "seconds": [1.25, 2.0]}
    steps |= {"reward": [0, 0], "forced_share": [0, 0], "valid_ndcg": [None, 1]}
    history = pa.table({f.name: pa.array(steps[f.name], f.type) for f in schema}, schema)
    tables.write("history", history, tmp_path / "run" / "history.parquet", Provenance("test"))

    found = learning.row(tmp_path / "run")

    assert [*found] == [*learning.NAMES[6:], *learning.VALUES, *learning.BASELINES, *learning.P_VALUES]
    values = [5, 2, 3, 7, 0.1, 0.2, 0.1111, 0.3, 0.012, 0.15, 0.25]
    assert [*found.values()] == pytest.approx([*values, 0.3, 0.31, 0.32, 0.33, 0.4, 0.41, 0.42, 0.43])
