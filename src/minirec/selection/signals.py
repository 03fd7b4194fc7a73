"""Signals of the training samples, and two computed here: learnability, representativeness (METHOD 4.3, 4.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np

NOT_THERE = cast(np.ndarray, None)  # a method reads only the signals that it has asked for
NEEDS = ("rewards", "gradients", "errors", "embeddings", "influence")  # signals that a stage must compute
FREE = ("targets",)  # read from samples.parquet, at no cost
NORMAL_IQR = 1.349  # interquartile range of a normal distribution, in standard deviations


@dataclass(frozen=True)
class Signals:
    """Signals of n samples, one row each. A signal that the method does not read, or that was not computed, is None."""

    sample_id: np.ndarray  # [n]
    target: np.ndarray = NOT_THERE  # [n] number of the target item. Need: targets
    mean_reward: np.ndarray = NOT_THERE  # [n] over the completions. Need: rewards
    reward_std: np.ndarray = NOT_THERE  # [n] over the completions, ddof 1. Need: rewards
    hits: np.ndarray = NOT_THERE  # [n] completions whose reward counts as a hit. Need: rewards
    learnability: np.ndarray = NOT_THERE  # [n] in 0..1. Need: gradients
    representativeness: np.ndarray = NOT_THERE  # [n] in 0..1. Need: gradients
    gradient_norm: np.ndarray = NOT_THERE  # [n] length of the mean gradient. Need: gradients
    error_norm: np.ndarray = NOT_THERE  # [n] length of predicted probabilities minus one-hot target. Need: errors
    influence: np.ndarray = NOT_THERE  # [n] on a small recommender's loss (METHOD 4.6, dealrec). Need: influence
    embeddings: np.ndarray = NOT_THERE  # [n, d]. Need: embeddings

    def __len__(self) -> int:
        return len(self.sample_id)

    def take(self, rows: np.ndarray) -> Signals:
        """The signals of these rows, in this order."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return Signals(**{name: NOT_THERE if value is None else value[rows] for name, value in values.items()})


def learnability(mean_reward: np.ndarray, mu: float | str, sigma: float | str | None = None) -> np.ndarray:
    """Learnability [n] in 0..1: a Gaussian of the mean reward [n] around mu, min-max normalised (METHOD 4.3).

    1 is the most learnable sample, 0 the least. mu: the mean reward of the most learnable sample; "mean": the mean over
    all samples; "q75": their 75 % quantile. sigma: width of the Gaussian; None: population standard deviation of the
    mean rewards; "iqr": their interquartile range / 1.349, which a few outliers do not widen. If the width is 0, all
    samples get 1.

    >>> learnability(np.array([0.0, 0.5, 1.0]), mu=0.5).tolist()
    [0.0, 1.0, 0.0]
    """
    mean_reward = np.asarray(mean_reward, dtype=np.float64)
    low, high = np.quantile(mean_reward, [0.25, 0.75])
    width = mean_reward.std() if sigma is None else (high - low) / NORMAL_IQR if sigma == "iqr" else float(sigma)
    if mu == "mean":
        centre = float(mean_reward.mean())
    else:
        centre = float(np.quantile(mean_reward, int(mu[1:]) / 100)) if isinstance(mu, str) else mu
    if width == 0:
        return np.ones_like(mean_reward)
    return min_max(np.exp(-((mean_reward - centre) ** 2) / (2 * width**2)))


def representativeness(directions: np.ndarray) -> np.ndarray:
    """Representativeness [n] in 0..1: cosine of each direction [n, d] to their mean, min-max normalised (METHOD 4.4).

    A direction is a sample's gradient or Hessian-vector product. A zero vector has cosine 0.

    >>> representativeness(np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])).tolist()
    [1.0, 1.0, 0.0]
    """
    return representativeness_of_blocks(lambda: iter([directions]))


def representativeness_of_blocks(blocks: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
    """`representativeness` of directions that do not fit into memory.

    blocks: returns an iterator over blocks of rows [k, d]; called twice, for the mean and for the cosines to it.
    """
    total: np.ndarray | float = 0.0
    count = 0
    for block in blocks():
        total, count = total + np.sum(block, axis=0, dtype=np.float64), count + len(block)
    mean = total / count
    cosines = []
    for block in blocks():
        lengths = np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64)) * np.linalg.norm(mean)
        products = np.asarray(block @ mean, dtype=np.float64)
        cosines.append(np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0))
    return min_max((np.concatenate(cosines) + 1) / 2)


def direction(gradient: np.ndarray, hvp: np.ndarray, kind: str, eta: float) -> np.ndarray:
    """Directions [n, d] of a kind: "hvp", Hv; "grad", g; or "lookahead", the gradient one step ahead, g - eta Hv."""
    return {"hvp": hvp, "grad": gradient, "lookahead": gradient - eta * hvp}[kind]


def min_max(values: np.ndarray) -> np.ndarray:
    """Map values [n] linearly onto 0..1; to 1 if all are equal."""
    low, high = values.min(), values.max()
    return np.ones_like(values) if low == high else (values - low) / (high - low)
