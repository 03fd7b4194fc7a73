"""DEALRec: its score, and the coverage of all ranges of the score, by hand."""

import numpy as np

from minirec.selection.methods.dealrec import dealrec, stratified
from minirec.selection.signals import Signals

#               range 0              1           2: empty  3
SCORE = np.array([0.0, 0.1, 0.2, 0.24, 0.25, 0.45, 1.0, 0.9])


def drawn(budget: int, seed: int) -> list[int]:
    return stratified(SCORE, budget, 4, np.random.default_rng(seed)).tolist()


def test_every_range_gives_its_share_and_the_smallest_goes_first():
    for seed in range(9):
        rows = drawn(6, seed)
        assert set(rows[:2]) == {4, 5}  # 6 / 3 ranges, the two of range 1; range 3 has as many and comes later
        assert set(rows[2:4]) == {6, 7}
        assert len(set(rows[4:])) == 2
        assert set(rows[4:]) < {0, 1, 2, 3}
    assert {row for seed in range(50) for row in drawn(6, seed)[4:]} == {0, 1, 2, 3}


def test_what_a_small_range_cannot_give_comes_from_the_larger_ones():
    assert sorted(drawn(7, 0))[-4:] == [4, 5, 6, 7]
    assert len(set(drawn(7, 0))) == 7
    assert sorted(drawn(8, 0)) == list(range(8))
    assert len(drawn(1, 0)) == 1


def test_equal_scores_are_one_range():
    assert len(set(stratified(np.ones(5), 3, 50, np.random.default_rng(0)).tolist())) == 3


def test_the_score_adds_the_effort_to_the_influence_both_from_0_to_1():
    signals = Signals(np.arange(3), influence=np.array([-2.0, 0.0, 2.0]), gradient_norm=np.array([30.0, 10.0, 20.0]))
    picks = dealrec(signals, 3, np.random.default_rng(0), effort=0.5)
    assert dict(zip(picks.rows.tolist(), picks.value.tolist(), strict=True)) == {0: 0.5, 1: 0.5, 2: 1.25}
