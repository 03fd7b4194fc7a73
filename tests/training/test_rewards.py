"""Rewards and advantages of completions, by hand (METHOD 3)."""

import math

import numpy as np
import pytest
import torch

from minirec.data.splits import Split
from minirec.experiment import sections
from minirec.model.whitening import Whitening
from minirec.training import rewards


@pytest.mark.parametrize(("rank", "hit"), [(1000, True), (1001, False)])
def test_a_target_at_the_cutoff_is_a_hit_and_one_beyond_it_earns_only_its_probability(rank, hit):
    angle = torch.linspace(0, 3, 1100).double()
    items = torch.stack([angle.cos(), angle.sin()], 1)  # a lower row is nearer to the user
    sample = Split(np.array([0]), np.array([rank - 1]), np.array([[-1]]), [""])
    user = torch.tensor([[[1.0, 0.0]]]).double()
    reward = sections.Reward(beta=0.05, cutoff=1000)
    found = rewards.score_completions(user, items, sample, Whitening.identity(), 0.5, reward)
    assert (found["rank"].item(), found["hit"].item(), found["ndcg"].item() > 0) == (rank, hit, hit)
    ndcg = 1 / math.log2(1001) if hit else 0
    assert found["reward"].item() == pytest.approx(0.95 * ndcg + 0.05 * found["pi"].item())


@pytest.mark.parametrize(("rank", "ndcg"), [(1, 1.0), (3, 0.5), (1000, 1 / math.log2(1001)), (1001, 0.0)])
def test_reward_at_the_edges_of_the_cutoff(rank, ndcg):
    found, reward = rewards.ndcg_and_reward(torch.tensor([rank]), torch.tensor([0.25]).double(), beta=0.05, cutoff=1000)
    assert found.item() == pytest.approx(ndcg)
    assert reward.item() == pytest.approx(0.95 * ndcg + 0.05 * 0.25)


def test_advantages_are_standardised_within_the_group_and_zero_for_equal_rewards():
    found = rewards.advantages(torch.tensor([[0.1, 0.3, 0.2], [0.1, 0.1, 0.1]]).double())
    assert found[0].tolist() == pytest.approx([-1, 1, 0], abs=1e-6)
    assert found[1].tolist() == [0, 0, 0]
    assert rewards.advantages(torch.tensor([[0.7]])).tolist() == [[1.0]]
