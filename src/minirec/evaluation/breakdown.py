"""NDCG@10 by group of test samples, and which items are recommended: where a gain comes from (METHOD 5).

The samples are grouped by the length of their history and by the popularity of their target. Coverage and popularity of
the recommended items show whether a recommender only repeats the favourites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minirec.data import splits
from minirec.evaluation.metrics import K, ndcg
from minirec.evaluation.rank_tables import Ranks
from minirec.storage import tables

HISTORY = (1, 2, 5, 10)  # shortest history of each group, in items
POPULARITY = (0, 1, 5, 20)  # lowest target popularity of each group, in training interactions


@dataclass(frozen=True)
class EvaluationSet:
    """The test samples [n] with what they are grouped by, and the popularity of the items [m]."""

    sample_id: np.ndarray  # [n] ascending
    user: np.ndarray  # [n] number of each sample's user, from 0
    history_length: np.ndarray  # [n] items
    target: np.ndarray  # [n] catalogue rows
    popularity: np.ndarray  # [m] training interactions of each item

    @classmethod
    def load(cls, samples: Path, catalogue: Path) -> EvaluationSet:
        """Read the test samples; raises InputError if there are none, or one refers to a row beyond the catalogue."""
        split = splits.load(samples, catalogue, "test", 1)
        items = tables.read("catalogue", catalogue, ["row", "popularity"]).sort_by("row")
        return cls(
            sample_id=split.sample_id,
            user=splits.users(samples, split.sample_id),
            history_length=(split.history >= 0).sum(1),
            target=split.target,
            popularity=tables.numpy(items, "popularity"),
        )

    def breakdown(self, ranks: Ranks) -> dict[str, Any]:
        """NDCG@10 by length of the history and by popularity of the target, and what is recommended."""
        quality = ndcg(ranks.rank, K)
        return {
            "recommended": self.recommended(ranks.top[:, :K]),
            "by_history_length": by_group(quality, self.history_length, HISTORY),
            "by_target_popularity": by_group(quality, self.popularity[self.target], POPULARITY),
        }

    def recommended(self, top: np.ndarray) -> dict[str, float]:
        """Coverage and popularity of recommended catalogue rows [n, 10], padded with -1.

        Coverage is the share of the catalogue that is recommended to anyone. Popularity is the mean number of training
        interactions of a recommended item; the targets' own popularity is the ideal.
        """
        rows = top[top >= 0]
        return {
            "coverage@10": len(np.unique(rows)) / len(self.popularity),
            "popularity@10": float(self.popularity[rows].mean()),
            "popularity_of_targets": float(self.popularity[self.target].mean()),
        }


def by_group(quality: np.ndarray, amount: np.ndarray, starts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Number of samples and mean NDCG@10 of each group; a group ends where the next one starts.

    quality [n]: NDCG@10. amount [n]: what the samples are grouped by. Empty groups are left out.

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
    """Average the breakdowns of several runs, number by number; a number that all share is kept.

    >>> mean_breakdown([{"1": {"samples": 2, "ndcg@10": 0.5}}, {"1": {"samples": 2, "ndcg@10": 1.0}}])
    {'1': {'samples': 2, 'ndcg@10': 0.75}}
    """
    if isinstance(runs[0], dict):
        return {key: mean_breakdown([run[key] for run in runs]) for key in runs[0]}
    return runs[0] if all(run == runs[0] for run in runs) else float(np.mean(runs))
