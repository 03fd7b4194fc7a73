"""Read a rollout some samples at a time: their hidden states, histories, targets and advantages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from minirec.data import splits
from minirec.errors import InputError
from minirec.storage import tables, tensors
from minirec.storage.stream import Stream

SAMPLES = ["sample_id", "target_row", "history_rows"]  # columns of a chunk
ROLLOUTS = ["sample_id", "completion", "advantage"]
PROMPTS, COMPLETIONS = ["history_rating", "history_age_ms"], ["tokens"]  # more columns, where the texts are read


@dataclass(frozen=True)
class Chunk:
    """k consecutive samples of a rollout; `begin` is the position of the first among all samples."""

    begin: int
    hidden: Tensor  # [k, G, d], before whitening
    samples: pa.Table  # k rows
    rollouts: pa.Table  # k G rows
    advantage: Tensor  # [k, G]

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def sample_id(self) -> np.ndarray:
        """Sample ids [k], int64."""
        return tables.numpy(self.samples, "sample_id")

    @property
    def target(self) -> Tensor:
        """Catalogue rows of the targets [k]."""
        return torch.from_numpy(tables.numpy(self.samples, "target_row").astype(np.int64))

    @property
    def history(self) -> Tensor:
        """Catalogue rows of the histories [k, w], padded with -1."""
        return torch.from_numpy(splits.padded(self.samples["history_rows"].combine_chunks()))


def chunks(
    samples: Path, rollouts: Path, hidden: Path, count: int, size: int, advantage: str, texts: bool = False
) -> Iterator[Chunk]:
    """Read the `count` samples of a rollout, `size` at a time.

    advantage: "one" sets all to 1, "group" reads the rollout's. texts: also read what prompts and completions are made
    of. Raises InputError if the files hold different samples.
    """
    mismatch = InputError(f"{rollouts} and {hidden} hold different samples; run rollout again")
    sample_rows = Stream("samples", samples, SAMPLES + (PROMPTS if texts else []))
    rollout_rows = Stream("rollouts", rollouts, ROLLOUTS + (COMPLETIONS if texts else []))
    for begin in range(0, count, size):
        end = min(begin + size, count)
        sample_id = tensors.read_rows(hidden, "sample_id", begin, end)
        states = torch.from_numpy(tensors.read_rows(hidden, "hidden", begin, end))
        groups = states.shape[1]
        table = sample_rows.until(int(sample_id[-1]))
        table = table.take(tables.rows_of(tables.numpy(table, "sample_id"), sample_id, samples))
        completions = rollout_rows.take(groups * len(sample_id))
        if not np.array_equal(tables.numpy(completions, "sample_id"), np.repeat(sample_id, groups)):
            raise mismatch
        shaped = torch.ones(len(sample_id), groups)
        if advantage == "group":
            shaped = torch.from_numpy(tables.numpy(completions, "advantage").copy()).view(-1, groups)
        yield Chunk(begin, states, table, completions, shaped)
    if rollout_rows.take(1).num_rows:
        raise mismatch
