"""MiniRec with a product in place of the sum, so that no signal makes up for another."""

from __future__ import annotations

import numpy as np

from minirec.selection.greedy import greedy
from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(needs=("rewards", "gradients", "embeddings"))
def product(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """Greedy by learnability x representativeness x distance to the nearest pick."""
    return greedy(signals.embeddings, signals.learnability * signals.representativeness, budget)
