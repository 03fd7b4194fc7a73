"""Paired tests of the whole chain: each selection against random, against all samples, and at equal cost.

Each method is compared with as many random samples for as many epochs and with all samples for one, the picks of
another model also with the model's own, and random samples for one epoch with the heads of as much cost: NDCG@10
on test over the seeds that both have, at least two, with intervals over users and seeds and paired tests. Holm's
correction covers what is compared with the same for a data set, model, budget and number of epochs, own picks and those
of another model apart; at equal cost all budgets of a data set (METHOD 5).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from evidence import KEY, RANKS, settings_of

from minirec.evaluation.significance import holm, paired_tests

TESTED = ["dataset", "model", "selector", "method", "budget", "against"]
RANDOM = ("random", "random_once", "random_twice")
EPOCHS = {"_once": ", one epoch", "_twice": ", two epochs"}  # endings of variants


def tested(rows: pd.DataFrame, ranks: dict[tuple, pd.DataFrame]) -> pd.DataFrame:
    """A row a selector, method, budget and comparison, of the runs whose ranks are there."""
    found = []
    rows = rows[[tuple(key) in ranks for key in rows[KEY].itertuples(index=False)]]
    for _, of_set in rows.groupby(["model", "dataset"]):
        full = of_set[of_set["method"] == "full_once"]
        heads = of_set[of_set["method"].str.startswith("learnable_heads") & ~foreign(of_set)]
        for _, once in of_set[of_set["method"] == "random_once"].groupby("budget"):
            found += against("equal_cost", once, of_equal_cost(heads, once), ranks)
        for _, alike in of_set[of_set["budget"] != "all"].groupby(["budget", ending(of_set)]):
            own, others = alike[~foreign(alike)], alike[foreign(alike)]
            random = own[own["method"].isin(RANDOM)]
            for ours in (own, others):
                found += against("random", ours.drop(random.index, errors="ignore"), random, ranks)
                found += against("full_once", ours, full, ranks)
            found += against("own", others, own, ranks)
    return pd.DataFrame(found)


def ending(rows: pd.DataFrame) -> pd.Series:
    """The ending of each method that says for how many epochs: methods of one ending are compared with each other."""
    return rows["method"].str.extract(f"({'|'.join(EPOCHS)})$", expand=False).fillna("").rename("ending")


def of_equal_cost(rows: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """The rows of the method and budget whose mean cost is nearest to that of ours; none if more than 10 % away."""
    cost, cell = ours["cost"].mean(), ["method", "budget"]
    distance = (rows.groupby(cell)["cost"].mean() - cost).abs()
    return rows.set_index(cell, drop=False).loc[distance[distance <= 0.1 * cost].nsmallest(1).index]


def foreign(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of picks that another model's proxy or heads made."""
    return ((rows["selector"] != "none") & (rows["selector"] != rows["model"])).rename("foreign")


def against(
    name: str, ours: pd.DataFrame, theirs: pd.DataFrame, ranks: dict[tuple, pd.DataFrame]
) -> list[dict[str, object]]:
    """The tests of each method of ours against the runs `theirs`, by seed.

    name: random, full_once, equal_cost, or own, which compares with the same method of theirs.
    """
    tests = []
    for cell, part in ours.groupby(TESTED[:-1]):
        other = theirs[theirs["method"] == part["method"].iloc[0]] if name == "own" else theirs
        if test := difference(part, other, ranks):
            tests.append(dict(zip(TESTED, (*cell, name), strict=True)) | test)
    return tests


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, ranks: dict[tuple, pd.DataFrame]) -> dict[str, object]:
    """NDCG@10 of ours minus theirs on the seeds of both, with interval and p; empty if they have fewer than two."""
    seeds = sorted(set(ours["seed"]) & set(theirs["seed"]))
    if len(seeds) < 2:
        return {}
    runs = [
        [ranks[tuple(key)] for key in side.set_index("seed", drop=False).loc[seeds, KEY].to_numpy()]
        for side in (ours, theirs)
    ]
    samples = runs[0][0][["sample_id", "user"]].to_numpy()
    if not all(np.array_equal(run[["sample_id", "user"]], samples) for side in runs for run in side):
        raise SystemExit(f"{RANKS} holds runs of {ours['dataset'].iloc[0]} on other test samples; remove them")
    a, b = (np.stack([run["rank"] for run in side]) for side in runs)
    _, settings = settings_of(ours["model"].iloc[0])
    test = paired_tests({"theirs": b}, a, samples[:, 1], settings.measure)["theirs"]
    return {"seeds": len(seeds), "difference": test["mean"], **{name: test[name] for name in ("low", "high", "p")}}


def corrected(tests: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The tests of methods that have rows, with Holm's correction in each family."""
    tests = tests.merge(rows[TESTED[:-1]].drop_duplicates())
    budget = tests["budget"].mask(tests["against"] == "equal_cost", "").rename("of_family")
    family = ["model", "dataset", budget, "against", ending(tests), foreign(tests)]
    return tests.assign(p_holm=tests.groupby(family)["p"].transform(holm))
