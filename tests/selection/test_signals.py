import numpy as np
import pytest

from minirec.selection.signals import learnability, representativeness


def test_representativeness_is_one_along_the_mean_and_zero_against_it():
    found = representativeness(np.array([[2.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]))
    assert found.tolist() == [1.0, 1.0, 0.0, 0.5]


def test_learnability_peaks_at_mu_and_is_one_without_spread():
    found = learnability(np.array([0.1, 0.5, 0.9, 0.3]), mu=0.5, sigma=0.2)
    assert found[1] == 1
    assert found[0] == pytest.approx(0, abs=1e-12)
    assert found[2] == pytest.approx(found[0], abs=1e-12)
    assert learnability(np.full(3, 0.2), mu=0.5).tolist() == [1, 1, 1]
