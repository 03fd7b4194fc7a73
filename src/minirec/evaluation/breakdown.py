"""Where a recommender is right, and what it recommends: so that a gain can be understood (METHOD 5).

A mean hides who gains. The groups are those of a sample's history and of its target's popularity; coverage and
popularity of the top 10 tell a recommender of favourites from one that knows the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minirec.data.splits import Split
from minirec.evaluation import metrics
from minirec.storage import tables

K = 10
HISTORY = (1, 2, 5, 10)  # groups start at these numbers of items
POPULARITY = (0, 1, 5, 20)  # and at these numbers of training interactions with the target


@dataclass(frozen=True)
class Breakdown:
    """By what the test samples are grouped: length of the history, popularity of the target."""

    history_length: np.ndarray  # [n] items
    target: np.ndarray  # [n] catalogue rows
    popularity: np.ndarray  # [m] training interactions of each item

    @classmethod
    def of(cls, split: Split, catalogue: Path) -> Breakdown:
        """From a split and the catalogue of its items."""
        items = tables.read("catalogue", catalogue, ["row", "popularity"]).sort_by("row")
        return cls((split.history >= 0).sum(1), split.target, tables.numpy(items, "popularity"))

    def describe(self, rank: np.ndarray, top: np.ndarray) -> dict[str, Any]:
        """The breakdown of ranks [n] and of recommended catalogue rows [n, k], best first, padded with -1."""
        quality = metrics.ndcg(rank, K)
        return {
            "recommended": self.recommended(top[:, :K]),
            "by_history_length": by_group(quality, self.history_length, HISTORY),
            "by_target_popularity": by_group(quality, self.popularity[self.target], POPULARITY),
        }

    def recommended(self, top: np.ndarray) -> dict[str, float]:
        """Of lists [n, k], padded with -1: the share of the catalogue in any of them, how popular their items are.

        `popularity` is the mean number of training interactions, to be held against that of the targets.
        """
        rows = top[top >= 0]
        return {
            "coverage@10": len(np.unique(rows)) / len(self.popularity),
            "popularity@10": float(self.popularity[rows].mean()),
            "popularity_of_targets": float(self.popularity[self.target].mean()),
        }


def by_group(quality: np.ndarray, amount: np.ndarray, starts: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Samples and mean NDCG@10 of each group of samples whose amount [n] lies from one start to the next."""
    found = {}
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        inside = (amount >= start) & (True if stop is None else amount < stop)
        name = f"{start}+" if stop is None else str(start) if stop == start + 1 else f"{start}-{stop - 1}"
        if inside.any():
            found[name] = {"samples": int(inside.sum()), "ndcg@10": float(quality[inside].mean())}
    return found
