import math

import numpy as np
import pytest

from minirec.selection.signals import Signals, learnability, representativeness


def test_representativeness_is_one_along_the_mean_and_zero_against_it():
    found = representativeness(np.array([[2.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]))
    assert found.tolist() == [1.0, 1.0, 0.0, 0.5]


def test_learnability_peaks_at_mu_and_is_one_without_spread():
    found = learnability(np.array([0.1, 0.5, 0.9, 0.3]), mu=0.5, sigma=0.2)
    assert found[1] == 1
    assert found[0] == pytest.approx(0, abs=1e-12)
    assert found[2] == pytest.approx(found[0], abs=1e-12)
    assert learnability(np.full(3, 0.2), mu=0.5).tolist() == [1, 1, 1]
    assert learnability(np.full(3, 0.5), mu=0.5).tolist() == [1, 1, 1]


def test_learnability_equals_the_formula_by_hand():
    reward = [0.0, 0.2, 0.5, 1.0]
    for mu, sigma in ((0.5, None), (0.3, 0.2), (0.0, 2.0)):
        mean = sum(reward) / 4
        width = sigma or math.sqrt(sum((r - mean) ** 2 for r in reward) / 4)
        bell = [math.exp(-((r - mu) ** 2) / (2 * width**2)) for r in reward]
        expected = [(b - min(bell)) / (max(bell) - min(bell)) for b in bell]
        assert learnability(np.array(reward), mu, sigma).tolist() == pytest.approx(expected, abs=1e-12)


def test_mu_and_sigma_may_follow_the_rewards():
    reward = np.array([0.0, 0.1, 0.2, 0.3, 0.9])  # mean .3, quartiles .1, .2, .3
    assert learnability(reward, "mean").argmax() == 3
    assert learnability(reward, "mean").tolist() == learnability(reward, 0.3).tolist()
    assert learnability(reward, "q50").tolist() == pytest.approx(learnability(reward, 0.2).tolist(), abs=1e-12)
    assert learnability(reward, "q75").tolist() == pytest.approx(learnability(reward, 0.3).tolist(), abs=1e-12)
    assert learnability(reward, 0.5, "iqr").tolist() == pytest.approx(learnability(reward, 0.5, 0.2 / 1.349).tolist())
    assert learnability(np.array([0.1, 0.1, 0.1, 0.1, 0.9]), 0.5, "iqr").tolist() == [1] * 5  # no width


def test_representativeness_equals_the_formula_by_hand_and_zero_vectors_have_cosine_zero():
    directions = np.array([[3.0, 1.0], [1.0, 2.0], [0.0, 0.0], [-2.0, 1.0]])
    mean = np.array([0.5, 1.0])
    cosine = [d @ mean / (math.hypot(*d) * math.hypot(*mean)) if d.any() else 0.0 for d in directions]
    expected = [(c - min(cosine)) / (max(cosine) - min(cosine)) for c in cosine]
    assert representativeness(directions).tolist() == pytest.approx(expected, abs=1e-12)


def test_equal_directions_are_all_fully_representative():
    assert representativeness(np.ones((3, 2))).tolist() == [1, 1, 1]


def test_take_keeps_the_order_asked_for_and_what_is_not_there_stays_so():
    signals = Signals(np.array([7, 8, 9]), mean_reward=np.array([0.1, 0.2, 0.3]), embeddings=np.eye(3))
    taken = signals.take(np.array([2, 0]))
    assert len(taken) == 2
    assert taken.sample_id.tolist() == [9, 7]
    assert taken.mean_reward.tolist() == [0.3, 0.1]
    assert taken.embeddings.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert taken.hits is None
