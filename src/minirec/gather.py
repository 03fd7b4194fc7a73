"""gather: join the shards of a rollout in the order of sample_id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from minirec import schemas, tensors
from minirec.artefact import Made
from minirec.errors import InputError


def run(*, rollout_shards: list[Path], hidden_shards: list[Path], rollouts: Path, hidden: Path) -> None:
    """Write the joined rollouts.parquet and hidden.safetensors, with the metadata of an unsharded rollout."""
    made = [schemas.read_made(path) for path in rollout_shards]
    if any(other != made[0] for other in made):
        raise InputError(f"the shards {rollout_shards[0]} and others were made differently; make all of them again")
    joined = pa.concat_tables([schemas.read("rollouts", path) for path in rollout_shards])
    joined = joined.sort_by([("sample_id", "ascending"), ("completion", "ascending")])
    parts = [tensors.read(path, "sample_id", "hidden") for path in hidden_shards]
    sample_id = np.concatenate([part["sample_id"] for part in parts])
    states = np.concatenate([part["hidden"] for part in parts])
    order = np.argsort(sample_id, kind="stable")
    if not np.array_equal(np.unique(schemas.numpy(joined, "sample_id")), sample_id[order]):
        raise InputError(f"{rollouts.name} and {hidden.name} of the shards hold different samples; make them again")
    was = Made.parse(made[0])
    schemas.write("rollouts", joined, rollouts, was)
    tensors.write({"sample_id": sample_id[order], "hidden": states[order]}, hidden, was)
