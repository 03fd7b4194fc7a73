"""gather: join the shards of a rollout in the order of sample_id (METHOD 4.2)."""

from __future__ import annotations

import resource
from pathlib import Path

from minirec.errors import InputError
from minirec.model.rollouts import Shards, shards_provenance
from minirec.storage import tables, tensors
from minirec.storage.files import Output


def run(*, shards_folder: Path, shards: int, rollouts: Output, hidden: Output) -> None:
    """Write the joined rollouts.parquet and hidden.safetensors, with the provenance of a rollout without shards.

    The shards are the folders 0, 1, … below `shards_folder`: names of thousands would make the command line too long.
    Memory holds one window of samples at a time.
    """
    _open_files(shards)
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


def _open_files(shards: int) -> None:
    """Let this process open a file of every shard at once; raises InputError if the system allows fewer files."""
    needed = shards + 20  # libraries and logs open some, too
    soft, hard = (limit % 2**64 for limit in resource.getrlimit(resource.RLIMIT_NOFILE))  # -1: no limit
    if needed > hard:
        raise InputError(f"{shards} shards need {needed} open files, but only {hard} are allowed; lower rollout.shards")
    if needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
