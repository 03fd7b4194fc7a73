"""Random selection, the control of every comparison."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method()
def random(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """Samples drawn uniformly at random."""
    return generator.choice(len(signals), budget, replace=False)
