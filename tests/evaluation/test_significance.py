import numpy as np
import pytest
from scipy.stats import norm

from minirec import evaluation
from minirec.evaluation import significance


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        found = significance.interval(generator.random(60), 400, 0.9, seed)
        covered += found["low"] <= 0.5 <= found["high"]
    assert 0.83 <= covered / 200 <= 0.96


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_the_interval_of_many_samples_is_as_wide_as_the_normal_one(confidence):
    values = np.random.default_rng(0).exponential(size=2000)
    found = significance.interval(values, 2000, confidence, 0)
    error, width = values.std() / np.sqrt(2000), norm.ppf((1 + confidence) / 2)
    assert found["mean"] == values.mean()
    assert (found["mean"] - found["low"]) / error == pytest.approx(width, abs=0.15)
    assert (found["high"] - found["mean"]) / error == pytest.approx(width, abs=0.15)


@pytest.mark.parametrize("resamples", [25, 100, 1000])
def test_the_ends_of_the_interval_vary_over_seeds_as_quantiles_of_so_many_resamples_do(resamples):
    values = np.random.default_rng(0).normal(size=200)
    error = values.std() / np.sqrt(200)
    low = [significance.interval(values, resamples, 0.5, seed)["low"] / error for seed in range(150)]
    expected = np.sqrt(0.25 * 0.75 / resamples) / norm.pdf(norm.ppf(0.25))
    assert np.std(low) == pytest.approx(expected, rel=0.25)


def test_a_summary_takes_its_resamples_confidence_and_seed_from_the_settings(defaults):
    rank = np.random.default_rng(0).integers(1, 20, 50)
    settings = defaults.measure.model_copy(update={"bootstrap": 7, "confidence": 0.6, "seed": 3})
    found = significance.summary(rank, settings)
    assert found["ndcg@10"] == significance.interval(evaluation.ndcg(rank, 10), 7, 0.6, 3)
    assert found["hr@5"] == significance.interval(evaluation.hit(rank, 5), 7, 0.6, 3)


def test_the_paired_test_sees_a_shift_and_nothing_in_noise():
    generator = np.random.default_rng(0)
    a = generator.random(100)
    assert significance.paired_p(a + 0.05, a, 0) < 0.001
    assert significance.paired_p(a, a, 0) == 1
    noise = [significance.paired_p(generator.random(40), generator.random(40), s, 500) for s in range(40)]
    assert np.mean(np.array(noise) < 0.05) <= 0.15
