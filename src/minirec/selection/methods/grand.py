"""GraNd (arXiv 2107.07075)."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(needs=("rewards", "gradients"))
def grand(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """The samples with the longest gradient (GraNd, arXiv 2107.07075)."""
    return np.argsort(-signals.gradient_norm, kind="stable")[:budget]
