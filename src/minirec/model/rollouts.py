"""Rollouts as files (METHOD 4.2): the batches of a shard, the finished batches of a killed job, and joined shards.

A window is a run of samples. The batches within it depend on the lengths of its prompts alone, and each batch belongs
to one shard, so the number of shards changes only how long the work takes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from minirec.data import splits
from minirec.data.splits import Split
from minirec.errors import InputError
from minirec.model.completions import Completions
from minirec.model.engines.engine import Engine
from minirec.model.policy import Policy
from minirec.storage import artefact, tables, tensors
from minirec.storage.artefact import Provenance
from minirec.storage.stream import Stream

UNFINISHED = "rollouts.unfinished"  # folder of the finished batches, beside the rollouts
ORDER = [("sample_id", "ascending"), ("completion", "ascending")]


@dataclass(frozen=True)
class Batch:
    """Samples whose completions the engine generates in one call."""

    window: int  # number of the window that holds the samples, from 0
    number: int  # of the batch; unique within its window
    samples: Split
    prompts: list[list[int]]  # token ids without the prefix that all share


def shard_batches(
    engine: Engine,
    windows: Iterable[Split],
    total: int,
    *,
    limits: Sequence[int],
    shard: int | None,
    shards: int,
) -> Iterator[Batch]:
    """The batches of one shard of `total` samples, or all batches if `shard` is None.

    Shards take whole windows in turn if each gets eight or more, else batches in turn. limits [G]: most tokens of each
    completion.
    """
    shard, shards = (0, 1) if shard is None else (shard, shards)
    by_window = total >= 8 * shards * splits.WINDOW
    number = 0
    for window, split in enumerate(windows):
        if by_window and window % shards != shard:
            continue
        prompts = engine.policy.user_bodies(split.bodies)
        for rows in engine.batches(prompts, limits):
            if by_window or number % shards == shard:
                yield Batch(window, number, split.take(rows), [prompts[row] for row in rows])
            number += 1


def records(
    samples: Split, completions: Completions, scored: Mapping[str, Tensor], policy: Policy
) -> list[dict[str, Any]]:
    """Rows of the rollouts table, one a completion; scored: the columns [n, G] that `score_completions` returned."""
    columns = {name: values.tolist() for name, values in scored.items()}
    return [
        {
            "sample_id": int(samples.sample_id[i]),
            "completion": g,
            "tokens": tokens,
            "text": policy.tokenizer.decode(tokens),
            "forced": completions.forced[i][g],
            **{name: values[i][g] for name, values in columns.items()},
        }
        for i, group in enumerate(completions.tokens)
        for g, tokens in enumerate(group)
    ]


class RolloutCheckpoint:
    """Folder with the finished batches of a rollout, so that the job can go on after it was killed.

    Emptied first if other inputs, settings or code, or another shard, made what it holds.
    """

    def __init__(self, folder: Path, provenance: Provenance, shard: int | None) -> None:
        self.folder, self.provenance = folder, provenance
        self.samples = 0  # in the batches of `paths`
        self.paths: dict[int, list[Path]] = {}  # finished batches of each window
        artefact.keep_unfinished(folder, provenance, shard=shard)

    def holds(self, batch: Batch) -> bool:
        """Whether an earlier job finished this batch, of the same samples, and its files are undamaged.

        With another number of tokens a call, the batch of the same number has other samples.
        """
        path = self._path(batch)
        if not path.is_file():  # written last
            return False
        try:
            _, states = self._read(path)
        except InputError:
            return False
        if not np.array_equal(states["sample_id"], batch.samples.sample_id):
            return False
        self._add(batch)
        return True

    def write(self, batch: Batch, rows: list[dict[str, Any]], hidden: Tensor) -> None:
        """Store a finished batch: its rows of the rollouts table, and its pooled states [n, G, d]."""
        path = self._path(batch)
        states = {"sample_id": batch.samples.sample_id, "hidden": hidden.cpu().numpy()}
        tensors.write(states, path.with_suffix(".safetensors"), self.provenance)
        table = pa.Table.from_pylist(rows, tables.TABLES["rollouts"].schema())
        tables.write("rollouts", table, path, self.provenance)
        self._add(batch)

    def join(self, completions: int, width: int, rollouts: Path, hidden: Path) -> None:
        """Write rollouts and hidden states in the order of sample_id, a window at a time, and remove the folder.

        completions, width: G and d of the states [n, G, d]; given, as a shard may have no batch that tells them.
        """
        with (
            tables.writer("rollouts", rollouts, self.provenance) as append,
            tensors.writer({"hidden": (self.samples, completions, width)}, hidden, self.provenance) as append_states,
        ):
            for paths in self.paths.values():
                batches, states = zip(*map(self._read, paths), strict=True)
                append(pa.concat_tables(batches).sort_by(ORDER))
                whole = {name: np.concatenate([s[name] for s in states]) for name in ("sample_id", "hidden")}
                order = np.argsort(whole["sample_id"])
                append_states(**{name: values[order] for name, values in whole.items()})
        shutil.rmtree(self.folder)

    def _path(self, batch: Batch) -> Path:
        """The file of a batch's rollouts; its states lie beside it."""
        return self.folder / f"{batch.window:06}" / f"{batch.number:06}.parquet"

    def _add(self, batch: Batch) -> None:
        self.paths.setdefault(batch.window, []).append(self._path(batch))
        self.samples += len(batch.samples)

    def _read(self, path: Path) -> tuple[pa.Table, dict[str, np.ndarray]]:
        states = tensors.read(path.with_suffix(".safetensors"), "sample_id", "hidden")
        return tables.read("rollouts", path), states


def shards_provenance(rollout_shards: list[Path]) -> Provenance:
    """The provenance of a rollout without shards: what all shards share, but for their number.

    Raises InputError if the shards were made with different inputs or settings.
    """
    stored = [tables.read_provenance(path) for path in rollout_shards]
    other = next((path for path, made in zip(rollout_shards, stored, strict=True) if made != stored[0]), None)
    if other is not None:
        raise InputError(f"the shards {rollout_shards[0]} and {other} were made differently; make all of them again")
    provenance = Provenance.parse(stored[0])
    for name in ("shards", "generation_tokens"):  # which samples a shard has; the joined files are the same
        provenance.settings.pop(name, None)
    return provenance


class Shards:
    """Reads the rollouts and pooled states of all shards together, in the order of sample_id.

    Raises InputError if the two files of a shard do not hold the same samples.
    """

    def __init__(self, rollout_shards: list[Path], hidden_shards: list[Path]) -> None:
        self.hidden_shards = hidden_shards
        shapes = [tensors.shapes(path, "sample_id", "hidden")["hidden"] for path in hidden_shards]
        self.counts = [shape[0] for shape in shapes]
        self.shape = (sum(self.counts), *shapes[0][1:])  # of all states, [n, G, d]
        self.streams = [Stream("rollouts", path, list(tables.TABLES["rollouts"].columns)) for path in rollout_shards]

    def windows(self) -> Iterator[tuple[pa.Table, np.ndarray, np.ndarray]]:
        """(rollouts table, sample_id [k], states [k, G, d]) of the next k = WINDOW samples, until none is left."""
        total, groups, _ = self.shape
        starts = [0] * len(self.counts)  # row of each shard's next sample
        for begin in range(0, total, splits.WINDOW):
            heads = [
                tensors.read_rows(path, "sample_id", start, min(start + splits.WINDOW, count))
                for path, start, count in zip(self.hidden_shards, starts, self.counts, strict=True)
            ]
            last = np.sort(np.concatenate(heads))[min(splits.WINDOW, total - begin) - 1]
            rows = [int(np.searchsorted(head, last, side="right")) for head in heads]
            sample_id = np.concatenate([head[:count] for head, count in zip(heads, rows, strict=True)])
            states = [
                tensors.read_rows(path, "hidden", start, start + count)
                for path, start, count in zip(self.hidden_shards, starts, rows, strict=True)
                if count
            ]
            parts = [stream.take(count * groups) for stream, count in zip(self.streams, rows, strict=True)]
            for shard, (part, head, count) in enumerate(zip(parts, heads, rows, strict=True)):
                if not np.array_equal(tables.numpy(part, "sample_id"), np.repeat(head[:count], groups)):
                    self._refuse(shard)
            table, order = pa.concat_tables(parts).sort_by(ORDER), np.argsort(sample_id)
            yield table, sample_id[order], np.concatenate(states)[order]
            starts = [start + count for start, count in zip(starts, rows, strict=True)]
        for shard, stream in enumerate(self.streams):
            if stream.take(1).num_rows:
                self._refuse(shard)

    def _refuse(self, shard: int) -> None:
        names = f"{self.streams[shard].path} and {self.hidden_shards[shard].name}"
        raise InputError(f"{names} beside it hold different samples; make them again")
