"""Intervals and tests against simulations in which the truth is known, scipy, and pencil and paper."""

import numpy as np
import pytest
from scipy import stats

from minirec import evaluation
from minirec.evaluation import significance
from minirec.experiment.sections import Measure

ALONE = Measure(bootstrap=400, confidence=0.9)


def simulated(seed, runs=3, users=40, user_effect=0.1, seed_effect=0.0, noise=0.1, mean=0.3):
    """Values [r, n] around a known mean, of users with 1 to 20 samples each, and the users [n]."""
    generator = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), generator.integers(1, 21, users))
    common = generator.normal(0, user_effect, users)[user]
    of_run = generator.normal(0, seed_effect, (runs, 1))
    return mean + common + of_run + generator.normal(0, noise, (runs, len(user))), user


@pytest.mark.parametrize(
    "effects",
    [
        {"user_effect": 0.1},  # samples of a user are alike
        {"user_effect": 0.0},
        {"user_effect": 0.1, "seed_effect": 0.05},  # both count
        {"user_effect": 0.0, "noise": 0.01, "seed_effect": 0.05},  # seeds alone
        {"user_effect": 0.1, "runs": 1},
        {"user_effect": 0.05, "seed_effect": 0.05, "runs": 5},
    ],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(effects):
    covered = 0
    for seed in range(300):
        values, user = simulated(seed, **effects)
        found = significance.interval(values, user, ALONE.model_copy(update={"seed": seed}))
        covered += found["low"] <= 0.3 <= found["high"]
    assert 0.85 <= covered / 300 <= 0.99  # .9 expected, standard error .017; wider where seeds differ by chance alone


def test_an_interval_that_takes_samples_or_seeds_for_independent_would_not():
    samples_alone = seeds_ignored = 0
    for seed in range(200):
        values, user = simulated(seed)
        found = significance.interval(values, np.arange(len(user)), ALONE)
        samples_alone += found["low"] <= 0.3 <= found["high"]
        values, user = simulated(seed, seed_effect=0.05)
        found = significance.interval(values.mean(0), user, ALONE)
        seeds_ignored += found["low"] <= 0.3 <= found["high"]
    assert max(samples_alone, seeds_ignored) / 200 < 0.75


@pytest.mark.parametrize(("runs", "seed_effect"), [(1, 0.0), (3, 0.0), (3, 0.05), (5, 0.05)])
def test_the_paired_test_is_significant_by_chance_as_often_as_it_says(runs, seed_effect):
    p = []
    for seed in range(200):
        ours, user = simulated(seed, runs, seed_effect=seed_effect)
        theirs = ours.mean(0) - ours + np.random.default_rng(seed).normal(0.3, 0.1, ours.shape)
        theirs = theirs + np.random.default_rng([seed, 1]).normal(0, seed_effect, (runs, 1))
        theirs = theirs + np.random.default_rng([seed, 2]).normal(0, 0.1, user.max() + 1)[user]
        p.append(significance._paired_test(ours, theirs, user, ALONE)[1])
    assert np.mean(np.array(p) < 0.1) <= 0.155  # .1 expected; three standard errors are .064


def test_a_test_that_takes_samples_or_seeds_for_independent_would_find_too_much():
    found = []
    for seed in range(100):
        ours, user = simulated(seed, 3, seed_effect=0.05)
        theirs = 0.3 + np.random.default_rng(seed).normal(0, 0.1, ours.shape[1])
        found.append(significance._paired_test(ours.mean(0), theirs, np.arange(len(user)), ALONE)[1] < 0.1)
    assert np.mean(found) > 0.3


def test_with_one_sample_a_user_and_one_run_it_is_scipy_s_permutation_test_and_bootstrap():
    generator = np.random.default_rng(1)
    ours, theirs = generator.random(50), generator.random(50)
    found, p = significance._paired_test(ours, theirs, np.arange(50), ALONE)
    test = stats.permutation_test((ours - theirs,), np.mean, permutation_type="samples", rng=np.random.default_rng(9))
    assert p == pytest.approx(test.pvalue, abs=0.015)
    ends = stats.bootstrap((ours - theirs,), np.mean, confidence_level=0.9, method="percentile", rng=3)
    assert found["mean"] == pytest.approx((ours - theirs).mean())
    assert found["low"] == pytest.approx(ends.confidence_interval.low, abs=0.02)
    assert found["high"] == pytest.approx(ends.confidence_interval.high, abs=0.02)


def test_where_the_seeds_are_all_that_differs_the_interval_is_student_s():
    means = np.array([0.2, 0.25, 0.33])
    values = np.repeat(means[:, None], 500, 1)
    found = significance.interval(values, np.arange(500) // 5, Measure(bootstrap=200_000))
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert found["low"] == pytest.approx(low, abs=0.01)
    assert found["high"] == pytest.approx(high, abs=0.01)


def test_a_difference_pools_the_seeds_of_both_and_a_baseline_has_none():
    ours, theirs = np.array([0.2, 0.3]), np.array([0.5, 0.6, 0.55])
    noise = significance._seed_noise(
        [ours[:, None] + np.zeros((2, 9)), theirs[:, None] + np.zeros((3, 9))], 400_000, ALONE
    )
    pooled = stats.ttest_ind(ours, theirs)  # one variance for both
    error = (ours.mean() - theirs.mean()) / pooled.statistic
    assert np.quantile(noise, 0.9) == pytest.approx(error * stats.t.ppf(0.9, 3), rel=0.02)
    alone = significance._seed_noise([ours[:, None] + np.zeros((2, 9)), np.zeros(9)], 400_000, ALONE)
    assert np.quantile(alone, 0.9) == pytest.approx(stats.sem(ours) * stats.t.ppf(0.9, 1), rel=0.02)
    assert not significance._seed_noise([np.zeros((1, 9)), np.zeros(9)], 5, ALONE).any()


def test_without_a_single_hit_the_interval_is_wilson_s_for_none_of_the_users():
    users = np.arange(300) // 3
    found = significance.summary(np.full(300, 999), users, Measure())["hr@10"]
    z2 = stats.norm.ppf(0.975) ** 2
    assert found == {"mean": 0.0, "low": 0.0, "high": pytest.approx(z2 / (100 + z2))}
    always = significance.summary(np.ones((2, 300), int), users, Measure())["hr@10"]
    assert always == {"mean": 1.0, "low": pytest.approx(100 / (100 + z2)), "high": 1.0}
    tests = significance.paired_tests({"other": np.full(300, 999)}, np.full((2, 300), 999), users, Measure())
    assert tests["other"]["low"] == -tests["other"]["high"] == pytest.approx(-z2 / (100 + z2))
    assert tests["other"]["p"] == 1
    for ours, theirs, sign in ((1, 999, 1), (999, 1, -1)):  # every sample is won, or lost
        ranks = np.full(300, ours), np.full(300, theirs)
        test = significance.paired_tests({"other": ranks[1]}, ranks[0], users, Measure())["other"]
        ends = sorted([sign * 100 / (100 + z2), sign * 1.0])
        assert [test["low"], test["high"]] == pytest.approx(ends)


def test_a_p_of_exactly_one_minus_the_confidence_is_not_significant(monkeypatch):
    monkeypatch.setattr(significance, "_paired_test", lambda *_: ({"mean": 0.1, "low": 0.0, "high": 0.2}, 0.05))
    ranks = np.ones(4, int)
    test = significance.paired_tests({"other": ranks}, ranks, np.arange(4), Measure())["other"]
    assert (test["p_holm"], test["significant"]) == (0.05, False)


def test_the_p_value_counts_the_ways_to_swap_the_users_pairs():
    def p(ours, theirs):
        return significance._paired_test(ours, theirs, np.arange(ours.shape[-1]), ALONE)[1]

    assert p(np.array([0.3, 0.5]), np.zeros(2)) == 0.5  # 2 of the 4 ways are as far from 0
    assert p(np.array([0.3, 0.5, 0.4]), np.zeros(3)) == 0.25
    better = np.linspace(0.1, 0.2, 40)  # none of the 9,999 ways that are tried is as good
    assert p(better, np.zeros(40)) == pytest.approx(2 / 10_000)  # two-sided
    seeds = better + np.array([[0.0], [1e-9]])  # two runs that hardly differ
    assert p(seeds, np.zeros(40)) == pytest.approx(1 / 10_000)


def test_one_user_says_nothing_of_others():
    values, user = np.array([0.2, 0.6]), np.zeros(2, int)
    assert significance.interval(values, user, ALONE) == {"mean": pytest.approx(0.4), "low": 0.0, "high": 1.0}
    found, p = significance._paired_test(values, np.zeros(2), user, ALONE)
    assert found == {"mean": pytest.approx(0.4), "low": -1.0, "high": 1.0}
    assert p == 1


def test_equal_values_between_nothing_and_all_have_an_interval_without_width():
    assert significance.interval(np.full(6, 0.5), np.arange(6), ALONE) == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_differences_that_cancel_are_not_taken_for_none():
    found, p = significance._paired_test(np.array([0.5, 0.0]), np.array([0.0, 0.5]), np.arange(2), ALONE)
    assert found == {"mean": 0.0, "low": -0.5, "high": 0.5}  # of the resamples a quarter each are the ends
    assert p == 1


def test_a_p_value_as_large_as_the_limit_is_not_significant():
    rank, others = np.ones(2, int), {"other": np.full(2, 2)}
    halves = significance.paired_tests(others, rank, np.arange(2), ALONE.model_copy(update={"confidence": 0.5}))
    assert halves["other"]["p_holm"] == 0.5
    assert not halves["other"]["significant"]


def test_holm_gives_the_values_of_pencil_and_paper():
    assert significance.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # 3 x .01, 2 x .03, 1 x .04
    assert significance.holm([0.6, 0.7]) == [1.0, 1.0]
    assert significance.holm([]) == []


def test_significance_goes_by_the_corrected_p():
    generator = np.random.default_rng(5)
    users, rank = np.arange(60), generator.integers(1, 8, 60)
    others = {f"o{i}": np.where(generator.random(60) < 0.12, rank + 3, rank) for i in range(8)}
    found = significance.paired_tests(others, rank, users, Measure())
    corrected = significance.holm([test["p"] for test in found.values()])
    for test, p in zip(found.values(), corrected, strict=True):
        assert test["p_holm"] == p
        assert test["significant"] == (p < 0.05)
    assert any(test["p"] < 0.05 <= test["p_holm"] for test in found.values())


def test_a_policy_s_tests_are_one_family_the_policy_before_rl_among_them(monkeypatch):
    families = []
    real = significance.holm
    monkeypatch.setattr(significance, "holm", lambda p: families.append(len(p)) or real(p))
    ranks = evaluation.rank_tables.PolicyRanks(np.arange(6), np.arange(1, 7), np.ones((6, 1), int), np.arange(1, 7))
    baselines = {"one": ranks, "other": ranks}
    found = significance.measure([ranks], ranks, baselines, np.arange(6), Measure())
    assert families == [3]
    assert set(found["paired_tests"]) == {"one", "other"}
    assert found["improvement"]["p"] == 1


@pytest.mark.parametrize("resamples", [25, 100, 1000])
def test_the_ends_of_the_interval_vary_over_seeds_as_quantiles_of_so_many_resamples_do(resamples):
    values = np.random.default_rng(0).normal(size=200)
    error, users = values.std() / np.sqrt(200), np.arange(200)
    settings = Measure().model_copy(update={"bootstrap": resamples, "confidence": 0.5})
    ends = [
        significance.interval(values, users, settings.model_copy(update={"seed": seed}))["low"] / error
        for seed in range(150)
    ]
    expected = np.sqrt(0.25 * 0.75 / resamples) / stats.norm.pdf(stats.norm.ppf(0.25))
    assert np.std(ends) == pytest.approx(expected, rel=0.25)


def test_a_summary_takes_its_cut_offs_from_the_settings():
    rank, users = np.random.default_rng(0).integers(1, 20, 50), np.arange(50)
    settings = Measure(cutoffs=[10, 3])
    found = significance.summary(rank, users, settings)
    assert list(found) == ["hr@10", "ndcg@10", "hr@3", "ndcg@3"]
    assert found["ndcg@3"] == significance.interval(evaluation.ndcg(rank, 3), users, settings)
    assert found["hr@3"] == significance.interval(evaluation.hit(rank, 3), users, settings)
