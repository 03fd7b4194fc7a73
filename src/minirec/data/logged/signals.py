"""The signals of logged prompts, and how often they are rewarded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from minirec.data.logged.rollouts import RolloutLog
from minirec.errors import InputError
from minirec.experiment.sections import Score
from minirec.selection.signals import Signals, learnability, representativeness

DIMENSIONS = 64  # of the vectors of words that diversity compares


def signals_of(
    log: RolloutLog,
    vectors: np.ndarray | None = None,
    directions: np.ndarray | None = None,
    mu: float | str = Score().mu,
) -> tuple[Signals, str]:
    """The signals of all prompts, and a sentence on how rewards were mapped to 0..1; empty if they lie there.

    vectors [n, d]: in which picks shall differ. directions [n, k]: gradients or what stands for them; learnability,
    with this mu, comes with them. Raises InputError if all rewards are the same.
    """
    offsets = np.asarray(log.rewards.offsets)
    counts, values = np.diff(offsets), np.asarray(log.rewards.flatten(), dtype=np.float64)
    low, high, note = float(values.min()), float(values.max()), ""
    if low == high:
        column = " + ".join(log.columns.rewards)
        raise InputError(
            f"all {len(values):,} rewards in {column} are {low:g}, so there is nothing to choose by; "
            "name another with --reward"
        )
    starts = offsets[:-1] - offsets[0]
    hits = np.add.reduceat(values > 0, starts, dtype=np.int64)  # as logged: what is mapped to more than 0 may be none
    if low < 0 or high > 1:
        note = f"rewards lie in {low:g} to {high:g} and are mapped to 0 to 1"
        values = (values - low) / (high - low)
    mean = np.add.reduceat(values, starts) / counts
    squares = np.add.reduceat((values - np.repeat(mean, counts)) ** 2, starts)
    std = np.sqrt(squares / np.maximum(counts - 1, 1))
    signals = Signals(np.arange(len(counts)), mean_reward=mean, reward_std=std, hits=hits)
    if vectors is not None:
        signals = replace(signals, embeddings=vectors)
    if directions is not None:
        lengths = np.sqrt(np.einsum("nd,nd->n", directions, directions, dtype=np.float64))
        signals = replace(
            signals,
            learnability=learnability(mean, mu, Score().sigma),
            representativeness=representativeness(directions),
            gradient_norm=lengths,
        )
    return signals, note


def kinds(signals: Signals) -> dict[str, np.ndarray]:
    """Which prompts [n] teach little, by what their rewards have in common."""
    mean, std = signals.mean_reward, signals.reward_std
    always = (mean == mean.max()) & (std == 0) & (mean > 0)
    return {"never rewarded": signals.hits == 0, "always the best reward": always, "all rewards alike": std == 0}


def word_vectors(texts: list[str]) -> np.ndarray:
    """Vectors [n, d] of texts: TF-IDF of their words, reduced to at most DIMENSIONS by a truncated SVD."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        words = TfidfVectorizer(sublinear_tf=True, max_features=2**16, dtype=np.float32).fit_transform(texts)
    except ValueError as error:
        raise InputError(f"the prompts hold no words, so their diversity is not known ({error})") from error
    width = min(DIMENSIONS, words.shape[1] - 1, words.shape[0] - 1)
    if width < 2:
        return np.asarray(words.todense())
    return np.asarray(TruncatedSVD(width, random_state=0).fit_transform(words), dtype=np.float32)
