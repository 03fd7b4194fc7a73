"""gather: join the shards of a rollout in the order of sample_id (METHOD 4.2)."""

from __future__ import annotations

from pathlib import Path

from minirec.model.rollouts import Shards, shards_provenance
from minirec.storage import tables, tensors
from minirec.storage.files import Output


def run(*, rollout_shards: list[Path], hidden_shards: list[Path], rollouts: Output, hidden: Output) -> None:
    """Write the joined rollouts.parquet and hidden.safetensors, with the provenance of a rollout without shards.

    Memory holds one window of samples at a time.
    """
    provenance = shards_provenance(rollout_shards)
    shards = Shards(rollout_shards, hidden_shards)
    with (
        tables.writer("rollouts", rollouts, provenance) as append,
        tensors.writer({"hidden": shards.shape}, hidden, provenance) as append_states,
    ):
        for table, sample_id, states in shards.windows():
            append(table)
            append_states(sample_id=sample_id, hidden=states)
