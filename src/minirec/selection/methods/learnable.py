"""MiniRec without representativeness, so without gradients."""

from __future__ import annotations

import numpy as np

from minirec.selection.greedy import greedy
from minirec.selection.methods.registry import Mu, method
from minirec.selection.signals import Signals, learnability


@method(needs=("rewards",), uses=("embeddings",))
def learnable(signals: Signals, budget: int, generator: np.random.Generator, *, mu: Mu = 0.5) -> np.ndarray:
    """Greedy by learnability x distance to the nearest pick; without embeddings, the most learnable samples."""
    value = learnability(signals.mean_reward, mu)
    if signals.embeddings is None:
        return np.argsort(-value, kind="stable")[:budget]
    return greedy(signals.embeddings, value, budget)
