"""No selection: train on everything."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(takes_all=True)
def full(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """Every sample, in random order."""
    return generator.choice(len(signals), len(signals), replace=False)
