"""Representativeness alone."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(needs=("rewards", "gradients"))
def representative(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """The samples whose direction is most like the mean direction (METHOD 4.4, representativeness)."""
    return np.argsort(-signals.representativeness, kind="stable")[:budget]
