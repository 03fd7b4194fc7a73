"""curriculum: the selection in training order, easy to hard within shuffled groups (METHOD 4.7)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa

from minirec.experiment import config
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance


def groups(count: int, group_size: int) -> np.ndarray:
    """The group of each position [count]: K = max(1, count // group_size) groups, the last takes the rest."""
    number = max(1, count // group_size)
    return np.minimum(np.arange(count) // max(1, count // number), number - 1)


def order(sample_id: np.ndarray, mean_reward: np.ndarray, group_size: int, seed: int) -> np.ndarray:
    """Sample ids [k] in training order (METHOD 4.7): shuffled, cut into groups, each by mean reward descending."""
    reward_of = dict(zip(np.asarray(sample_id).tolist(), np.asarray(mean_reward).tolist(), strict=True))
    ids = sorted(reward_of)
    random.Random(seed).shuffle(ids)
    group = groups(len(ids), group_size)
    place = sorted(range(len(ids)), key=lambda i: (group[i], -reward_of[ids[i]]))
    return np.array([ids[i] for i in place], dtype=np.int64)


def run(*, curriculum: config.Curriculum, selection: Path, scores: Path | None, out: Path) -> None:
    """Write curriculum.parquet; without scores the order of the selection stays."""
    chosen = tables.read("selection", selection).sort_by("position")
    sample_id = tables.numpy(chosen, "sample_id")
    inputs = {"selection": selection}
    mean_reward = None
    if scores is not None:
        inputs["scores"] = scores
        table = tables.read("scores", scores, ["sample_id", "mean_reward"])
        known = tables.numpy(table, "sample_id")
        reward = tables.numpy(table, "mean_reward")
        of_chosen = reward[tensors.rows_of(known, sample_id, scores)]
        sample_id = order(sample_id, of_chosen, curriculum.group_size, curriculum.seed)
        mean_reward = reward[tensors.rows_of(known, sample_id, scores)]
    columns = {
        "position": pa.array(range(len(sample_id)), pa.int32()),
        "sample_id": sample_id,
        "group": pa.array(groups(len(sample_id), curriculum.group_size), pa.int32()),
        "mean_reward": pa.nulls(len(sample_id), pa.float64()) if mean_reward is None else mean_reward,
    }
    tables.write("curriculum", pa.table(columns), out, Provenance("curriculum", curriculum.model_dump(), inputs))
