"""Bootstrap intervals of metrics, and paired tests between recommenders on the same test samples (METHOD 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from scipy import stats

from minirec.evaluation.metrics import K, hit, ndcg
from minirec.evaluation.rank_tables import PolicyRanks, Ranks
from minirec.experiment.sections import Measure

BLOCK = 10_000_000  # resampled values in memory at a time, whatever the number of samples


class Interval(TypedDict):
    """A mean over the test samples, and the ends of its bootstrap confidence interval."""

    mean: float
    low: float
    high: float


class PairedTest(Interval):
    """A mean difference of NDCG@10 with its interval, the p-value of a paired permutation test, and the verdict."""

    p: float
    significant: bool


def interval(values: np.ndarray, resamples: int, confidence: float, seed: int) -> Interval:
    """Mean of a metric's values [n] on the test samples, with its percentile bootstrap interval.

    >>> interval(np.ones(5), resamples=100, confidence=0.95, seed=0)
    {'mean': 1.0, 'low': 1.0, 'high': 1.0}
    """
    mean = float(values.mean())
    if len(values) < 2 or values.std() == 0:
        return {"mean": mean, "low": mean, "high": mean}
    ends = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
        batch=max(1, BLOCK // len(values)),
    ).confidence_interval
    return {"mean": mean, "low": float(ends.low), "high": float(ends.high)}


def summary(rank: np.ndarray, settings: Measure) -> dict[str, Interval]:
    """HR@k and NDCG@k of ranks [n] at every cut-off k, with intervals over the test samples.

    Metrics of several runs, ranks [r, n], are averaged sample by sample. The keys are hr@5, ndcg@5, hr@10, …
    """
    runs = np.atleast_2d(rank)
    return {
        f"{name}@{k}": interval(metric(runs, k).mean(0), settings.bootstrap, settings.confidence, settings.seed)
        for k in settings.cutoffs
        for name, metric in (("hr", hit), ("ndcg", ndcg))
    }


def paired_p(a: np.ndarray, b: np.ndarray, seed: int, resamples: int = 9999) -> float:
    """Two-sided p-value of a paired permutation test of values a and b [n]: pairs are swapped at random.

    >>> paired_p(np.ones(3), np.ones(3), seed=0)
    1.0
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if not difference.any():
        return 1.0
    test = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
        batch=max(1, BLOCK // len(difference)),
    )
    return float(test.pvalue)


def improvement(other: np.ndarray, rank: np.ndarray, settings: Measure) -> PairedTest:
    """Mean difference of NDCG@10: ranks `rank` minus ranks `other` of another recommender, with a paired test.

    Both are [n], or [r, n] of several runs, whose NDCG@10 is averaged sample by sample.
    """
    ours, theirs = (ndcg(np.atleast_2d(runs), K).mean(0) for runs in (rank, other))
    difference = interval(ours - theirs, settings.bootstrap, settings.confidence, settings.seed)
    p = paired_p(ours, theirs, settings.seed)
    return {**difference, "p": p, "significant": bool(p < 1 - settings.confidence)}


def paired_tests(others: Mapping[str, np.ndarray], rank: np.ndarray, settings: Measure) -> dict[str, PairedTest]:
    """`improvement` of the ranks over each of the other recommenders, by their names."""
    return {name: improvement(other, rank, settings) for name, other in others.items()}


def measure(
    runs: Sequence[PolicyRanks],
    before: PolicyRanks | None,
    baselines: Mapping[str, Ranks],
    settings: Measure,
) -> dict[str, Any]:
    """All metrics of a policy, of the policy before RL and of the baselines, with the paired tests between them.

    runs: of the policy, one per seed; their metrics are averaged sample by sample. before: the policy before RL; None
    if the policy is that one. All ranks are of the same test samples in the same order.
    """
    rank = np.stack([run.rank for run in runs])
    others = {name: baseline.rank for name, baseline in baselines.items()}
    metrics: dict[str, Any] = {
        "metrics": summary(rank, settings),
        "metrics_without_reasoning": summary(np.stack([run.rank_without_reasoning for run in runs]), settings),
        "baselines": {name: summary(other, settings) for name, other in others.items()},
        "paired_tests": paired_tests(others, rank, settings),
    }
    if before is not None:
        metrics["before"] = summary(before.rank, settings)
        metrics["before_without_reasoning"] = summary(before.rank_without_reasoning, settings)
        metrics["improvement"] = improvement(before.rank, rank, settings)
    return metrics
