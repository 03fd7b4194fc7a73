"""Ranking metrics with their uncertainty (METHOD 5)."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from scipy import stats

from minirec.experiment import config


class Interval(TypedDict):
    """A mean over test samples and its bootstrap interval."""

    mean: float
    low: float
    high: float


def ndcg(rank: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k [n] of one relevant item at a 1-based rank [n]."""
    rank = np.asarray(rank, dtype=np.float64)
    return np.where(rank <= k, 1 / np.log2(1 + rank), 0.0)


def hit(rank: np.ndarray, k: int) -> np.ndarray:
    """HR@k [n]: 1.0 where the 1-based rank [n] is at most k."""
    return (np.asarray(rank) <= k).astype(np.float64)


def interval(values: np.ndarray, resamples: int, confidence: float, seed: int) -> Interval:
    """Mean of values [n] with its percentile bootstrap interval."""
    mean = float(values.mean())
    if len(values) < 2 or values.std() == 0:
        return {"mean": mean, "low": mean, "high": mean}
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=max(1, 10_000_000 // len(values)),
    ).confidence_interval
    return {"mean": mean, "low": float(found.low), "high": float(found.high)}


def summary(rank: np.ndarray, settings: config.Evaluate) -> dict[str, Interval]:
    """HR@k and NDCG@k of ranks [n], or of the mean over runs [r, n], with intervals over the n test samples.

    For instance {"ndcg@10": {"mean": …, "low": …, "high": …}}.
    """
    runs = np.atleast_2d(rank)
    return {
        f"{name}@{k}": interval(of(runs, k).mean(0), settings.bootstrap, settings.confidence, settings.seed)
        for k in settings.cutoffs
        for name, of in (("hr", hit), ("ndcg", ndcg))
    }


def paired_p(a: np.ndarray, b: np.ndarray, seed: int, resamples: int = 9999) -> float:
    """Two-sided p of a paired permutation test: the mean of a - b [n] if each pair's sign were a coin's."""
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if not difference.any():
        return 1.0
    found = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
        batch=max(1, 10_000_000 // len(difference)),
    )
    return float(found.pvalue)
