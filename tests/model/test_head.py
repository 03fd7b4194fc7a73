"""The trained map after the whitening."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from minirec.model.head import Head
from minirec.model.whitening import Whitening
from minirec.training import losses

RNG = np.random.default_rng(0)
USERS, GOODS = RNG.normal(size=(40, 6)), RNG.normal(size=(50, 6))


@pytest.fixture(params=[None, 4])
def whitening(request) -> Whitening:
    return Whitening.identity() if request.param is None else Whitening.fit(USERS, GOODS, request.param)


def moved(head: Head) -> Head:
    for number, weight in enumerate(head.parameters()):
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(number))
    return head


@pytest.mark.parametrize("kind", ["none", "shared", "separate"])
def test_a_fresh_head_changes_nothing(whitening, kind):
    x = torch.from_numpy(USERS).float()
    head = Head(whitening, 6, kind)
    assert torch.equal(head.user(x), whitening.user(x))
    assert torch.equal(head.item(x), whitening.item(x))


@pytest.mark.parametrize("kind", ["none", "shared", "separate"])
def test_the_folded_whitening_is_the_whitening_and_then_the_map(whitening, kind):
    head = moved(Head(whitening, 6, kind))
    x = torch.from_numpy(USERS).float()
    for side, name in (("user", "user"), ("item", "item" if kind == "separate" else "user")):
        weight = dict(head.maps).get("both" if kind == "shared" else name)
        expected = getattr(whitening, side)(x).detach().numpy()
        expected = expected if weight is None else expected @ weight.detach().numpy()
        assert np.allclose(getattr(head.merged_whitening(), side)(x), expected, atol=1e-4)
        assert np.allclose(getattr(head, side)(x).detach(), expected, atol=1e-5)


def test_the_gradient_of_the_item_loss_reaches_the_maps_as_a_plain_loop_says():
    head = moved(Head(Whitening.identity(), 6, "separate").double())
    h, items = torch.from_numpy(USERS[:3]), torch.from_numpy(GOODS[:5])
    column, advantage = torch.tensor([4, 0, 2]), torch.tensor([1.5, 0.7, -0.2], dtype=torch.float64)
    masked = torch.zeros(3, 5, dtype=torch.bool)
    masked[0, 1] = masked[2, 3] = True
    losses.item_loss(head.user(h), head.item(items), column, masked, advantage, 0.3, 0.2, 0.28).backward()
    user, item = (head.maps[side].detach().clone().requires_grad_() for side in ("user", "item"))
    for i in range(3):
        u = normalize(h[i] @ user, dim=0)
        scores = torch.stack([u @ normalize(v @ item, dim=0) / 0.3 for v in items])
        open_ = [j for j in range(5) if not masked[i, j]]
        log_pi = scores[column[i]] - scores[open_].logsumexp(0)
        (-advantage[i] * log_pi).backward()  # the gradient of -A rho at rho = 1
    assert torch.allclose(head.maps["user"].grad, user.grad, atol=1e-12)
    assert torch.allclose(head.maps["item"].grad, item.grad, atol=1e-12)
