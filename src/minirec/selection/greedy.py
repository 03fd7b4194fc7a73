"""Greedy choice within a budget: each pick is valuable and unlike those before it (METHOD 4.6)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minirec.selection.distances import TIE, ArgmaxCache, NearestDistances


def greedy(embeddings: np.ndarray, value: np.ndarray, budget: int) -> np.ndarray:
    """Row numbers in order of choice, int64 [budget] (METHOD 4.6).

    The first pick has the largest value [n] >= 0. Each further one has the largest D~ x value of the rows left: D~ is
    the cosine distance of its embedding [d] to the nearest pick, divided by the largest such distance. Exact; ties go
    to the lowest row. Raises ValueError where the budget is not within 0..n, or a value is negative or not a number.

    >>> embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> greedy(embeddings, value=np.array([0.9, 0.8, 0.1]), budget=2).tolist()  # the second row is a copy of the first
    [0, 2]
    """
    return _greedy(embeddings, value, budget, lambda: None, None)


def greedy_with_diversity(
    embeddings: np.ndarray, value: np.ndarray, budget: int, picked: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """As `greedy`, and D~ [budget] of each pick at its turn, 1 for the first. Calls `picked` after every pick."""
    diversity = np.ones(budget)
    return _greedy(embeddings, value, budget, picked, diversity), diversity


def _greedy(
    embeddings: np.ndarray, value: np.ndarray, budget: int, picked: Callable[[], None], diversity: np.ndarray | None
) -> np.ndarray:
    """The largest D~ x value is where distance x value is largest: what D~ divides by is the same for all rows."""
    value = np.asarray(value, dtype=np.float64)
    if not 0 <= budget <= len(value):
        raise ValueError(f"budget {budget} is not within 0..{len(value)}")
    if not (value >= 0).all():
        raise ValueError("a value is negative or not a number")
    distances = NearestDistances(embeddings, budget)
    best, farthest = ArgmaxCache(distances, value), ArgmaxCache(distances, np.ones(len(value)))
    left = np.ones(len(value), dtype=bool)
    picks = np.empty(budget, dtype=np.int64)
    for position in range(budget):
        if position == 0:
            ties = np.flatnonzero(value >= value.max() - TIE)
        else:
            _, ties = best.find()
        pick = int(ties[0] if len(ties) else np.argmax(left))  # all gains are 0: the first row left
        if position and diversity is not None:
            largest, _ = farthest.find()
            distances.update(np.array([pick]))
            diversity[position] = distances.distance[pick] / largest if largest else 0.0
        picks[position], left[pick] = pick, False
        distances.pick(pick)
        picked()
    return picks
