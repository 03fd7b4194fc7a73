"""Greedy selection within a budget: each pick is valuable and unlike the earlier picks (METHOD 4.6)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minirec.selection.distances import TIE, ArgmaxCache, NearestDistances, parallel_map
from minirec.selection.methods.registry import Factors, Picks


def greedy(embeddings: np.ndarray, value: np.ndarray, budget: int) -> np.ndarray:
    """Rows picked by value x diversity, in the order of picking, int64 [budget] (METHOD 4.6, greedy).

    embeddings [n, d]; value [n] >= 0. The first pick has the largest value; each later one has the largest value x D~
    of the rows left, where D~ is the cosine distance to the nearest pick, divided by the largest such distance. Ties go
    to the lowest row. Raises ValueError if the budget is not within 0..n, or a value is negative or not a number.

    >>> embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> greedy(embeddings, value=np.array([0.9, 0.8, 0.1]), budget=2).tolist()  # the second row is a copy of the first
    [0, 2]
    """
    return _greedy(embeddings, value, budget, lambda: None, None)


def greedy_with_diversity(
    embeddings: np.ndarray, value: np.ndarray, budget: int, picked: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """As `greedy`, but also returns D~ [budget] of each pick, 1 for the first; `picked` is called after every pick."""
    diversity = np.ones(budget)
    return _greedy(embeddings, value, budget, picked, diversity), diversity


def greedy_picks(factors: Factors, budget: int) -> Picks:
    """The picks of a greedy method by its factors (METHOD 4.6, greedy); without vectors, the largest values."""
    value, vectors = factors
    if vectors is None:
        rows, diversity = np.argsort(-value, kind="stable")[:budget], np.ones(budget)
    else:
        rows, diversity = greedy_with_diversity(vectors, value, budget)
    return Picks(rows, diversity * value[rows], diversity)


def _greedy(
    embeddings: np.ndarray, value: np.ndarray, budget: int, picked: Callable[[], None], diversity: np.ndarray | None
) -> np.ndarray:
    """D~ is distance / largest distance, the same divisor for all rows: so distance x value finds the same row."""
    value = np.asarray(value, dtype=np.float64)
    if not 0 <= budget <= len(value):
        raise ValueError(f"budget {budget} is not within 0..{len(value)}")
    if not (value >= 0).all():
        raise ValueError("a value is negative or not a number")
    with parallel_map() as over_blocks:
        distances = NearestDistances(embeddings, budget, over_blocks)
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
