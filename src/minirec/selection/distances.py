"""Lazy greedy (Minoux 1978): distances to the nearest pick, recomputed only for rows that may win.

With every pick a distance can only shrink, so a stale one is an upper bound. `ArgmaxCache` finds the rows with the
largest weight x distance: it updates only the rows whose bound reaches the top, each against all picks made since its
last update, in one matrix product.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SAME = 1e-6  # smaller distances count as none
TIE = 1e-12  # values that differ by less are equal but for rounding
BLOCK_NUMBERS = 500_000  # numbers in a block of rows or of similarities: bounds memory
POOL_NUMBERS = 260_000  # numbers in the rows that are updated at every pick: they stay in the cache


class NearestDistances:
    """Cosine distance [n] of every row to its nearest pick, in float64; infinite before the first.

    embeddings [n, d] is an array, memory-mapped or not, or a torch tensor on any device, of any floating type; a block
    at a time is read and normalised. Zero rows are at distance 1 from everything else.
    """

    def __init__(self, embeddings: Any, budget: int) -> None:
        self.embeddings = embeddings
        n, width = embeddings.shape
        if isinstance(embeddings, np.ndarray):
            self.picks: Any = np.empty((budget, width))
        else:
            self.picks = embeddings.new_empty((budget, width)).double()
        self.count = 0  # of picks
        self.distance = np.full(n, np.inf)
        self.seen = np.zeros(n, dtype=np.int32)  # picks that a row's distance takes into account
        self.similarities = 0  # computed so far

    def unit(self, rows: np.ndarray) -> Any:
        """These rows in float64, of unit length."""
        block = self.embeddings[rows]
        if isinstance(block, np.ndarray):
            block = block.astype(np.float64)
            length = np.sqrt(np.einsum("ij,ij->i", block, block))
        else:
            block = block.double()
            length = block.norm(dim=1)
        length[length == 0] = 1.0
        block /= length[:, None]
        return block

    def pick(self, row: int) -> None:
        """Count this row among the picks; its own distance is 0."""
        self.picks[self.count] = self.unit(np.array([row]))[0]
        self.count += 1
        self.distance[row] = 0.0

    def update(self, rows: np.ndarray) -> None:
        """Bring the distances of these rows up to date, those that were updated together in one product."""
        rows = rows[self.seen[rows] < self.count]
        rows = rows[np.argsort(self.seen[rows], kind="stable")]
        done = 0
        while done < len(rows):
            since = int(self.seen[rows[done]])
            fits = BLOCK_NUMBERS // max(self.embeddings.shape[1], self.count - since)
            block = rows[done : done + max(fits, 16)]
            self.compare(block, self.unit(block))
            done += len(block)

    def compare(self, rows: np.ndarray, unit: Any) -> None:
        """The same for rows whose unit vectors are at hand, as one product."""
        since = int(self.seen[rows].min(initial=self.count))
        if since == self.count:
            return
        product = unit @ self.picks[since : self.count].T
        self.similarities += product.shape[0] * product.shape[1]
        closest = product.max(1) if isinstance(product, np.ndarray) else product.amax(1).cpu().numpy()
        found = 1.0 - closest
        found[found < SAME] = 0.0
        self.distance[rows] = np.minimum(self.distance[rows], found)
        self.seen[rows] = self.count


class ArgmaxCache:
    """The rows with the largest weight x distance; weight [n] >= 0.

    A pool of the best rows is updated at every pick. It serves until its best falls to the bound of those outside,
    then the rows with the highest bounds are updated and make up the next.
    """

    def __init__(self, nearest: NearestDistances, weight: np.ndarray) -> None:
        self.nearest, self.weight = nearest, weight
        self.bound: np.ndarray | None = None
        self.pool, self.unit = np.empty(0, dtype=np.int64), None
        self.outside = np.inf  # no row outside the pool exceeds it
        self.room = max(POOL_NUMBERS // nearest.embeddings.shape[1], 2)
        self.block, self.served = 2 * self.room, 0

    def find(self) -> tuple[float, np.ndarray]:
        """(largest, the rows that reach it up to TIE, ascending); (0, no rows) where it is no more than TIE."""
        if self.outside <= TIE and not len(self.pool):
            return 0.0, self.pool
        if self.bound is None:
            self.nearest.update(np.arange(len(self.weight)))
            if np.isnan(self.nearest.distance).any():
                raise ValueError("an embedding is not a number")
            self.bound = self.nearest.distance * self.weight
        self.served += 1
        if len(self.pool):
            self.nearest.compare(self.pool, self.unit)
            value = self.nearest.distance[self.pool] * self.weight[self.pool]
            self.bound[self.pool] = value
            top = value.max()
            if top - TIE > self.outside:
                return float(top), self.pool[value >= top - TIE]
        return self._refill(self.bound)

    def _refill(self, bound: np.ndarray) -> tuple[float, np.ndarray]:
        if self.served < 8:  # a larger block serves longer
            self.block *= 2
        elif self.served > 64 and self.block > self.room // 8:
            self.block //= 2
        self.served, size = 0, self.block
        while True:
            rows, self.outside = _highest(bound, size)
            self.nearest.update(rows)
            value = bound[rows] = self.nearest.distance[rows] * self.weight[rows]
            top = float(value.max())
            if top - TIE > self.outside or self.outside <= TIE:
                break
            size *= 2
        self.block = max(size // 4, self.block)
        if top <= TIE:
            self.pool, self.unit = self.pool[:0], None
            return 0.0, self.pool
        best, beyond = _highest(value, self.room)
        self.outside = max(self.outside, beyond)
        self.pool = rows[best[value[best] >= self.outside]]
        self.unit = self.nearest.unit(self.pool)
        return top, rows[value >= top - TIE]


def _highest(values: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """(Rows of the highest `count` values, ascending, and the highest of the others, 0 where there are none)."""
    if count >= len(values):
        return np.arange(len(values)), 0.0
    order = np.argpartition(values, len(values) - count - 1)[len(values) - count - 1 :]
    return np.sort(order[1:]), float(values[order[0]])
