"""Load the signals of training samples from the files that rollout, gradient, score and influence have written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minirec.selection.signals import Signals
from minirec.storage import tables, tensors

REWARDS = ("mean_reward", "reward_std", "hits")
SCORES = (*REWARDS, "learnability", "representativeness", "gradient_norm", "error_norm")


def rewards(rollouts: Path) -> pa.Table:
    """Table of every sample's mean reward, standard deviation of its rewards (ddof 1) and hits, by sample_id."""
    table = tables.read("rollouts", rollouts, ["sample_id", "reward", "hit"])
    groups = table.to_pandas().astype({"reward": np.float64}).groupby("sample_id", sort=True)
    mean = groups["reward"].mean().astype(np.float32)
    return pa.table(
        {
            "sample_id": mean.index.to_numpy(),
            "mean_reward": mean.to_numpy(),
            "reward_std": groups["reward"].std(ddof=1).astype(np.float32).fillna(0.0).to_numpy(),
            "hits": groups["hit"].sum().to_numpy().astype(np.int32),
        }
    )


def load(
    sample_id: np.ndarray,
    samples: Path,
    scores: Path | None = None,
    rollouts: Path | None = None,
    embeddings: Path | None = None,
    influences: Path | None = None,
) -> Signals:
    """The signals of these samples [n], in this order, from the given files.

    scores: includes what `rollouts` would give. Raises InputError if a file lacks one of the samples.
    """
    targets = tables.read("samples", samples, ["sample_id", "target_row"])
    columns = {"target": _rows(targets, ("target_row",), sample_id, samples)["target_row"]}
    if scores is not None:
        columns |= _rows(tables.read("scores", scores), SCORES, sample_id, scores)
    elif rollouts is not None:
        columns |= _rows(rewards(rollouts), REWARDS, sample_id, rollouts)
    if embeddings is not None:
        stored = tensors.read_rows(embeddings, "sample_id")
        rows = tables.rows_of(stored, sample_id, embeddings)
        columns["embeddings"] = tensors.take(embeddings, "embedding", rows)
    if influences is not None:
        columns |= _rows(tables.read("influences", influences), ("influence",), sample_id, influences)
    return Signals(sample_id, **columns)


def pool(samples: Path, shard: int | None, shards: int, selections: list[Path]) -> np.ndarray:
    """Sample ids to pick from, ascending: all training samples, one of `shards` equal parts, or `selections`."""
    if selections:
        return np.sort(np.concatenate([tables.numpy(tables.read("selection", s), "sample_id") for s in selections]))
    table = tables.read("samples", samples, ["sample_id", "split"])
    train = np.sort(tables.numpy(table.filter(pc.equal(table["split"], "train")), "sample_id"))
    if shard is None:
        return train
    return train[len(train) * shard // shards : len(train) * (shard + 1) // shards]


def _rows(table: pa.Table, names: tuple[str, ...], sample_id: np.ndarray, path: Path) -> dict[str, np.ndarray]:
    rows = tables.rows_of(tables.numpy(table, "sample_id"), sample_id, path)
    return {name: tables.numpy(table, name)[rows] for name in names}
