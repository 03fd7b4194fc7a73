"""The two losses against a plain loop over samples, in float64 (METHOD 3)."""

import math

import pytest
import torch

from minirec.training import losses

LOW, HIGH = 0.2, 0.28


def plain_token_loss(log_p, old, real, advantage):
    """METHOD 3, one token at a time."""
    total = torch.zeros((), dtype=log_p.dtype)
    for i in range(log_p.shape[0]):
        for g in range(log_p.shape[1]):
            for t in range(log_p.shape[2]):
                if real[i, g, t]:
                    rho = torch.exp(log_p[i, g, t] - old[i, g, t])
                    a = advantage[i, g]
                    total = total - torch.min(rho * a, torch.clip(rho, 1 - LOW, 1 + HIGH) * a)
    return total


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    log_p = -torch.rand(3, 4, 5).double()
    return log_p, log_p + 0.6 * torch.randn(3, 4, 5).double(), torch.rand(3, 4, 5) < 0.7, torch.randn(3, 4).double()


def test_the_token_loss_and_its_gradient_equal_a_plain_loop(tokens):
    log_p, old, real, advantage = tokens
    ours, plain = (log_p.clone().requires_grad_() for _ in range(2))
    found = losses.token_loss(ours, old, real, advantage, LOW, HIGH)
    expected = plain_token_loss(plain, old, real, advantage)
    found.backward()
    expected.backward()
    assert torch.allclose(found, expected)
    assert torch.allclose(ours.grad, plain.grad)
    assert ours.grad.abs().sum() > 0.1  # the published code's broadcast gives none


def test_a_ratio_beyond_the_clip_has_no_gradient_in_the_direction_of_its_advantage():
    old = torch.zeros(1, 1, 2).double()
    log_p = torch.tensor([[[0.5, -0.5]]]).double().requires_grad_()
    losses.token_loss(log_p, old, torch.ones(1, 1, 2).bool(), torch.ones(1, 1).double(), LOW, HIGH).backward()
    assert log_p.grad[0, 0, 0] == 0  # already more likely than the clip allows
    assert log_p.grad[0, 0, 1] == pytest.approx(-torch.tensor(-0.5).exp().item(), rel=1e-6)


def test_each_completion_gets_its_own_advantage_and_nothing_else():
    log_p = torch.zeros(2, 2, 3).double().requires_grad_()
    advantage = torch.tensor([[1.0, -1.0], [0.0, 2.0]]).double()
    losses.token_loss(log_p, log_p.detach(), torch.ones(2, 2, 3).bool(), advantage, LOW, HIGH).backward()
    assert torch.equal(log_p.grad, -advantage[..., None].expand(2, 2, 3))


def test_tokens_of_another_engine_weigh_by_how_much_likelier_the_policy_finds_them_but_at_most_twice():
    old = torch.tensor([[[0.5, 0.3, 0.1], [0.9, 0.2, 0.0]]]).log()
    real = torch.tensor([[[True, True, True], [True, True, False]]])
    by_engine = [[[math.log(0.25), math.log(0.6), math.log(0.01)], [math.log(0.9), math.log(0.1)]]]
    weight = losses.engine_weight(old, real, by_engine)
    assert weight[real].tolist() == pytest.approx([2, 0.5, 2, 1, 2])
    assert losses.engine_weight(old, real, []).tolist() == torch.ones(1, 2, 3).tolist()


def test_the_best_completion_is_the_first_of_equals():
    advantage = torch.tensor([[0.0, 0.0, 0.0], [-1.0, 1.0, 1.0], [0.2, -0.1, -0.1]])
    assert losses.best_completions(advantage, 1).squeeze(1).tolist() == [0, 1, 0]
    assert losses.best_completions(advantage, 2)[1].tolist() == [1, 2]


@pytest.fixture
def recommending():
    torch.manual_seed(1)
    history = torch.tensor([[2, 5], [7, -1], [0, 3]])
    rows = torch.tensor([1, 4, 5, 7, 9])  # distinct targets and negatives, as catalogue rows
    column, masked = losses.column_and_mask(rows, torch.tensor([1, 4, 4]), history)
    assert column.tolist() == [0, 1, 1]
    assert masked.nonzero().tolist() == [[0, 2], [1, 3]]
    return torch.randn(3, 6).double(), torch.randn(5, 6).double(), column, masked


def test_the_item_loss_and_its_gradients_equal_a_plain_loop(recommending):
    h, items, column, masked = recommending
    advantage, tau = torch.tensor([1.2, -0.4, 0.7]).double(), 0.3
    old = losses.item_log_pi(h, items, column, masked, tau) + torch.tensor([0.1, 0.0, -0.4])  # the last is clipped
    ours = [x.clone().requires_grad_() for x in (h, items)]
    plain = [x.clone().requires_grad_() for x in (h, items)]
    found = losses.item_loss(losses.item_log_pi(*ours, column, masked, tau), old, advantage, LOW, HIGH)
    expected = torch.zeros(()).double()
    for i in range(3):
        scores = []
        for v in range(5):
            cosine = torch.dot(plain[0][i], plain[1][v]) / (plain[0][i].norm() * plain[1][v].norm())
            scores.append(cosine / tau)
        kept = [v for v in range(5) if not masked[i, v] or v == column[i]]
        pi = torch.exp(scores[column[i]]) / sum(torch.exp(scores[v]) for v in kept)
        rho = pi / old[i].exp()
        expected = expected - torch.min(rho * advantage[i], torch.clip(rho, 1 - LOW, 1 + HIGH) * advantage[i])
    found.backward()
    expected.backward()
    assert torch.allclose(found, expected)
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a.grad, b.grad)
        assert a.grad.abs().sum() > 0.1


def test_a_target_in_the_history_is_not_masked(recommending):
    h, items, column, masked = recommending
    masked = masked.clone()
    masked[0, column[0]] = True
    assert torch.isfinite(losses.item_log_pi(h, items, column, masked, 0.3)).all()


def test_batch_items_hold_every_target_once_and_negatives_beside_them():
    target = torch.tensor([7, 3, 7, 3, 1])
    rows = losses.batch_items(target, 20, 6, torch.Generator().manual_seed(0)).tolist()
    assert rows[:3] == [1, 3, 7]
    assert len(set(rows)) == len(rows) == 9
    assert losses.batch_items(target, 4 + 4, 99, torch.Generator()).unique().tolist() == list(range(8))
    assert losses.batch_items(target, 20, 0, torch.Generator()).tolist() == [1, 3, 7]
