"""Metrics by group of test samples, and what is recommended: where a gain comes from (METHOD 5).

A mean hides who gains. The samples are grouped by the length of their history and by the popularity of their target;
coverage and popularity of the top 10 tell a recommender of favourites from one that knows the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minirec.data import splits
from minirec.data.splits import Split
from minirec.evaluation.metrics import K, ndcg
from minirec.evaluation.rank_tables import Ranks
from minirec.storage import tables

HISTORY = (1, 2, 5, 10)  # items at which the groups of history lengths start
POPULARITY = (0, 1, 5, 20)  # training interactions at which the groups of target popularities start


@dataclass(frozen=True)
class EvaluationSet:
    """The test samples [n] with what they are grouped by, and the popularity of the items [m]."""

    sample_id: np.ndarray  # [n] ascending
    history_length: np.ndarray  # [n] items
    target: np.ndarray  # [n] catalogue rows
    popularity: np.ndarray  # [m] training interactions of each item

    @classmethod
    def load(cls, samples: Path, catalogue: Path) -> EvaluationSet:
        """Read the test samples; raises InputError where there are none or they refer to no catalogue row."""
        return cls.of(splits.load(samples, catalogue, "test", 1), catalogue)

    @classmethod
    def of(cls, split: Split, catalogue: Path) -> EvaluationSet:
        """From a split and the catalogue of its items."""
        items = tables.read("catalogue", catalogue, ["row", "popularity"]).sort_by("row")
        return cls(split.sample_id, (split.history >= 0).sum(1), split.target, tables.numpy(items, "popularity"))

    def breakdown(self, ranks: Ranks) -> dict[str, Any]:
        """What is recommended, and NDCG@10 by length of the history and by popularity of the target."""
        quality = ndcg(ranks.rank, K)
        return {
            "recommended": self.recommended(ranks.top[:, :K]),
            "by_history_length": by_group(quality, self.history_length, HISTORY),
            "by_target_popularity": by_group(quality, self.popularity[self.target], POPULARITY),
        }

    def recommended(self, top: np.ndarray) -> dict[str, float]:
        """Coverage and popularity of recommended catalogue rows [n, 10], padded with -1.

        Coverage is the share of the catalogue that is recommended to anyone. Popularity is the mean number of training
        interactions of a recommended item; that of the targets is what an ideal recommender would have.
        """
        rows = top[top >= 0]
        return {
            "coverage@10": len(np.unique(rows)) / len(self.popularity),
            "popularity@10": float(self.popularity[rows].mean()),
            "popularity_of_targets": float(self.popularity[self.target].mean()),
        }


def by_group(quality: np.ndarray, amount: np.ndarray, starts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Number of samples and mean NDCG@10 of each group; a group reaches from its start to before the next one's.

    quality is NDCG@10 [n], amount [n] is what the samples are grouped by. Empty groups are left out.

    >>> by_group(np.array([1.0, 0.0, 0.5]), np.array([1, 1, 7]), starts=(1, 2, 5))
    {'1': {'samples': 2, 'ndcg@10': 0.5}, '5+': {'samples': 1, 'ndcg@10': 0.5}}
    """
    groups = {}
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        inside = (amount >= start) & (True if stop is None else amount < stop)
        name = f"{start}+" if stop is None else str(start) if stop == start + 1 else f"{start}-{stop - 1}"
        if inside.any():
            groups[name] = {"samples": int(inside.sum()), "ndcg@10": float(quality[inside].mean())}
    return groups


def mean_breakdown(runs: Sequence[Any]) -> Any:
    """Breakdowns of several runs as one: each number averaged over the runs, where they differ.

    >>> mean_breakdown([{"1": {"samples": 2, "ndcg@10": 0.5}}, {"1": {"samples": 2, "ndcg@10": 1.0}}])
    {'1': {'samples': 2, 'ndcg@10': 0.75}}
    """
    if isinstance(runs[0], dict):
        return {key: mean_breakdown([run[key] for run in runs]) for key in runs[0]}
    return runs[0] if all(run == runs[0] for run in runs) else float(np.mean(runs))
