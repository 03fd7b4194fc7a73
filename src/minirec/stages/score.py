"""score: how learnable and how representative every sample is (METHOD 4.3, 4.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from minirec.experiment import config
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance

BLOCK = 2_048  # samples whose derivatives are held at a time


def learnability(mean_reward: np.ndarray, mu: float, sigma: float | None = None) -> np.ndarray:
    """Gaussian of the mean reward [n] around mu, min-max normalised (METHOD 4.3): 1 is the most learnable sample.

    sigma None: the population standard deviation; zero spread gives 1 for all.
    """
    mean_reward = np.asarray(mean_reward, dtype=np.float64)
    spread = mean_reward.std() if sigma is None else sigma
    if spread == 0:
        return np.ones_like(mean_reward)
    return min_max(np.exp(-((mean_reward - mu) ** 2) / (2 * spread**2)))


def representativeness(directions: np.ndarray) -> np.ndarray:
    """Cosine of each direction [n, d] to their mean, mapped to 0..1 and min-max normalised (METHOD 4.4).

    A zero vector has cosine 0.
    """
    return representativeness_of_blocks(lambda: iter([directions]))


def representativeness_of_blocks(blocks: Callable[[], Iterator[np.ndarray]]) -> np.ndarray:
    """The same of directions that come some rows at a time, and twice: for their mean, and for their cosines to it."""
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
    """u [n, d]: the HVP, the gradient, or the gradient one step ahead, g - eta Hv."""
    return {"hvp": hvp, "grad": gradient, "lookahead": gradient - eta * hvp}[kind]


def min_max(values: np.ndarray) -> np.ndarray:
    """Values [n] mapped onto 0..1; 1 for all where all are equal."""
    low, high = values.min(), values.max()
    return np.ones_like(values) if low == high else (values - low) / (high - low)


def run(*, score: config.Score, rollouts: Path, gradients: Path, out: Path) -> None:
    """Write scores.parquet, one row a sample in the order of sample_id."""
    table = tables.read("rollouts", rollouts, ["sample_id", "reward", "hit"])
    groups = table.to_pandas().astype({"reward": np.float64}).groupby("sample_id", sort=True)
    rewards = groups["reward"].mean().astype(np.float32)
    sample_id = rewards.index.to_numpy()
    tensors.shapes(gradients, "sample_id", "gradient", "hvp")
    rows = tensors.rows_of(tensors.read_rows(gradients, "sample_id"), sample_id, gradients)

    def directions() -> Iterator[np.ndarray]:
        for gradient, hvp in _blocks(gradients, rows):
            yield direction(gradient, hvp, score.direction, score.eta)

    norms = [np.linalg.norm(gradient.astype(np.float64), axis=1) for gradient, _ in _blocks(gradients, rows)]
    columns = {
        "sample_id": sample_id,
        "mean_reward": rewards.to_numpy(),
        "reward_std": groups["reward"].std(ddof=1).astype(np.float32).fillna(0.0).to_numpy(),
        "learnability": learnability(rewards.to_numpy(), score.mu, score.sigma),
        "representativeness": representativeness_of_blocks(directions),
        "gradient_norm": np.concatenate(norms),
        "hits": groups["hit"].sum().to_numpy().astype(np.int32),
    }
    made = Provenance("score", score.model_dump(), {"rollouts": rollouts, "gradients": gradients})
    tables.write("scores", pa.table(columns), out, made)


def _blocks(gradients: Path, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """g and Hv of these rows, BLOCK at a time."""
    for begin in range(0, len(rows), BLOCK):
        own = rows[begin : begin + BLOCK]
        yield tensors.take(gradients, "gradient", own), tensors.take(gradients, "hvp", own)
