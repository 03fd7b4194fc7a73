"""What would have to change for a sample to be picked, all else equal: another value, distance, reward or budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minirec.selection.distances import SAME, NearestDistances
from minirec.selection.greedy import greedy
from minirec.selection.methods.registry import Method
from minirec.selection.signals import NOT_THERE, Signals, learnability

NUMBERS = {  # the signals that are one number a sample, by what a method must read to use them
    "rewards": ("mean_reward", "reward_std", "hits"),
    "gradients": ("representativeness", "gradient_norm"),
    "errors": ("error_norm",),
    "influence": ("influence",),
}
GRID = 41  # values of a number that are tried, evenly apart
HALVINGS = 12  # bisections between two values of which one is enough and the other is not


@dataclass(frozen=True)
class Threshold:
    """What greedy asks of a row, all else equal.

    At near_turn, with the value that it has, it would be picked if it were farther from the nearest earlier pick.
    """

    value: float  # before diversity; with any above, the row is picked
    turn: int  # in which it would be picked with such a value; 0: the first
    winner: int  # row that is picked in that turn now
    near_turn: int = -1  # later turn in which it comes closest to being picked; -1: none
    nearest: int = -1  # place, in the order of picking, of the earlier pick that is nearest to it then
    distance: float = np.inf  # to that pick
    needed_distance: float = np.inf  # above this, it would be picked in near_turn


def threshold(embeddings: np.ndarray, value: np.ndarray, budget: int, row: int) -> Threshold:
    """The value from which `greedy` picks a row, if everything else stays (METHOD 4.6, greedy).

    embeddings [n, d]; value [n] before diversity. Greedy picks without the row. Its pick of turn t has the gain
    v_t d_t: value times distance to the nearest earlier pick. At distance d the row needs a value above v_t d_t / d, at
    the first turn above v_0; the threshold is the least of these.
    """
    others = np.delete(np.arange(len(value)), row)
    if budget > len(others):
        return Threshold(0.0, 0, row)
    picks = others[greedy(embeddings[others], value[others], budget)]
    own, nearest = distances_to_earlier(embeddings, picks, row)
    gains = value[picks[1:]] * distances_between(embeddings, picks)[1:]
    asked = np.full(budget, np.inf)
    asked[0] = value[picks[0]]
    np.divide(gains, own[1:], out=asked[1:], where=own[1:] > 0)
    turn = int(np.argmin(asked))
    least = Threshold(float(asked[turn]), turn, int(picks[turn]))
    if budget == 1 or not np.isfinite(asked[1:]).any() or value[row] == 0:
        return least
    near = int(np.argmin(asked[1:])) + 1
    needed = float(gains[near - 1] / value[row])
    return replace(least, near_turn=near, nearest=int(nearest[near]), distance=float(own[near]), needed_distance=needed)


def distances_to_earlier(embeddings: np.ndarray, picks: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Distance [k] of a row to the nearest earlier pick at each turn, and the number [k] of that pick.

    At the first turn there is none: infinite, -1.
    """
    block, length = NearestDistances(embeddings, 0).read(np.r_[picks, row])
    units = block / length[:, None]
    distance = 1.0 - units[:-1] @ units[-1]
    distance[distance < SAME] = 0.0
    so_far = np.minimum.accumulate(distance)
    first = np.maximum.accumulate(np.where(np.r_[True, distance[1:] < so_far[:-1]], np.arange(len(picks)), 0))
    return np.r_[np.inf, so_far[:-1]], np.r_[-1, first[:-1]]


def distances_between(embeddings: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """Distance [k] of each pick to the nearest earlier one; infinite for the first."""
    nearest = NearestDistances(embeddings[picks], len(picks))
    distances = np.full(len(picks), np.inf)
    for turn in range(len(picks)):
        nearest.update(np.array([turn]))
        distances[turn] = nearest.distance[turn]
        nearest.pick(turn)
    return distances


def with_number(signals: Signals, row: int, name: str, number: float, mu_sigma: tuple[Any, Any]) -> Signals:
    """The signals with another number of one sample; a mean reward changes the learnability that is stored, too.

    mu_sigma: of that learnability (METHOD 4.3).
    """
    values = np.array(getattr(signals, name), dtype=np.float64)
    values[row] = number
    changed: dict[str, Any] = {name: values}
    if name == "mean_reward" and signals.learnability is not None:
        changed["learnability"] = learnability(values, *mu_sigma)
    return replace(signals, **changed)


def ranges(
    signals: Signals, method: Method, row: int, picked: Callable[[Signals], bool], picks: np.ndarray, mu_sigma: Any
) -> dict[str, list[tuple[float, float]]]:
    """For each number that a method reads, the ranges of it with which a sample is picked, all else equal.

    picked: whether the sample is picked, given the signals. picks: rows of those picked now. Tries GRID values of each
    number from the least to the largest of all samples, mean rewards from 0 to 1, and those of the picks. A number of
    which every value is enough, or none, is left out; but mean_reward stays, without a range, if none is.
    """
    spans = {}
    for name in (name for need in method.reads for name in NUMBERS.get(need, ())):
        values = getattr(signals, name)
        if values is None:
            continue
        ends = (
            (0.0, 1.0) if name in ("mean_reward", "representativeness") else (float(values.min()), float(values.max()))
        )
        steps = np.arange(ends[0], ends[1] + 1) if name == "hits" else np.linspace(*ends, GRID)
        tried = np.unique(np.r_[steps, np.quantile(values[picks], [0, 0.25, 0.5, 0.75, 1]), values[row]])
        if name == "hits":
            tried = np.unique(tried.round())

        def works(number: float, name: str = name) -> bool:
            return picked(with_number(signals, row, name, number, mu_sigma))

        outcomes = [works(number) for number in tried]
        if all(outcomes) or (not any(outcomes) and name != "mean_reward"):
            continue
        spans[name] = _joined(tried, outcomes, works, exact=name == "hits")
    return spans


def _joined(
    tried: np.ndarray, outcomes: list[bool], works: Callable[[float], bool], exact: bool
) -> list[tuple[float, float]]:
    """Ranges of the values that work, with ends found by halving the step to the next value that does not."""
    edges = np.flatnonzero(np.diff(np.r_[False, outcomes, False]))
    spans = []
    for start, end in edges.reshape(-1, 2):
        low, high = float(tried[start]), float(tried[end - 1])
        if not exact and start > 0:
            low = _edge(works, low, float(tried[start - 1]))
        if not exact and end < len(tried):
            high = _edge(works, high, float(tried[end]))
        spans.append((low, high))
    return spans


def _edge(works: Callable[[float], bool], inside: float, outside: float) -> float:
    """The value nearest to `outside` that works, up to rounding."""
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if works(middle) else (inside, middle)
    return inside


def picked_by_value(method: Method, settings: dict[str, Any], row: int, least: float) -> Callable[[Signals], bool]:
    """For `ranges`: whether a sample's value before diversity exceeds the threshold of a greedy method."""
    assert method.factors is not None
    factors = method.factors
    return lambda signals: bool(factors(replace(signals, embeddings=NOT_THERE), **settings)[0][row] > least)


def picked_by_method(
    method: Method, settings: dict[str, Any], row: int, budget: int, seed: int
) -> Callable[[Signals], bool]:
    """For `ranges`: whether a method, which compares no vectors, picks a sample with the same draws."""

    def picked(signals: Signals) -> bool:
        rows = method.pick(signals, budget, np.random.default_rng(seed), **settings).rows
        return bool((rows == row).any())

    return picked
