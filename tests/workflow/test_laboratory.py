"""How the laboratory judges selection methods: epochs are chosen on valid, seeds meet the same seeds."""

import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "long"))
import selection
import selection_report

from minirec.selection.methods import registry


def rows(method, budget, epochs, valid, ranks):
    """A training for each seed; ranks: of its test samples."""
    names = {"method": method, "budget": budget, "epochs": epochs, "steps": 10 * epochs}
    return pd.DataFrame(
        [
            names | {"seed": seed, "valid": v, "rank": np.array(r)}
            for seed, (v, r) in enumerate(zip(valid, ranks, strict=True))
        ]
    )


def test_epochs_are_chosen_by_the_mean_on_valid_not_by_test():
    once = rows("m", 0.125, 1, [0.1, 0.3], [[1], [1]])
    twice = rows("m", 0.125, 2, [0.2, 0.25], [[9], [9]])
    assert selection_report.chosen(pd.concat([once, twice]))["epochs"].to_list() == [2, 2]
    equal = rows("m", 0.125, 2, [0.1, 0.3], [[9], [9]])
    assert selection_report.chosen(pd.concat([once, equal]))["epochs"].to_list() == [1, 1]  # the cheaper one


def test_seeds_of_one_proxy_stand_side_by_side():
    found = rows("m", 0.125, 1, [0.0] * 10, [[seed + 1, seed + 101] for seed in range(10)])
    assert selection_report.ranks(found)[:2].tolist() == [[1, 101, 6, 106], [2, 102, 7, 107]]
    assert selection_report.ranks(found, pd.Series(range(5)))[1].tolist() == [2, 102]


def test_a_difference_is_ours_minus_theirs_on_the_seeds_of_both():
    ours = rows("m", 0.125, 1, [0.0] * 5, [[1, 50]] * 5)  # half of the targets come first
    theirs = rows("random", 0.125, 1, [0.0] * 10, [[50, 50]] * 5 + [[1, 1]] * 5)
    assert selection_report.difference(ours, theirs, np.array([0, 1]))["mean"] == pytest.approx(0.5)


def test_a_new_method_is_judged_at_every_budget_and_a_variant_at_two_with_half_of_the_seeds(monkeypatch):
    monkeypatch.setattr(selection, "available", lambda datasets: datasets)
    known = selection.judged()
    assert {*registry.methods(), "minirec_centred"} <= set(known)
    assert not {"item_loss", "full_twice"} & set(known)  # of another training
    cells = selection.grid(["toys"], known, 10, list(selection.BUDGETS), [1])
    of = {name: [(c.budget, c.seed, c.proxy) for c in cells if c.method == name] for name in known}
    assert of["hardest"] == [(b, seed, seed % 5) for b in selection.BUDGETS for seed in range(10)]
    assert of["minirec_centred"] == [(b, seed, seed) for b in selection.ABLATED for seed in range(5)]
    assert of["full"] == [(1.0, seed, seed % 5) for seed in range(10)]


def test_the_table_has_full_first_then_the_best_and_marks_what_differs_from_random():
    names = {"dataset": "toys", "budget": 0.125}
    tests = pd.DataFrame(
        [
            {"dataset": "toys", "method": "full", "budget": 1.0, "test": 0.2},
            names | {"method": "random", "test": 0.1},
            names | {"method": "good", "test": 0.15, "random_difference": 0.05, "random_p_holm": 0.01},
            names | {"method": "bad", "test": 0.05, "random_difference": -0.05, "random_p_holm": 0.01},
            names | {"method": "same", "test": 0.11, "random_difference": 0.01, "random_p_holm": 0.2},
        ]
    )
    *_, full, good, same, random, bad = selection_report.markdown(tests, 0.125).splitlines()
    assert full == "| *full* | 0.2000 |"
    assert good == "| good | 0.1500 (75%) **+** |"
    assert same == "| same | 0.1100 (55%) |"
    assert random == "| random | 0.1000 (50%) |"
    assert bad == "| bad | 0.0500 (25%) **-** |"
