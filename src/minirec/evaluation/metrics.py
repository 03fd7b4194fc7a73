"""NDCG and hit rate of test samples with one relevant item each, the target (METHOD 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

K = 10  # cut-off of the main metrics, NDCG@10 and HR@10


def ndcg(rank: ArrayLike, k: int) -> np.ndarray:
    """NDCG@k [n] of each sample: 1 / log2(1 + rank) of its target, 0 beyond k; ranks [n] start at 1.

    >>> ndcg([1, 3, 11], 10).tolist()
    [1.0, 0.5, 0.0]
    """
    rank = np.asarray(rank, dtype=np.float64)
    return np.where(rank <= k, 1 / np.log2(1 + rank), 0.0)


def hit(rank: ArrayLike, k: int) -> np.ndarray:
    """HR@k [n] of each sample: 1 if its target is among the first k, else 0; ranks [n] start at 1.

    >>> hit([1, 3, 11], 10).tolist()
    [1.0, 1.0, 0.0]
    """
    return (np.asarray(rank) <= k).astype(np.float64)
