"""As many different targets as possible."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(needs=("targets",))
def coverage(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """A random sample of every target, then a second one of each, and so on; targets in random order."""
    shuffled = generator.permutation(len(signals))
    by_target = np.argsort(signals.target[shuffled], kind="stable")
    target = signals.target[shuffled][by_target]
    turn = np.empty(len(signals), dtype=np.int64)  # how many samples of its target come before a sample
    turn[by_target] = np.arange(len(signals)) - np.searchsorted(target, target)
    return shuffled[np.argsort(turn, kind="stable")][:budget]
