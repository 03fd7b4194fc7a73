"""Diversity alone: k-centre."""

from __future__ import annotations

import numpy as np

from minirec.selection.greedy import greedy_with_diversity
from minirec.selection.methods.registry import Picks, method
from minirec.selection.signals import Signals


@method(needs=("embeddings",))
def diversity(signals: Signals, budget: int, generator: np.random.Generator) -> Picks:
    """From a random first one, always the sample farthest from all picks (greedy k-centre)."""
    value = np.ones(len(signals))
    value[generator.integers(len(signals))] = 2.0  # the first pick; a value of a picked sample counts no more
    rows, distances = greedy_with_diversity(signals.embeddings, value, budget)
    return Picks(rows, diversity=distances)
