"""What a sample would need to be picked, checked by picking again with just more and just less."""

import numpy as np
import pytest

from minirec.selection import counterfactual
from minirec.selection.greedy import greedy
from minirec.selection.methods.registry import methods
from minirec.selection.signals import Signals

N, BUDGET = 24, 6


def vectors(seed):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(N, 3)), generator.random(N) + 0.1


def with_value(value, row, number):
    changed = value.copy()
    changed[row] = number
    return changed


@pytest.mark.parametrize("seed", range(3))
def test_greedy_picks_every_row_just_above_its_threshold_and_not_just_below(seed):
    embeddings, value = vectors(seed)
    picks = greedy(embeddings, value, BUDGET)
    for row in range(N):
        least = counterfactual.threshold(embeddings, value, BUDGET, row)
        above, below = (
            greedy(embeddings, with_value(value, row, least.value * factor), BUDGET) for factor in (1.001, 0.999)
        )
        assert row in above
        assert row not in below
        assert above[least.turn] == row
        assert below[least.turn] == least.winner
        assert (row in picks) == (value[row] > least.value)


@pytest.mark.parametrize("seed", range(3))
def test_at_its_best_later_turn_a_row_needs_the_distance_that_gives_it_the_winners_gain(seed):
    embeddings, value = vectors(seed)
    picks = greedy(embeddings, value, BUDGET)
    unit = embeddings / np.linalg.norm(embeddings, axis=1)[:, None]
    apart = 1 - unit @ unit.T
    for row in np.setdiff1d(np.arange(N), picks):
        found = counterfactual.threshold(embeddings, value, BUDGET, row)
        gain = {turn: value[picks[turn]] * apart[picks[turn], picks[:turn]].min() for turn in range(1, BUDGET)}
        own = {turn: apart[row, picks[:turn]].min() for turn in gain}
        assert found.near_turn == max(gain, key=lambda turn: own[turn] / gain[turn])
        assert found.distance == pytest.approx(own[found.near_turn])
        assert found.nearest == apart[row, picks[: found.near_turn]].argmin()
        assert found.needed_distance == pytest.approx(gain[found.near_turn] / value[row])
        assert found.distance <= found.needed_distance


def test_a_copy_of_the_first_pick_needs_more_than_its_value():
    embeddings, value = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), np.array([0.9, 0.8, 0.1])
    least = counterfactual.threshold(embeddings, value, 2, 1)
    assert (least.value, least.turn, least.winner, least.near_turn) == (0.9, 0, 0, -1)


def test_where_all_are_picked_any_value_is_enough():
    embeddings, value = vectors(0)
    assert counterfactual.threshold(embeddings, value, N, 3).value == 0


def rewarded(**more):
    mean = np.array([0.1, 0.2, 0.3, 0.4])
    return Signals(np.arange(4), mean_reward=mean, reward_std=mean[::-1], hits=np.array([4, 0, 0, 2]), **more)


def ranges(name, row, budget=2, **settings):
    signals, method = rewarded(), methods()[name]
    picks = method.pick(signals, budget, np.random.default_rng(0), **settings).rows
    test = counterfactual.picked_by_method(method, settings, row, budget, seed=0)
    return counterfactual.ranges(signals, method, row, test, picks, (0.5, None))


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("hardest", 3, {"mean_reward": (0, 0.2)}),
        ("easiest", 0, {"mean_reward": (0.3, 1)}),
        ("hardest", 0, {"mean_reward": (0, 0.3)}),  # picked already, until two others are harder
        ("variance", 3, {"mean_reward": None, "reward_std": (0.3, 0.4)}),
    ],
)
def test_the_range_of_a_number_ends_where_another_sample_wins(name, row, expected):
    found = ranges(name, row)
    assert found.keys() == expected.keys()
    for number, span in expected.items():
        assert found[number] == ([] if span is None else [pytest.approx(span, abs=1e-4)])


def test_hits_are_whole_numbers():
    order = np.random.default_rng(0).permutation(4).tolist()  # as `hit` shuffles; samples 0 and 3 have hits
    row = next(row for row in order if row in (1, 2))
    assert row in [one for one in order if one in (0, 3, row)][:2]
    assert ranges("hit", row)["hits"] == [(1, 4)]


def test_a_number_that_is_enough_at_both_ends_has_two_ranges():
    signals, method = rewarded(), methods()["band"]

    def at_the_ends(changed):
        return not 0.2 < changed.mean_reward[0] < 0.7

    spans = counterfactual.ranges(signals, method, 0, at_the_ends, np.array([0, 1]), (0.5, None))["mean_reward"]
    assert spans == [pytest.approx((0, 0.2), abs=1e-4), pytest.approx((0.7, 1), abs=1e-4)]


def test_another_mean_reward_changes_the_stored_learnability_as_the_formula_says():
    mean = np.array([0.1, 0.2, 0.3, 0.5])
    signals = Signals(np.arange(4), mean_reward=mean, learnability=np.zeros(4))
    changed = counterfactual.with_number(signals, 0, "mean_reward", 0.4, (0.5, 0.2))
    bell = np.exp(-((np.array([0.4, 0.2, 0.3, 0.5]) - 0.5) ** 2) / (2 * 0.2**2))
    assert changed.learnability == pytest.approx((bell - bell.min()) / (bell.max() - bell.min()))
    assert signals.mean_reward[0] == 0.1


@pytest.mark.parametrize("name", [name for name, one in methods().items() if one.factors])
def test_a_method_with_factors_picks_as_greedy_does_with_them(name):
    generator, method = np.random.default_rng(1), methods()[name]
    numbers = {field: generator.random(N) for field in ("mean_reward", "learnability", "representativeness")}
    signals = Signals(np.arange(N), embeddings=vectors(1)[0], **numbers)
    value, compared = method.factors(signals)
    rows = method.pick(signals, BUDGET, generator).rows
    assert rows.tolist() == greedy(compared, value, BUDGET).tolist()
