"""A band of difficulty: neither hopeless nor solved."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import Share, method
from minirec.selection.signals import Signals


@method(needs=("rewards",))
def band(
    signals: Signals,
    budget: int,
    generator: np.random.Generator,
    *,
    band_low: Share = 0.25,
    band_high: Share = 0.75,
) -> np.ndarray:
    """Random samples with a mean reward between `band_low` and `band_high`; if they are too few, the nearest others."""
    reward = np.asarray(signals.mean_reward, dtype=np.float64)
    outside = np.maximum(band_low - reward, 0) + np.maximum(reward - band_high, 0)
    shuffled = generator.permutation(len(signals))
    return shuffled[np.argsort(outside[shuffled], kind="stable")][:budget]
