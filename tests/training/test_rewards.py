import math

import numpy as np
import pytest
import torch

from minirec.data.splits import Split
from minirec.experiment import sections
from minirec.model import scoring
from minirec.model.whitening import Whitening
from minirec.training import judge

SCORES = torch.tensor([[0.3, 1.2, -0.4, 2.0, 0.1], [1.0, 1.0, 0.5, 1.0, -2.0], [0.0, 3.0, 1.0, 2.0, 1.5]]).double()
HISTORY = torch.tensor([[3, 0], [1, -1], [1, 4]])  # the last row holds its own target
TARGET = torch.tensor([1, 3, 4])


def test_the_probability_of_a_target_is_among_what_the_history_leaves():
    found = scoring.log_pi(SCORES, TARGET, HISTORY)
    for i, target in enumerate(TARGET.tolist()):
        kept = [row for row in range(5) if row == target or row not in HISTORY[i].tolist()]
        total = sum(math.exp(SCORES[i, row]) for row in kept)
        assert found[i].item() == pytest.approx(math.log(math.exp(SCORES[i, target]) / total))


def test_a_rank_counts_what_scores_higher_and_equals_in_lower_rows_but_never_the_history():
    assert scoring.ranks(SCORES, TARGET, HISTORY).tolist() == [1, 2, 2]
    nothing = torch.full_like(HISTORY, -1)
    assert scoring.ranks(SCORES, TARGET, nothing).tolist() == [2, 3, 3]


@pytest.mark.parametrize(("rank", "hit"), [(1000, True), (1001, False)])
def test_a_target_at_the_cutoff_is_a_hit_and_one_beyond_it_earns_only_its_probability(rank, hit):
    angle = torch.linspace(0, 3, 1100).double()
    items = torch.stack([angle.cos(), angle.sin()], 1)  # a lower row is nearer to the user
    sample = Split(np.array([0]), np.array([rank - 1]), np.array([[-1]]), [""])
    user = torch.tensor([[[1.0, 0.0]]]).double()
    reward = sections.Reward(beta=0.05, cutoff=1000)
    found = judge.score_completions(user, items, sample, Whitening.identity(), 0.5, reward)
    assert (found["rank"].item(), found["hit"].item(), found["ndcg"].item() > 0) == (rank, hit, hit)
    ndcg = 1 / math.log2(1001) if hit else 0
    assert found["reward"].item() == pytest.approx(0.95 * ndcg + 0.05 * found["pi"].item())
