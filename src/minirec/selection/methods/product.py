"""MiniRec with a product in place of the sum, so that no signal makes up for another."""

from __future__ import annotations

import numpy as np

from minirec.selection.greedy import greedy_picks
from minirec.selection.methods.registry import Factors, Picks, method
from minirec.selection.signals import Signals


def factors(signals: Signals) -> Factors:
    """The value of every sample [n] before diversity, and the vectors that diversity compares."""
    return signals.learnability * signals.representativeness, signals.embeddings


@method(needs=("rewards", "gradients", "embeddings"), factors=factors)
def product(signals: Signals, budget: int, generator: np.random.Generator) -> Picks:
    """Greedy by learnability x representativeness x distance to the nearest pick."""
    return greedy_picks(factors(signals), budget)
