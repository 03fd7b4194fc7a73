"""Runs of different models, methods and budgets beside each other (METHOD 5).

A run is named by the part of its path below runs/, `model/selector/method-budget/seedN`; without the seed the name is
that of a configuration, whose runs are its seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from minirec.evaluation.ranks import read_ranks
from minirec.evaluation.significance import paired_tests
from minirec.experiment import config
from minirec.storage import artefact, tables

CONFIGURATION = ["model", "selector", "method", "budget"]


def run_rows(runs: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a run in comparison.parquet, one a metric; `runs` is the folder of all runs."""
    model, selector, trained_on, seed = name.split("/")
    method, budget = trained_on.rsplit("-", 1)
    metrics = artefact.read_json(runs / name / "metrics.json")["metrics"]
    seconds = float(tables.numpy(tables.read("history", runs / name / "history.parquet"), "seconds").sum())
    configuration = dict(zip(CONFIGURATION, (model, selector, method, budget), strict=True))
    return [
        configuration
        | {"seed": int(seed.removeprefix("seed")), "metric": metric, "value": v["mean"]}
        | {"low": v["low"], "high": v["high"], "train_seconds": seconds}
        for metric, v in metrics.items()
    ]


def over_seeds(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a configuration: number of seeds, mean and standard deviation of a metric, mean seconds of training."""
    return (
        rows[rows["metric"] == metric]
        .groupby(CONFIGURATION, sort=False)
        .agg(seeds=("seed", "size"), mean=("value", "mean"), std=("value", "std"), seconds=("train_seconds", "mean"))
        .reset_index()
    )


def main_against_others(runs: Path, names: Sequence[str], settings: config.Measure) -> dict[str, Any]:
    """Paired tests of the first run's configuration, the main experiment, against every other configuration.

    Ranks are averaged over the seeds of each, sample by sample. Raises InputError where runs have other test samples.
    """
    sample_id = read_ranks(runs / names[0] / "ranks.parquet").sample_id
    ranks: dict[str, list[np.ndarray]] = {}
    for name in names:
        rank = read_ranks(runs / name / "ranks.parquet", sample_id).rank
        ranks.setdefault(name.rsplit("/", 1)[0], []).append(rank)
    main, *others = ranks
    return {
        "main": main,
        "paired_tests": paired_tests({name: np.stack(ranks[name]) for name in others}, np.stack(ranks[main]), settings),
    }
