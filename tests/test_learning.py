"""What the README says of learning, against the runs that were finished."""

import importlib.util

import numpy as np
import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("learning", ROOT / "benchmarks" / "long" / "learning.py")
learning = importlib.util.module_from_spec(spec)
spec.loader.exec_module(learning)


def row(arm, seed, before, after, p, **more):
    names = dict.fromkeys([*learning.NAMES, *learning.VALUES, *learning.REFERENCES, *learning.AGAINST], "0.01")
    key = {"dataset": "toys", "model": "tiny", "arm": arm, "seed": str(seed)}
    return names | key | {"before": str(before), "after": str(after), "p": str(p)} | more


@pytest.mark.parametrize(("file", "made"), [(learning.README, learning.table), (learning.DOCS, learning.ablations)])
def test_the_documents_show_the_finished_runs(file, made):
    shown = file.read_text(encoding="utf-8").partition(learning.BEGIN)[2].partition(learning.END)[0]
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


def test_the_ranks_of_a_reference_come_in_the_order_of_the_samples():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"reference": ["a", "b", "a"], "sample_id": [7, 7, 3], "rank": [1, 2, 5]})
    assert np.array_equal(learning.ranks_of(table, "a"), [5, 1])
