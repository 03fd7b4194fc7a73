"""MiniRec without representativeness, so without gradients."""

from __future__ import annotations

import numpy as np

from minirec.selection.greedy import greedy_picks
from minirec.selection.methods.registry import Factors, Mu, Picks, method
from minirec.selection.signals import Signals, learnability


def factors(signals: Signals, *, mu: Mu = 0.5) -> Factors:
    """The value of every sample [n] before diversity, and the vectors that diversity compares, if there are any."""
    return learnability(signals.mean_reward, mu), signals.embeddings


@method(needs=("rewards",), uses=("embeddings",), factors=factors)
def learnable(signals: Signals, budget: int, generator: np.random.Generator, *, mu: Mu = 0.5) -> Picks:
    """Greedy by learnability x distance to the nearest pick; without embeddings, the most learnable samples."""
    return greedy_picks(factors(signals, mu=mu), budget)
