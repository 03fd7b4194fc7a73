"""Diversity alone: k-centre."""

from __future__ import annotations

import numpy as np

from minirec.selection.greedy import greedy
from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(needs=("embeddings",))
def diversity(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """From a random first one, always the sample farthest from all picks (greedy k-centre)."""
    value = np.ones(len(signals))
    value[generator.integers(len(signals))] = 2.0  # the first pick; a value of a picked sample counts no more
    return greedy(signals.embeddings, value, budget)
