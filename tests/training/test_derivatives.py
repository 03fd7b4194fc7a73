"""Gradient and Hessian-vector product by the hidden state, against autograd, differences and paper (METHOD 4.4)."""

import numpy as np
import pytest
import torch

from minirec.model.whitening import Whitening
from minirec.training.derivatives import (
    derivatives_and_error,
    gradient_and_hvp,
    sampled_candidates,
    whitening_jacobian,
)


def loss(x, items, target, tau, advantage, allowed):
    """The item loss in ratio form of one hidden state, straight from METHOD 4.4."""
    cosine = torch.nn.functional.normalize(x, dim=0) @ torch.nn.functional.normalize(items, dim=1).T
    log_pi = (cosine / tau).masked_fill(~allowed, -torch.inf).log_softmax(0)[target]
    return -advantage * (log_pi - log_pi.detach()).exp()


def by_autograd(x, *rest):
    gradient = torch.autograd.functional.jacobian(lambda v: loss(v, *rest), x)
    hessian = torch.autograd.functional.hessian(lambda v: loss(v, *rest), x)
    return gradient, hessian @ gradient


@pytest.fixture
def case():
    torch.manual_seed(0)
    n, m, d = 6, 20, 7
    exclude = torch.randint(0, m, (n, 4))
    exclude[:, 3] = -1
    target = torch.randint(0, m, (n,))
    exclude[0, 0] = target[0]  # a target is never masked
    return torch.randn(n, d).double(), torch.randn(m, d).double() * 3, target, exclude


def allowed(items, target, exclude, candidates=None):
    mask = torch.ones(len(items), dtype=torch.bool)
    if candidates is not None:
        mask[:] = False
        mask[candidates] = True
    mask[exclude[exclude >= 0]] = False
    mask[target] = True
    return mask


@pytest.mark.parametrize("with_candidates", [False, True])
def test_g_and_hv_equal_autograd_and_its_hessian(case, with_candidates):
    h, items, target, exclude = case
    advantage = torch.tensor([1.0, -0.5, 2.0, 0.0, 0.3, -1.2]).double()
    candidates = torch.randint(0, len(items), (len(h), 8)) if with_candidates else None
    if candidates is not None:
        candidates[1, 0] = target[1]  # the target may be drawn, too; and rows may be drawn twice
        candidates[2, 0] = candidates[2, 1]
    g, hv = gradient_and_hvp(
        h, items, target, temperature=0.3, advantage=advantage, exclude=exclude, candidates=candidates
    )
    for i in range(len(h)):
        mask = allowed(items, target[i], exclude[i], None if candidates is None else candidates[i])
        gradient, product = by_autograd(h[i], items, target[i], 0.3, advantage[i], mask)
        assert torch.allclose(g[i], gradient, atol=1e-12)
        assert torch.allclose(hv[i], product, atol=1e-11)


@pytest.mark.parametrize("with_candidates", [False, True])
def test_the_error_is_the_length_of_the_probabilities_minus_the_one_hot_target(case, with_candidates):
    h, items, target, exclude = case
    candidates = torch.randint(0, len(items), (len(h), 8)) if with_candidates else None
    *_, error = derivatives_and_error(h, items, target, 0.3, exclude=exclude, candidates=candidates)
    for i in range(len(h)):
        mask = allowed(items, target[i], exclude[i], None if candidates is None else candidates[i]).tolist()
        weights = []
        for item, inside in zip(items, mask, strict=True):
            cosine = (h[i] @ item / h[i].norm() / item.norm()).item()
            weights.append(np.exp(cosine / 0.3) if inside else 0.0)
        squares = [(w / sum(weights) - float(j == target[i])) ** 2 for j, w in enumerate(weights)]
        assert error[i].item() == pytest.approx(sum(squares) ** 0.5, rel=1e-9)


def test_the_error_of_two_items_is_the_closed_form_on_paper():
    # pi of the target is 1 / (1 + e), so both entries of p - onehot are 1 - pi long
    h, items = torch.tensor([[1.0, 0.0]]).double(), torch.eye(2).double()
    *_, error = derivatives_and_error(h, items, torch.tensor([1]), 1.0)
    assert error.item() == pytest.approx(2**0.5 * np.e / (1 + np.e))


def test_g_and_hv_equal_finite_differences(case):
    h, items, target, exclude = case
    x, eps = h[0], 1e-4
    mask = allowed(items, target[0], exclude[0])

    def log_pi(v):
        cosine = torch.nn.functional.normalize(v, dim=0) @ torch.nn.functional.normalize(items, dim=1).T
        return (cosine / 0.3).masked_fill(~mask, -torch.inf).log_softmax(0)[target[0]]

    def ratio(v):
        return -(log_pi(v) - start).exp()

    start = log_pi(x)
    steps = torch.eye(len(x)).double() * eps
    gradient = torch.stack([(ratio(x + s) - ratio(x - s)) / (2 * eps) for s in steps])
    g, hv = gradient_and_hvp(h[:1], items, target[:1], temperature=0.3, exclude=exclude[:1])
    assert torch.allclose(g[0], gradient, atol=1e-6)

    def slope(v):
        return torch.stack([(ratio(v + s) - ratio(v - s)) / (2 * eps) for s in steps])

    along = g[0] / g[0].norm()
    product = (slope(x + eps * along) - slope(x - eps * along)) / (2 * eps) * g[0].norm()
    assert torch.allclose(hv[0], product, atol=1e-4)


def test_g_of_two_items_is_the_closed_form_on_paper():
    # h = (1, 0), items e1 = (1, 0) and e2 = (0, 1), tau 1: pi(e2) = 1 / (1 + e), grad log pi(e2) = (0, 1 - pi(e2))
    h, items = torch.tensor([[1.0, 0.0]]).double(), torch.eye(2).double()
    g, _ = gradient_and_hvp(h, items, torch.tensor([1]), temperature=1.0)
    pi = 1 / (1 + np.e)
    assert torch.allclose(g, torch.tensor([[0.0, -(1 - pi)]]).double(), atol=1e-12)


def test_derivatives_pass_through_the_whitening_by_the_chain_rule(case):
    h, items, target, exclude = case
    torch.manual_seed(1)
    raw = torch.randn(50, 9).double()
    whiten = Whitening.fit(raw.numpy(), torch.randn(40, 9).numpy(), 7)
    whiten = Whitening({name: array.astype(np.float64) for name, array in whiten.arrays.items()})
    components, metric = whitening_jacobian(whiten)
    x = raw[: len(h)]
    g, hv = gradient_and_hvp(whiten.user(x), items, target, temperature=0.3, exclude=exclude, metric=metric)
    for i in range(len(h)):
        mask = allowed(items, target[i], exclude[i])

        def of_raw(v, i=i, mask=mask):
            return loss(whiten.user(v), items, target[i], 0.3, 1.0, mask)

        gradient = torch.autograd.functional.jacobian(of_raw, x[i])
        product = torch.autograd.functional.hessian(of_raw, x[i]) @ gradient
        assert torch.allclose(g[i] @ components.T, gradient, atol=1e-11)
        assert torch.allclose(hv[i] @ components.T, product, atol=1e-10)


def test_float32_keeps_its_digits_where_the_target_is_almost_certain():
    torch.manual_seed(2)
    items, target = torch.randn(300, 64), torch.arange(40)
    h = items[target] + 0.3 * torch.randn(40, 64)
    found = gradient_and_hvp(h, items, target, temperature=0.05)
    for i in range(40):
        x, mask = h[i].double(), torch.ones(300, dtype=torch.bool)
        for one, exact in zip(found, by_autograd(x, items.double(), target[i], 0.05, 1.0, mask), strict=True):
            assert (one[i] - exact).norm() <= 3e-5 * exact.norm()


def test_a_zero_hidden_state_has_zero_derivatives():
    g, hv = gradient_and_hvp(torch.zeros(1, 3), torch.eye(3), torch.tensor([0]), temperature=0.1)
    assert not g.any()
    assert not hv.any()


def test_chunks_do_not_change_the_derivatives(case, monkeypatch):
    h, items, target, exclude = case
    whole = gradient_and_hvp(h, items, target, temperature=0.3, exclude=exclude)
    monkeypatch.setattr("minirec.training.derivatives.CHUNK_SCORES", 1)
    parts = gradient_and_hvp(h, items, target, temperature=0.3, exclude=exclude)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(whole, parts, strict=True))


def test_the_candidates_of_a_sample_are_distinct_items_that_its_id_and_the_seed_determine():
    drawn = sampled_candidates(np.array([8, 3, 5]), 20, 7, seed=1)
    assert drawn.shape == (3, 7)
    assert all(len(set(row)) == 7 and set(row) <= set(range(20)) for row in drawn.tolist())
    assert torch.equal(sampled_candidates(np.array([5, 8]), 20, 7, seed=1), drawn[[2, 0]])
    assert not torch.equal(sampled_candidates(np.array([8, 3, 5]), 20, 7, seed=2), drawn)
    assert sampled_candidates(np.array([8]), 20, 19, seed=1).shape == (1, 19)
    assert [sampled_candidates(np.array([8]), 20, count, seed=1) for count in (None, 20, 21)] == [None] * 3
