import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from minirec import metrics
from minirec.references import rank


@pytest.mark.parametrize("k", [1, 5, 10])
def test_ndcg_equals_scikit_learn(k):
    for place in range(1, 13):
        relevance, scores = np.zeros((1, 12)), -np.arange(12.0)[None]
        relevance[0, place - 1] = 1
        assert metrics.ndcg(np.array([place]), k)[0] == pytest.approx(ndcg_score(relevance, scores, k=k))


def test_hit_counts_ranks_up_to_k():
    assert metrics.hit(np.array([1, 10, 11]), 10).tolist() == [1, 1, 0]


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        found = metrics.interval(generator.random(60), 400, 0.9, seed)
        covered += found["low"] <= 0.5 <= found["high"]
    assert 0.83 <= covered / 200 <= 0.96


def test_the_paired_test_sees_a_shift_and_nothing_in_noise():
    generator = np.random.default_rng(0)
    a = generator.random(100)
    assert metrics.paired_p(a + 0.05, a, 0) < 0.001
    assert metrics.paired_p(a, a, 0) == 1
    noise = [metrics.paired_p(generator.random(40), generator.random(40), s, 500) for s in range(40)]
    assert np.mean(np.array(noise) < 0.05) <= 0.15


def test_references_rank_like_a_full_sort():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 4, (50, 9)).astype(float)
    target = generator.integers(0, 9, 50)
    history = generator.integers(-1, 9, (50, 2))
    history[history == target[:, None]] = -1
    for row, found in enumerate(rank(scores, target, history)[0]):
        left = [v for v in range(9) if v not in history[row]]
        assert found == sorted(left, key=lambda v: (-scores[row, v], v)).index(target[row]) + 1
