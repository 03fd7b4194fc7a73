"""Advantages within a group and the scores of several completions of several samples, by hand (METHOD 3)."""

import math

import numpy as np
import pytest
import torch

from minirec.data.splits import Split
from minirec.experiment import sections
from minirec.model.whitening import Whitening
from minirec.training import losses, rewards


def test_the_advantages_of_a_single_group_are_standardised_in_any_order():
    for group in ([0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [1.0, 2.0, 0.0]):
        found = rewards.advantages(torch.tensor([group]).double())
        assert found[0].tolist() == pytest.approx([reward - 1 for reward in group], abs=1e-6)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_equal_rewards_have_exactly_no_advantage_although_their_mean_is_rounded(kind):
    values = torch.linspace(0.01, 0.99, 99, dtype=kind)
    for size in (2, 3, 5, 7):
        assert not rewards.advantages(values[:, None].repeat(1, size)).any()
    rounded = values[:, None].repeat(1, 7)
    assert (rounded.mean(1) != values).any()  # so it is not by chance


def test_a_spread_as_small_as_the_constant_beside_it_gives_the_formula():
    found = rewards.advantages(torch.tensor([[0.0, 2e-8]]).double())
    expected = 1e-8 / (math.sqrt(2) * 1e-8 + 1e-8)
    assert found[0].tolist() == pytest.approx([-expected, expected])


@pytest.mark.parametrize("at_a_time", [2**25, 2 * 2 * 9, 1])
def test_every_completion_is_scored_against_the_target_and_history_of_its_own_sample(monkeypatch, at_a_time):
    monkeypatch.setattr(rewards, "SCORES", at_a_time)
    generator = np.random.default_rng(0)
    hidden, items = generator.normal(size=(3, 2, 4)), generator.normal(size=(9, 4))
    target, history = np.array([2, 5, 8]), np.array([[0, 1], [3, -1], [8, 4]])
    split = Split(np.arange(3), target, history, [""] * 3)
    reward = sections.Reward(beta=0.3, cutoff=4)
    tensors = torch.from_numpy(hidden), torch.from_numpy(items)
    found = rewards.score_completions(*tensors, split, Whitening.identity(), 0.5, reward)
    for i in range(3):
        kept = [v for v in range(9) if v == target[i] or v not in history[i]]
        for g in range(2):
            h = hidden[i, g]
            score = {v: h @ items[v] / (np.linalg.norm(h) * np.linalg.norm(items[v])) / 0.5 for v in kept}
            rank = 1 + sum(score[v] > score[target[i]] for v in kept)
            pi = math.exp(score[target[i]]) / sum(math.exp(s) for s in score.values())
            ndcg = 1 / math.log2(1 + rank) if rank <= 4 else 0.0
            assert found["rank"][i, g] == rank
            assert found["hit"][i, g] == (rank <= 4)
            assert found["pi"][i, g].item() == pytest.approx(pi)
            assert found["reward"][i, g].item() == pytest.approx(0.7 * ndcg + 0.3 * pi)
    assert torch.equal(found["advantage"], rewards.advantages(found["reward"]))
    none = rewards.score_completions(tensors[0][:0], tensors[1], split.take([]), Whitening.identity(), 0.5, reward)
    assert {name: values.shape for name, values in none.items()} == dict.fromkeys(found, (0, 2))


@pytest.mark.parametrize("extra", [1, 2])
def test_a_batch_has_as_many_further_items_as_asked_for(extra):
    rows = losses.batch_items(torch.tensor([4, 2]), 9, extra, torch.Generator().manual_seed(0)).tolist()
    assert rows[:2] == [2, 4]
    assert len(set(rows)) == 2 + extra
