"""gather: join the shards of a rollout in the order of sample_id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from minirec.data.splits import WINDOW
from minirec.errors import InputError
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance
from minirec.storage.stream import Stream


def run(*, rollout_shards: list[Path], hidden_shards: list[Path], rollouts: Path, hidden: Path) -> None:
    """Write the joined rollouts.parquet and hidden.safetensors, with the metadata of an unsharded rollout.

    Holds a window of samples at a time, as the rollout does.
    """
    made = [tables.read_provenance(path) for path in rollout_shards]
    if any(other != made[0] for other in made):
        raise InputError(f"the shards {rollout_shards[0]} and others were made differently; make all of them again")
    was = Provenance.parse(made[0])
    was.settings.pop("shards", None)  # they decide what a shard holds, but not the whole
    shapes = [tensors.shapes(path, "sample_id", "hidden")["hidden"] for path in hidden_shards]
    count, groups = sum(shape[0] for shape in shapes), shapes[0][1]
    streams = [Stream("rollouts", path, list(tables.TABLES["rollouts"].columns)) for path in rollout_shards]
    places = [0] * len(shapes)
    with (
        tables.writer("rollouts", rollouts, was) as append,
        tensors.writer({"hidden": (count, *shapes[0][1:])}, hidden, was) as append_states,
    ):
        for begin in range(0, count, WINDOW):
            heads = [
                tensors.read_rows(path, "sample_id", place, min(place + WINDOW, shape[0]))
                for path, place, shape in zip(hidden_shards, places, shapes, strict=True)
            ]
            last = np.sort(np.concatenate(heads))[min(WINDOW, count - begin) - 1]
            taken = [int(np.searchsorted(head, last, side="right")) for head in heads]
            sample_id = np.concatenate([head[:rows] for head, rows in zip(heads, taken, strict=True)])
            states = [
                tensors.read_rows(path, "hidden", place, place + rows)
                for path, place, rows in zip(hidden_shards, places, taken, strict=True)
                if rows
            ]
            joined = pa.concat_tables([table.take(rows * groups) for table, rows in zip(streams, taken, strict=True)])
            joined = joined.sort_by([("sample_id", "ascending"), ("completion", "ascending")])
            order = np.argsort(sample_id)
            if not np.array_equal(tables.numpy(joined, "sample_id"), np.repeat(sample_id[order], groups)):
                _refuse(rollouts, hidden)
            append(joined)
            append_states(sample_id=sample_id[order], hidden=np.concatenate(states)[order])
            places = [place + rows for place, rows in zip(places, taken, strict=True)]
        if any(table.take(1).num_rows for table in streams):
            _refuse(rollouts, hidden)


def _refuse(rollouts: Path, hidden: Path) -> None:
    raise InputError(f"{rollouts.name} and {hidden.name} of the shards hold different samples; make them again")
