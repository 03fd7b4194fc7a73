"""gather: join the shards of a rollout in the order of sample_id (METHOD 4.2)."""

from __future__ import annotations

from pathlib import Path

from minirec.model.rollouts import Shards, shards_provenance
from minirec.storage import tables, tensors
from minirec.storage.files import Output


def run(*, shards_folder: Path, shards: int, rollouts: Output, hidden: Output) -> None:
    """Write the joined rollouts.parquet and hidden.safetensors, with the provenance of a rollout without shards.

    The shards are the folders 0, 1, … below `shards_folder`: names of thousands would make the command line too long.
    Memory holds one window of samples at a time.
    """
    folders = [shards_folder / str(shard) for shard in range(shards)]
    parts = [folder / "rollouts.parquet" for folder in folders]
    provenance = shards_provenance(parts)
    joined = Shards(parts, [folder / "hidden.safetensors" for folder in folders])
    with (
        tables.writer("rollouts", rollouts, provenance) as append,
        tensors.writer({"hidden": joined.shape}, hidden, provenance) as append_states,
    ):
        for table, sample_id, states in joined.windows():
            append(table)
            append_states(sample_id=sample_id, hidden=states)
