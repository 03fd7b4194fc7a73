"""The training samples as sequences of items, for recommenders that learn from which item follows which (METHOD 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minirec.data.splits import padded
from minirec.storage import tables


@dataclass(frozen=True)
class Sequences:
    """The n training samples, each as its history and then its target.

    Samples of a user overlap. A step, from one interaction of a user to the next, belongs to one sample alone: of those
    that hold it, the one with the longest history before it.
    """

    items: np.ndarray  # [n, w + 1] catalogue rows, padded right with -1
    own: np.ndarray  # [n, w] whether the step from items[:, i] to items[:, i + 1] belongs to the sample

    @property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """All steps, each once: catalogue rows of the item [k] and of the item that followed it [k]."""
        return self.items[:, :-1][self.own], self.items[:, 1:][self.own]

    @property
    def target(self) -> np.ndarray:
        """Catalogue rows of the samples' targets [n]."""
        return self.items[np.arange(len(self.items)), (self.items >= 0).sum(1) - 1]


def training_sequences(samples: pa.Table) -> Sequences:
    """The sequences of the training samples in samples.parquet, in the order of sample_id."""
    train = samples.filter(pc.equal(samples["split"], "train")).sort_by("sample_id")
    user = pc.dictionary_encode(train["user_id"].combine_chunks()).indices.to_numpy()
    history, ages = padded(train["history_rows"].combine_chunks()), train["history_age_ms"].combine_chunks()
    length = (history >= 0).sum(1)
    places_before = np.maximum(length[:, None] - np.arange(history.shape[1]), 0)  # where only the order is known
    age = places_before if ages.flatten().null_count else padded(ages)
    end = np.arange(len(history)), length
    items = np.concatenate([history, np.full((len(history), 1), -1)], 1)
    times = np.concatenate([tables.numpy(train, "timestamp")[:, None] - age, np.zeros((len(history), 1), np.int64)], 1)
    items[end], times[end] = tables.numpy(train, "target_row"), tables.numpy(train, "timestamp")
    slot, row = np.nonzero((items[:, 1:] >= 0).T[::-1])  # the longest history first, as `unique` keeps the first
    slot = history.shape[1] - 1 - slot
    _, first = np.unique(
        np.stack([user[row], times[row, slot + 1], items[row, slot], items[row, slot + 1]], 1),
        axis=0,
        return_index=True,
    )
    own = np.zeros(history.shape, dtype=bool)
    own[row[first], slot[first]] = True
    return Sequences(items, own)
