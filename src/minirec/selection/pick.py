"""Selection in one call, from arrays: no files, settings or workflow."""

from __future__ import annotations

import numpy as np

from minirec.errors import InputError
from minirec.selection.methods.registry import find
from minirec.selection.signals import NOT_THERE, Signals

BLOCK = 65_536  # rows that are checked at a time


def pick(
    rewards: np.ndarray,
    budget: int,
    *,
    method: str = "learnable",
    embeddings: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Rows of the samples to train on, in the order of picking, int64 [budget].

    rewards [n, G]: of G completions of each of n samples; a positive one counts as a hit. embeddings [n, d]: vectors in
    which the picks shall differ, for methods with diversity. method: one of `minirec.selection.methods` that needs no
    gradients. seed: of random methods. Raises InputError if the budget or the method does not fit the data.

    >>> pick(np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), budget=1).tolist()
    [1]
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 2 or not rewards.size:
        raise InputError(f"rewards must be numbers [n, G], but they have the shape {rewards.shape}")
    _require_finite("rewards", rewards)
    chosen = find(method)
    available = {"rewards"} | ({"embeddings"} if embeddings is not None else set())
    if missing := chosen.lacks(available):
        raise InputError(f"the method {method} needs {' and '.join(missing)} besides rewards; choose another")
    if embeddings is not None:
        embeddings = np.asarray(embeddings)
        if embeddings.ndim != 2:
            raise InputError(f"embeddings must be numbers [n, d], but they have the shape {embeddings.shape}")
        if len(embeddings) != len(rewards):
            raise InputError(f"there are {len(rewards)} rows of rewards, but {len(embeddings)} of embeddings")
        _require_finite("embeddings", embeddings)
    count = len(rewards) if chosen.takes_all else budget
    if not 0 < count <= len(rewards):
        raise InputError(f"the budget is {budget}, but there are {len(rewards)} samples; it must be 1 to as many")
    groups = rewards.shape[1]
    signals = Signals(
        sample_id=np.arange(len(rewards)),
        mean_reward=rewards.mean(1),
        reward_std=rewards.std(1, ddof=1) if groups > 1 else np.zeros(len(rewards)),
        hits=(rewards > 0).sum(1),
        embeddings=NOT_THERE if embeddings is None else embeddings,
    )
    return chosen.pick(signals, count, np.random.default_rng(seed)).rows.astype(np.int64)


def _require_finite(name: str, rows: np.ndarray) -> None:
    """Raise InputError that names the first row [n, d] with NaN or infinity; they may be mapped from a file."""
    for start in range(0, len(rows), BLOCK):
        finite = np.isfinite(rows[start : start + BLOCK]).all(1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise InputError(f"{name} have NaN or infinity in row {row}; correct or leave out such rows")
