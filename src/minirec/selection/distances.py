"""Lazy greedy (Minoux 1978): distances to the nearest pick, recomputed only for rows that may be picked next.

A pick can only shrink distances, so a distance that is not up to date is an upper bound. `ArgmaxCache` finds the rows
with the largest weight x distance: it updates only those whose bound may be the largest, against all picks since their
last update, in one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

SAME = 1e-6  # smaller distances count as 0
TIE = 1e-12  # values that differ by less are equal but for rounding
BLOCK_NUMBERS = 250_000  # numbers in a block of rows or of similarities: the work of a thread; limits memory
POOL_NUMBERS = 260_000  # numbers in the rows that every pick updates; so few stay in the processor's cache

_blas = cache(ThreadpoolController)  # looks for the libraries once


@contextmanager
def parallel_map() -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` that uses as many threads as BLAS would have used; BLAS itself uses one for as long.

    So the order of the additions in a matrix product, and with it every bit, is the same for any number of threads.
    """
    threads = max((library["num_threads"] for library in _blas().select(user_api="blas").info()), default=1)
    with _blas().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        yield pool.map if threads > 1 else map


class NearestDistances:
    """Cosine distance [n] of every row to its nearest pick, in float64; infinite before the first.

    embeddings [n, d]: an array, memory-mapped or not, or a torch tensor on any device, of any floating type; read and
    normalised a block at a time. A zero row has distance 1 to every other. `over_blocks`: map, or what `parallel_map`
    gives.
    """

    def __init__(self, embeddings: Any, budget: int, over_blocks: Callable[..., Iterator[Any]] = map) -> None:
        self.embeddings, self.over_blocks = embeddings, over_blocks
        n, width = embeddings.shape
        if isinstance(embeddings, np.ndarray):
            self.picks: Any = np.empty((budget, width))
        else:
            self.picks = embeddings.new_empty((budget, width)).double()
        self.count = 0  # of picks
        self.distance = np.full(n, np.inf)
        self.seen = np.zeros(n, dtype=np.int32)  # how many picks each row's distance accounts for
        self.similarities = 0  # how many were computed so far

    def read(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        """The embeddings of these rows in float64, and their lengths; 1 is the length of a zero row."""
        block = self.embeddings[rows]
        if isinstance(block, np.ndarray):
            block = block.astype(np.float64)
            length = np.sqrt(np.einsum("ij,ij->i", block, block))
        else:
            block = block.double()
            length = block.norm(dim=1).cpu().numpy()
        length[length == 0] = 1.0
        return block, length

    def pick(self, row: int) -> None:
        """Make this row a pick; its distance becomes 0."""
        block, length = self.read(np.array([row]))
        self.picks[self.count] = block[0] / float(length[0])
        self.count += 1
        self.distance[row] = 0.0

    def update(self, rows: np.ndarray) -> None:
        """Bring the distances of these rows up to date; rows last updated together share a matrix product."""
        rows = rows[self.seen[rows] < self.count]
        rows = rows[np.argsort(self.seen[rows], kind="stable")]
        blocks, done = [], 0
        while done < len(rows):
            since = int(self.seen[rows[done]])
            fits = BLOCK_NUMBERS // max(self.embeddings.shape[1], self.count - since)
            blocks.append(rows[done : done + max(fits, 16)])
            done += len(blocks[-1])
        self.similarities += sum(self.over_blocks(lambda block: self.compare(block, *self.read(block)), blocks))

    def compare(self, rows: np.ndarray, block: Any, length: np.ndarray) -> int:
        """Bring the distances of `rows` up to date in one matrix product; returns how many similarities it computed.

        block and length: what `read(rows)` returns.
        """
        since = int(self.seen[rows].min(initial=self.count))
        if since == self.count:
            return 0
        product = block @ self.picks[since : self.count].T
        closest = product.max(1) if isinstance(product, np.ndarray) else product.amax(1).cpu().numpy()
        distance = 1.0 - closest / length
        distance[distance < SAME] = 0.0
        self.distance[rows] = np.minimum(self.distance[rows], distance)
        self.seen[rows] = self.count
        return int(product.shape[0]) * int(product.shape[1])


class ArgmaxCache:
    """Finds the rows with the largest weight x distance; weight [n] >= 0.

    Keeps a pool of the best rows up to date. When the best row of the pool no longer exceeds the upper bounds of all
    rows outside, the rows with the highest bounds are updated, and the best of these are the next pool.
    """

    def __init__(self, nearest: NearestDistances, weight: np.ndarray) -> None:
        self.nearest, self.weight = nearest, weight
        self.bound: np.ndarray | None = None
        self.pool, self.embeddings = np.empty(0, dtype=np.int64), nearest.read(np.empty(0, dtype=np.int64))
        self.outside = np.inf  # upper bound of all rows outside the pool
        self.room = max(POOL_NUMBERS // nearest.embeddings.shape[1], 2)
        self.block, self.served = 2 * self.room, 0

    def find(self) -> tuple[float, np.ndarray]:
        """(largest value, rows within TIE of it, ascending); (0, no rows) if the largest is at most TIE."""
        if self.outside <= TIE and not len(self.pool):
            return 0.0, self.pool
        if self.bound is None:
            self.nearest.update(np.arange(len(self.weight)))
            if np.isnan(self.nearest.distance).any():
                raise ValueError("an embedding is not a number")
            self.bound = self.nearest.distance * self.weight
        self.served += 1
        if len(self.pool):
            self.nearest.similarities += self.nearest.compare(self.pool, *self.embeddings)
            value = self.nearest.distance[self.pool] * self.weight[self.pool]
            self.bound[self.pool] = value
            top = value.max()
            if top - TIE > self.outside:
                return float(top), self.pool[value >= top - TIE]
        return self._refill(self.bound)

    def _refill(self, bound: np.ndarray) -> tuple[float, np.ndarray]:
        """Update the rows of the highest bounds until the best of them beats all others; these become the pool."""
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
            self.pool = self.pool[:0]
            return 0.0, self.pool
        best, beyond = _highest(value, self.room)
        self.outside = max(self.outside, beyond)
        self.pool = rows[best[value[best] >= self.outside]]
        self.embeddings = self.nearest.read(self.pool)
        return top, rows[value >= top - TIE]


def _highest(values: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """(rows of the highest `count` values, ascending; the highest other value, 0 if there is none)."""
    if count >= len(values):
        return np.arange(len(values)), 0.0
    order = np.argpartition(values, len(values) - count - 1)[len(values) - count - 1 :]
    return np.sort(order[1:]), float(values[order[0]])
