"""Ranks and probabilities against a plain count over the catalogue (METHOD 2, 3)."""

import math

import pytest
import torch

from minirec.errors import InputError
from minirec.model import scoring

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


def test_ranks_by_counting_equal_a_full_sort_with_ties_to_the_lower_row():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        scores = torch.randint(0, 4, (5, 12), generator=generator).double()
        target = torch.randint(0, 12, (5,), generator=generator)
        exclude = torch.randint(-1, 12, (5, 3), generator=generator)
        found = scoring.ranks(scores, target, exclude)
        for i in range(5):
            rows = [v for v in range(12) if v == target[i] or v not in exclude[i].tolist()]
            order = sorted(rows, key=lambda v: (-scores[i, v].item(), v))
            assert found[i].item() == order.index(target[i].item()) + 1


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_state_that_is_not_finite_has_no_rank(broken):
    states, items = torch.ones(2, 4), torch.eye(4)
    states[1, 2] = broken
    with pytest.raises(InputError, match="scores are not finite"):
        scoring.ranks(scoring.scores(states, items, tau=0.5), torch.tensor([0, 1]), torch.full((2, 1), -1))
    with pytest.raises(InputError, match="scores are not finite"):
        scoring.best(scoring.scores(states, items, tau=0.5), torch.full((2, 1), -1), 2)
