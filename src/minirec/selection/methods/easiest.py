"""Easiest first: the highest mean rewards."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(needs=("rewards",))
def easiest(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """The samples with the highest mean reward."""
    return np.argsort(-signals.mean_reward, kind="stable")[:budget]
