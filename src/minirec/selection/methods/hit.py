"""Samples that some completion has hit."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(needs=("rewards",))
def hit(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """Random samples with at least one hit; if they are too few, random others follow."""
    shuffled = generator.permutation(len(signals))
    return shuffled[np.argsort(signals.hits[shuffled] == 0, kind="stable")][:budget]
