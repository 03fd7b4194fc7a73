"""Comparison of runs with different models, selectors, methods and budgets (METHOD 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from minirec.data import splits
from minirec.evaluation.metrics import K, ndcg
from minirec.evaluation.rank_tables import read_ranks
from minirec.evaluation.significance import interval, paired_tests, tests_of_pairs
from minirec.experiment.job_logs import costs_of
from minirec.experiment.paths import Run
from minirec.experiment.sections import Measure
from minirec.storage import artefact, tables

REFERENCES = ("random", "full")  # methods with which every configuration is compared
CONFIGURATION = ["model", "selector", "method", "budget"]  # what the seeds of a configuration share


def run_rows(top: Path, run: Run, selection_logs: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a run in comparison.parquet, one per metric.

    top: results folder of the data set. selection_logs: patterns of the logs, below it, whose jobs are the cost of the
    selection, which is None where one of them fits no log of a finished job.
    """
    metrics = artefact.read_json(run.folder(top) / "metrics.json")["metrics"]
    seconds = float(tables.numpy(tables.read("history", run.folder(top) / "history.parquet"), "seconds").sum())
    jobs = costs_of(top, [pattern.format(**asdict(run)) for pattern in selection_logs])
    selection = None if jobs is None else sum(job["seconds"] for job in jobs.values())
    spent = {"train_seconds": seconds, "selection_seconds": selection}
    return [
        asdict(run) | {"metric": metric, "value": v["mean"], "low": v["low"], "high": v["high"]} | spent
        for metric, v in metrics.items()
    ]


def over_seeds(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per configuration: number of seeds, mean and standard deviation of a metric, mean seconds.

    seconds: of training; total_seconds: also of the selection, whose proxy and rollouts other budgets share (and what
    the base model read for heads, other seeds); NaN if the cost of a seed is not known.
    """
    return (
        rows[rows["metric"] == metric]
        .assign(total=rows["train_seconds"] + rows["selection_seconds"].astype(float))
        .groupby(CONFIGURATION, sort=False)
        .agg(
            seeds=("seed", "size"),
            mean=("value", "mean"),
            std=("value", "std"),
            seconds=("train_seconds", "mean"),
            total_seconds=("total", lambda total: total.mean(skipna=False)),
        )
        .reset_index()
    )


def ranks_of(top: Path, runs: Sequence[Run], samples: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Ranks [seeds, n] of the targets of the test samples, by configuration, and the samples' users [n].

    The order is that of the runs. Raises InputError if they have different test samples.
    """
    sample_id = read_ranks(runs[0].folder(top) / "ranks.parquet").sample_id
    seeds: dict[str, list[np.ndarray]] = {}
    for run in runs:
        rank = read_ranks(run.folder(top) / "ranks.parquet", sample_id).rank
        seeds.setdefault(run.configuration, []).append(rank)
    return {name: np.stack(ranks) for name, ranks in seeds.items()}, splits.users(samples, sample_id)


def with_intervals(
    configurations: pd.DataFrame, ranks: Mapping[str, np.ndarray], users: np.ndarray, settings: Measure
) -> pd.DataFrame:
    """Add the ends of the intervals of NDCG@10 over users and seeds, low and high, to rows from `over_seeds`.

    ranks, users: from `ranks_of`.
    """
    ends = [
        interval(ndcg(ranks[Run(model, selector, method, budget, 0).configuration], K), users, settings)
        for model, selector, method, budget in configurations[CONFIGURATION].itertuples(index=False, name=None)
    ]
    return configurations.assign(low=[end["low"] for end in ends], high=[end["high"] for end in ends])


def tests_of(
    runs: Sequence[Run], ranks: Mapping[str, np.ndarray], users: np.ndarray, settings: Measure
) -> dict[str, Any]:
    """Paired tests of NDCG@10 between configurations, as comparison.json has them.

    main: the first run's configuration. paired_tests: of main minus every other configuration. minus_random and
    minus_full: of every configuration minus the method random with its model and budget, and minus full with its model
    or, without it, the first variant whose name begins with full_, where these are among the runs. Holm's correction
    covers the tests of each of the three. ranks, users: from `ranks_of`.
    """
    main, *others = ranks
    tests: dict[str, Any] = {"main": main}
    tests["paired_tests"] = paired_tests({name: ranks[name] for name in others}, ranks[main], users, settings)
    for method in REFERENCES:
        pairs = {}
        for run in runs:
            reference = _reference(method, run, runs)
            if reference and reference != run.configuration:
                pairs[run.configuration] = (ranks[run.configuration], ranks[reference])
        tests[f"minus_{method}"] = tests_of_pairs(pairs, users, settings)
    return tests


def _reference(method: str, run: Run, runs: Sequence[Run]) -> str | None:
    """The configuration that a run is compared with: one of the method, or in place of full a variant of it."""
    found = [other for other in runs if other.model == run.model and other.selector == "none"]
    if method == "random":
        found = [other for other in found if other.method == method and other.budget == run.budget]
    else:
        found = [other for other in found if f"{other.method}_".startswith("full_") and other.budget == "all"]
        found.sort(key=lambda other: other.method != "full")
    return found[0].configuration if found else None
