"""Influence of a sample on the loss of all: against the whole Hessian, and against training without the sample."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn.functional import cross_entropy

from minirec.errors import InputError
from minirec.training import influence as module
from minirec.training.influence import influence

N, M, D, DAMPING = 400, 7, 3, 0.2


@pytest.fixture
def case():
    generator = np.random.default_rng(0)
    return generator.normal(size=(N, D)), generator.normal(size=(M, D)), generator.integers(0, M, N)


def losses(states, items, target):
    """A function from the flat matrix A to the loss of every sample [n]."""
    states, items, target = (torch.from_numpy(array) for array in (states, items, target))
    return lambda flat: cross_entropy(states @ flat.reshape(D, D).T @ items.T, target, reduction="none")


def test_influence_is_the_gradient_times_the_inverse_hessian_times_the_mean_gradient(case):
    of = losses(*case)
    identity = torch.eye(D, dtype=torch.float64).flatten()
    hessian = torch.autograd.functional.hessian(lambda flat: of(flat).mean(), identity)
    gradients = torch.autograd.functional.jacobian(of, identity)
    inverse = torch.linalg.inv(hessian + DAMPING * torch.eye(D * D))
    assert np.allclose(influence(*case, DAMPING), (gradients @ inverse @ gradients.mean(0)).numpy(), atol=1e-6)


def test_influence_is_n_times_the_rise_of_the_loss_when_the_sample_is_left_out_of_the_training(case):
    of = losses(*case)
    identity = torch.eye(D, dtype=torch.float64).flatten()
    slope = torch.autograd.functional.jacobian(lambda flat: of(flat).mean(), identity)
    centre = identity + slope / DAMPING  # of the penalty, so that the identity is the trained matrix

    def trained_without(sample):
        """The mean loss of all samples after training without one, by the same penalty and weights 1 / n."""
        kept = torch.arange(N) != sample

        def objective(flat):
            flat = torch.tensor(flat, requires_grad=True)
            value = of(flat)[kept].sum() / N + DAMPING / 2 * (flat - centre).square().sum()
            value.backward()
            return value.item(), flat.grad.numpy()

        found = minimize(objective, identity.numpy(), jac=True, method="BFGS", options={"gtol": 1e-9})
        return of(torch.from_numpy(found.x)).mean().item()

    whole = trained_without(-1)
    assert whole == pytest.approx(of(identity).mean().item(), abs=1e-9)
    rise = np.array([N * (trained_without(sample) - whole) for sample in range(0, N, 10)])
    found = influence(*case, DAMPING)[::10]
    assert np.corrcoef(found, rise)[0, 1] > 0.99
    assert np.polyfit(found, rise, 1)[0] == pytest.approx(1, abs=0.1)


def test_memory_does_not_decide_the_result(case, monkeypatch):
    whole = influence(*case, DAMPING)
    monkeypatch.setattr(module, "SCORES", 3 * M)
    assert np.allclose(influence(*case, DAMPING), whole, atol=1e-9)


def test_more_damping_means_less_influence(case):
    weak, strong = (np.abs(influence(*case, damping)).mean() for damping in (1.0, 100.0))
    assert strong < weak / 50


def test_influences_that_do_not_converge_are_refused_and_more_damping_is_enough():
    generator, widths = np.random.default_rng(0), 10.0 ** np.linspace(-1, 1, 8)
    states, items = generator.normal(size=(30, 8)) * widths, generator.normal(size=(40, 8)) * widths
    target = generator.integers(0, 40, 30)
    with pytest.raises(InputError, match=r"did not converge; raise influence\.damping"):
        influence(states, items, target, 1e-12)
    assert np.isfinite(influence(states, items, target, 1.0)).all()
