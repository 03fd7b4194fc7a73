"""EL2N (arXiv 2107.07075)."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(needs=("rewards", "gradients", "errors"))
def el2n(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """The samples with the largest error of the predicted probabilities (EL2N, arXiv 2107.07075)."""
    return np.argsort(-signals.error_norm, kind="stable")[:budget]
