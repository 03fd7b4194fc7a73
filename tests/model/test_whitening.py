"""The whitening of both sides, and the trained map after it."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from minirec.errors import InputError
from minirec.model.whitening import COMPONENTS, Head, Whitening
from minirec.storage.artefact import Provenance
from minirec.training import losses


@pytest.fixture
def sides() -> tuple[np.ndarray, np.ndarray]:
    """Users and items that differ along the same, unequally long axes, each side somewhere else."""
    rng = np.random.default_rng(0)
    scale = np.array([9.0, 3.0, 1.0, 0.3, 0.1])
    return rng.normal(size=(60, 5)) * scale + 7, rng.normal(size=(500, 5)) * scale - 4


def test_both_sides_are_centred_and_have_unit_covariance_together(sides):
    user, item = sides
    whiten = Whitening.fit(user, item, 4)
    x, y = (side(torch.from_numpy(v)).numpy() for side, v in ((whiten.user, user), (whiten.item, item)))
    assert np.allclose(x.mean(0), 0, atol=1e-5)
    assert np.allclose(y.mean(0), 0, atol=1e-5)
    assert np.allclose((x.T @ x / len(x) + y.T @ y / len(y)) / 2, np.eye(4), atol=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_power_below_one_leaves_the_same_share_of_every_spread(sides, power):
    user, item = sides
    whiten = Whitening.fit(user, item, 4, power)
    centred = [v - v.mean(0) for v in (user, item)]
    covariance = sum(v.T @ v / len(v) for v in centred) / 2
    spread = np.sqrt(np.linalg.eigvalsh(covariance)[::-1][:4])
    x, y = (side(torch.from_numpy(v)).numpy() for side, v in ((whiten.user, user), (whiten.item, item)))
    assert np.allclose((x.T @ x / len(x) + y.T @ y / len(y)) / 2, np.diag(spread ** (2 - 2 * power)), atol=1e-3)


def test_an_item_is_nearest_to_the_user_state_that_deviates_as_it_does(sides):
    user, item = sides
    whiten = Whitening.fit(user, item, 4)
    deviating = torch.from_numpy(item - item.mean(0) + user.mean(0))  # the items' states on the user side
    cosine = normalize(whiten.user(deviating), dim=1) @ normalize(whiten.item(torch.from_numpy(item)), dim=1).T
    assert (cosine.argmax(1) == torch.arange(len(item))).all()


def test_more_dimensions_than_the_states_span_are_refused(sides):
    user, item = sides
    flat = np.repeat(item[:, :1], 5, axis=1)
    with pytest.raises(InputError, match=r"whiten_dim is 2, but users and items span only 1 dimensions"):
        Whitening.fit(np.repeat(user[:, :1], 5, axis=1), flat, 2)


def test_no_whitening_changes_nothing_and_is_read_as_it_was_written(tmp_path, sides):
    x = torch.from_numpy(sides[0])
    Whitening.identity().write(tmp_path / "none.safetensors", Provenance("embed"))
    assert torch.equal(Whitening.read(tmp_path / "none.safetensors").user(x), x)
    fitted = Whitening.fit(*sides, 3)
    fitted.write(tmp_path / "some.safetensors", Provenance("embed"))
    assert torch.equal(Whitening.read(tmp_path / "some.safetensors").user(x), fitted.user(x))


def test_a_whitening_beside_an_adapter_that_has_another_is_refused(tmp_path, sides):
    base = Whitening.fit(*sides, 3)
    base.write(tmp_path / "base.safetensors", Provenance("embed"))
    (tmp_path / "adapter").mkdir()
    assert Whitening.read(tmp_path / "base.safetensors", tmp_path / "adapter").arrays.keys() == base.arrays.keys()
    trained = base.compose(np.eye(3, dtype=np.float32) * 2, np.eye(3, dtype=np.float32))
    trained.write(tmp_path / "adapter" / "whitening.safetensors", Provenance("train"))
    with pytest.raises(
        InputError, match=r"base\.safetensors is not the whitening of .*adapter; take .*adapter/whitening"
    ):
        Whitening.read(tmp_path / "base.safetensors", tmp_path / "adapter")
    own = tmp_path / "adapter" / "whitening.safetensors"
    assert np.array_equal(
        Whitening.read(own, tmp_path / "adapter").arrays[COMPONENTS[0]], trained.arrays[COMPONENTS[0]]
    )


RNG = np.random.default_rng(0)
USERS, ITEMS = RNG.normal(size=(40, 6)), RNG.normal(size=(50, 6))


@pytest.fixture(params=[None, 4])
def whitening(request) -> Whitening:
    return Whitening.identity() if request.param is None else Whitening.fit(USERS, ITEMS, request.param)


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
def test_the_merged_whitening_is_the_whitening_and_then_the_map(whitening, kind):
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
    h, items = torch.from_numpy(USERS[:3]), torch.from_numpy(ITEMS[:5])
    column, advantage = torch.tensor([4, 0, 2]), torch.tensor([1.5, 0.7, -0.2], dtype=torch.float64)
    masked = torch.zeros(3, 5, dtype=torch.bool)
    masked[0, 1] = masked[2, 3] = True
    log_pi = losses.item_log_pi(head.user(h), head.item(items), column, masked, 0.3)
    losses.item_loss(log_pi, log_pi.detach(), advantage, 0.2, 0.28).backward()
    user, item = (head.maps[side].detach().clone().requires_grad_() for side in ("user", "item"))
    for i in range(3):
        u = normalize(h[i] @ user, dim=0)
        scores = torch.stack([u @ normalize(v @ item, dim=0) / 0.3 for v in items])
        open_ = [j for j in range(5) if not masked[i, j]]
        log_pi = scores[column[i]] - scores[open_].logsumexp(0)
        (-advantage[i] * log_pi).backward()  # the gradient of -A rho at rho = 1
    assert torch.allclose(head.maps["user"].grad, user.grad, atol=1e-12)
    assert torch.allclose(head.maps["item"].grad, item.grad, atol=1e-12)
