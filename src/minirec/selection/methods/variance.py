"""Reward variance: the samples whose completions earn the most different rewards."""

from __future__ import annotations

import numpy as np

from minirec.errors import InputError
from minirec.selection.methods.registry import Share, method
from minirec.selection.signals import Signals


@method(needs=("rewards",))
def variance(signals: Signals, budget: int, generator: np.random.Generator, *, top_p: Share = 0.0) -> np.ndarray:
    """The samples with the largest variance of the reward over their completions.

    top_p: draw at random from the fewest samples that hold this share of all variance, if they exceed the budget
    (RAGEN-2, arXiv 2604.06268).
    """
    if not np.any(signals.reward_std):
        raise InputError(
            "all completions of a sample earn the same, so variance cannot tell samples apart; take another method"
        )
    values = np.asarray(signals.reward_std, dtype=np.float64) ** 2
    order = np.argsort(-values, kind="stable")
    held = np.cumsum(values[order])
    nucleus = int(np.searchsorted(held, top_p * held[-1])) + 1
    if nucleus <= budget:
        return order[:budget]
    return generator.choice(order[:nucleus], budget, replace=False)
