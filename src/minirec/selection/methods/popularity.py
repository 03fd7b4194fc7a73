"""The most popular targets."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(needs=("targets",))
def popularity(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """The samples whose target is the target of most samples; equal ones in random order."""
    shuffled = generator.permutation(len(signals))
    _, item, count = np.unique(signals.target[shuffled], return_inverse=True, return_counts=True)
    return shuffled[np.argsort(-count[item], kind="stable")][:budget]
