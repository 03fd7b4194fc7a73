"""LearnAlign: success rate and gradient alignment."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(needs=("rewards", "gradients"))
def learnalign(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """The samples with the largest p (1 - p) x alignment: p the mean reward, alignment the representativeness."""
    p = np.asarray(signals.mean_reward, dtype=np.float64)
    return np.argsort(-p * (1 - p) * signals.representativeness, kind="stable")[:budget]
