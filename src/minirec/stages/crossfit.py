"""crossfit: reward every training sample by heads that were trained on the others, on the CPU (METHOD 4.2)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from minirec.data import splits
from minirec.errors import InputError
from minirec.experiment import sections
from minirec.model.items import read_table
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output
from minirec.training.crossfit import held_out_rewards


def run(
    *,
    policy: sections.Policy,
    crossfit: sections.Crossfit,
    train: sections.Train,
    reward: sections.Reward,
    samples: Path,
    catalogue: Path,
    item_table: Path,
    users: Path,
    seed: int = 0,
    rollouts: Output,
    embeddings: Output,
) -> None:
    """Write rollouts.parquet, with one empty completion a sample, and embeddings.safetensors: the states in `users`."""
    pool = splits.load(samples, catalogue, "train", policy.prompt_history)
    if len(pool) < 2 * crossfit.folds:
        raise InputError(
            f"{samples} has {len(pool)} training samples, too few for crossfit.folds {crossfit.folds}; lower it"
        )
    if train.head == "none":
        raise InputError("proxy.head is none, but crossfit trains a head alone; set it to shared or separate")
    stored, items = tensors.read(users, "sample_id", "embedding"), read_table(item_table, catalogue)
    states = stored["embedding"][tables.rows_of(stored["sample_id"], pool.sample_id, users)]
    if states.shape[1] != items.shape[1]:
        raise InputError(
            f"{users} has vectors of {states.shape[1]} numbers, but {item_table} of {items.shape[1]}; "
            "make both with the same model"
        )
    columns = held_out_rewards(torch.from_numpy(states), items, pool, train, crossfit, policy.tau, reward, seed)
    settings = {k: v for part in (policy, crossfit, train, reward) for k, v in part.model_dump().items()}
    inputs = {"samples": samples, "catalogue": catalogue, "items": item_table, "users": users}
    provenance, n = Provenance("crossfit", settings | {"seed": seed}, inputs), len(pool)
    empty = {"completion": np.zeros(n, np.int32), "tokens": [[]] * n, "text": [""] * n, "forced": [True] * n}
    rows = {"sample_id": pool.sample_id, **empty, **columns}
    kept = tables.TABLES["rollouts"].schema()
    tables.write("rollouts", pa.table({name: rows[name] for name in kept.names}, kept), rollouts, provenance)
    tensors.write({"sample_id": pool.sample_id, "embedding": states}, embeddings, provenance)
