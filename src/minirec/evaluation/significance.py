"""Confidence intervals of metrics, and paired tests between recommenders on the same test samples (METHOD 5).

Two things are random: which users are tested, whose samples resemble each other, and the seed of a run. Users are
resampled; the few seeds enter by Student's t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from scipy import stats

from minirec.evaluation.metrics import K, hit, ndcg
from minirec.evaluation.rank_tables import PolicyRanks, Ranks
from minirec.experiment.sections import Measure

BLOCK = 10_000_000  # resampled values in memory at a time, whatever the number of users
PERMUTATIONS = 9999


class Interval(TypedDict):
    """A mean over the test samples and runs, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


class PairedTest(Interval):
    """A mean difference of NDCG@10 with its interval, its p-value, that after Holm's correction, and the verdict."""

    p: float
    p_holm: float
    significant: bool


def interval(values: np.ndarray, users: np.ndarray, settings: Measure) -> Interval:
    """Mean of a metric with its percentile bootstrap interval over users and seeds (METHOD 5, intervals).

    values [n], or [r, n] of r runs with different seeds; users [n]: the user of each test sample, as a number from 0.
    With one run the interval does not cover the differences between seeds.

    >>> interval(np.array([0.0, 1.0, 0.0, 1.0]), np.array([0, 0, 1, 1]), Measure())  # both users have the same mean
    {'mean': 0.5, 'low': 0.5, 'high': 0.5}
    """
    return _interval(
        np.atleast_2d(values).mean(0), _seed_noise([values], settings.bootstrap, settings), users, settings
    )


def summary(rank: np.ndarray, users: np.ndarray, settings: Measure) -> dict[str, Interval]:
    """HR@k and NDCG@k of ranks [n], or [r, n] of several runs, at every cut-off k, with intervals.

    users [n]: the user of each test sample. The keys are hr@5, ndcg@5, hr@10, …
    """
    return {
        f"{name}@{k}": interval(metric(rank, k), users, settings)
        for k in settings.cutoffs
        for name, metric in (("hr", hit), ("ndcg", ndcg))
    }


def paired_tests(
    others: Mapping[str, np.ndarray], rank: np.ndarray, users: np.ndarray, settings: Measure
) -> dict[str, PairedTest]:
    """Compare NDCG@10 of the ranks with that of each of the other recommenders, by name: our mean minus theirs.

    Ranks are [n] of a recommender without a seed, or [r, n] of runs with different seeds. The p-values are of paired
    permutation tests; Holm's correction covers the tests of one call (METHOD 5, tests).
    """
    return tests_of_pairs({name: (rank, other) for name, other in others.items()}, users, settings)


def tests_of_pairs(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], users: np.ndarray, settings: Measure
) -> dict[str, PairedTest]:
    """Compare NDCG@10 of the two recommenders of each pair of ranks, by name: the first minus the second.

    Ranks and Holm's correction as in `paired_tests`.
    """
    tests = {name: _paired_test(ndcg(a, K), ndcg(b, K), users, settings) for name, (a, b) in pairs.items()}
    corrected = holm([p for _, p in tests.values()])
    return {
        name: {**difference, "p": p, "p_holm": p_holm, "significant": p_holm < round(1 - settings.confidence, 12)}
        for (name, (difference, p)), p_holm in zip(tests.items(), corrected, strict=True)
    }


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of several p-values: the smallest times their number, the next times one less, and so on.

    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    values, order = np.asarray(p, dtype=np.float64), np.argsort(p, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1.0)
    return corrected.tolist()


def measure(
    runs: Sequence[PolicyRanks],
    before: PolicyRanks | None,
    baselines: Mapping[str, Ranks],
    users: np.ndarray,
    settings: Measure,
    control: Sequence[PolicyRanks] = (),
) -> dict[str, Any]:
    """All metrics of a policy, of the policy before RL and of the baselines, with the paired tests between them.

    runs: of the policy, one per seed. before: the policy before RL; None if the policy is that one. users [n]: the user
    of each test sample. control: runs of the policy trained on a control selection, one per seed. All ranks are of the
    same test samples in the same order.
    """
    rank = np.stack([run.rank for run in runs])
    others = {name: baseline.rank for name, baseline in baselines.items()}
    compared = others | ({"before": before.rank} if before else {})
    if control:
        compared["control"] = np.stack([run.rank for run in control])
    tests = paired_tests(compared, rank, users, settings)
    metrics: dict[str, Any] = {
        "metrics": summary(rank, users, settings),
        "metrics_without_reasoning": summary(np.stack([run.rank_without_reasoning for run in runs]), users, settings),
        "baselines": {name: summary(other, users, settings) for name, other in others.items()},
        "paired_tests": {name: tests[name] for name in others},
    }
    if before is not None:
        metrics["before"] = summary(before.rank, users, settings)
        metrics["before_without_reasoning"] = summary(before.rank_without_reasoning, users, settings)
        metrics["improvement"] = tests["before"]
    if control:
        metrics["control"] = {"metrics": summary(compared["control"], users, settings), "difference": tests["control"]}
    return metrics


def _paired_test(ours: np.ndarray, theirs: np.ndarray, users: np.ndarray, settings: Measure) -> tuple[Interval, float]:
    """Mean difference ours - theirs with its interval, and the p-value of a permutation test that swaps users' pairs.

    ours, theirs: NDCG@10, [n] or [r, n]. Under the null hypothesis a user's difference is as likely to be its negative.
    """
    difference = np.atleast_2d(ours).mean(0) - np.atleast_2d(theirs).mean(0)
    noise = _seed_noise([ours, theirs], settings.bootstrap, settings)
    result = _interval(difference, noise, users, settings, signed=True)
    totals = np.bincount(users, difference) / len(users)
    if not difference.any() or len(totals) < 2:
        return result, 1.0
    test = stats.permutation_test(
        (totals,),
        np.sum,
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(settings.seed),
        batch=max(1, BLOCK // len(totals)),
    )
    null = test.null_distribution
    noise = _seed_noise([ours, theirs], len(null), settings)
    if not noise.any():
        return result, float(test.pvalue)
    return result, float((1 + (np.abs(null + noise) >= abs(result["mean"])).sum()) / (1 + len(null)))


def _interval(
    values: np.ndarray, noise: np.ndarray, users: np.ndarray, settings: Measure, signed: bool = False
) -> Interval:
    """Mean of values [n], with the quantiles of the means of resampled users plus `noise`, one number a resample.

    Where all values are 0 (or 1) no resample differs. Then the interval is Wilson's, for none (or all) of the users;
    signed: values are differences, which may as well be below 0. One user gives the whole range.
    """
    mean, samples = float(values.mean()), np.bincount(users)
    if values.std() == 0 and abs(mean) in (0.0, 1.0):
        hits = round(abs(mean) * len(samples))
        wilson = stats.binomtest(hits, len(samples)).proportion_ci(settings.confidence, "wilson")
        low, high = (-wilson.high if signed and not mean else wilson.low), wilson.high
        return {"mean": mean, "low": low, "high": high} if mean >= 0 else {"mean": mean, "low": -high, "high": -low}
    if len(samples) < 2:  # nothing is known of other users
        return {"mean": mean, "low": -1.0 if signed else 0.0, "high": 1.0}
    resampled = stats.bootstrap(
        (np.bincount(users, values), samples),
        lambda total, count, axis: total.sum(axis) / count.sum(axis),
        n_resamples=settings.bootstrap,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(settings.seed),
        batch=max(1, BLOCK // len(samples)),
    ).bootstrap_distribution
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(resampled + noise, [tail, 1 - tail])
    return {"mean": mean, "low": float(low), "high": float(high)}


def _seed_noise(groups: Sequence[np.ndarray], count: int, settings: Measure) -> np.ndarray:
    """Random errors [count] of a mean, or of a difference of two means, due to the few seeds behind them.

    groups: a metric of each recommender, [n] without a seed or [r, n] of r runs. The runs' means are taken as normal
    with one variance, so the errors follow Student's t; zeros where no recommender has two runs.
    """
    means = [values.mean(1) for values in groups if values.ndim == 2]
    freedom = sum(len(mean) - 1 for mean in means)
    if freedom == 0:
        return np.zeros(count)
    variance = sum(((mean - mean.mean()) ** 2).sum() for mean in means) / freedom
    error = np.sqrt(variance * sum(1 / len(mean) for mean in means))
    return error * np.random.default_rng([settings.seed, 1]).standard_t(freedom, count)
