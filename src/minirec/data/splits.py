"""Load the samples of train, valid or test: each one's prompt text, target, and history, which is masked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minirec.data.titles import history_lines
from minirec.errors import InputError
from minirec.storage import tables
from minirec.storage.stream import Stream

WINDOW = 8_192  # how many samples `windows` loads at a time


@dataclass(frozen=True)
class Split:
    """Samples of a split, in the order of sample_id unless another was requested."""

    sample_id: np.ndarray  # [n] int64
    target: np.ndarray  # [n] int64, catalogue rows
    history: np.ndarray  # [n, longest] int64, catalogue rows padded with -1; they are never recommended
    bodies: Sequence[str]  # [n] the history as text, as it stands in the prompt

    def __len__(self) -> int:
        return len(self.sample_id)

    def take(self, rows: Sequence[int]) -> Split:
        """The samples at these row numbers, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        bodies = [self.bodies[row] for row in index]
        return Split(self.sample_id[index], self.target[index], self.history[index], bodies)

    def draw(self, count: int | None, seed: int) -> Split:
        """At most `count` of the samples, drawn at random, in their order; all if it is None."""
        if count is None or count >= len(self):
            return self
        rows = np.random.default_rng(seed).choice(len(self), count, replace=False)
        return self.take(np.sort(rows).tolist())


def load(samples: Path, catalogue: Path, split: str, prompt_history: int, chosen: np.ndarray | None = None) -> Split:
    """Read one split: train, valid or test.

    prompt_history: how many items of the history the prompt lists, the latest ones. chosen: read only these sample ids,
    in this order. Raises InputError if the split is empty, lacks a chosen sample, or refers beyond the catalogue.
    """
    table = tables.read("samples", samples)
    table = table.filter(pc.equal(table["split"], split)).sort_by("sample_id")
    if table.num_rows == 0:
        raise InputError(f"{samples} has no {split} samples; use more interactions")
    if chosen is not None:
        ids = tables.numpy(table, "sample_id")
        missing = np.setdiff1d(chosen, ids)
        if len(missing):
            raise InputError(f"sample {missing[0]} is not among the {split} samples of {samples}; select again")
        table = table.take(np.searchsorted(ids, chosen))
    return of_table(table, titles(catalogue), prompt_history, samples, catalogue)


def windows(samples: Path, catalogue: Path, split: str, prompt_history: int) -> Iterator[Split]:
    """Yield a split in parts of WINDOW samples, so that memory does not grow with their number; see `load`."""
    names = titles(catalogue)
    stream = Stream("samples", samples, list(tables.TABLES["samples"].columns), split)
    while (table := stream.take(WINDOW)).num_rows:
        yield of_table(table, names, prompt_history, samples, catalogue)


def count(samples: Path, split: str) -> int:
    """Number of samples in a split; raises InputError if there are none."""
    stream = Stream("samples", samples, ["sample_id", "split"], split)
    total = 0
    while rows := stream.take(WINDOW).num_rows:
        total += rows
    if not total:
        raise InputError(f"{samples} has no {split} samples; use more interactions")
    return total


def sample_ids(samples: Path, split: str) -> np.ndarray:
    """The sample ids [n] of a split, ascending."""
    table = tables.read("samples", samples, ["sample_id", "split"])
    return np.sort(tables.numpy(table.filter(pc.equal(table["split"], split)), "sample_id"))


def users(samples: Path, sample_id: np.ndarray) -> np.ndarray:
    """Number of the user, from 0, of each of these samples [n]; raises InputError if the file lacks one."""
    table = tables.read("samples", samples, ["sample_id", "user_id"])
    chosen = table["user_id"].take(tables.rows_of(tables.numpy(table, "sample_id"), sample_id, samples))
    return pc.dictionary_encode(chosen.combine_chunks()).indices.to_numpy()


def titles(catalogue: Path) -> list[str]:
    """Titles [m] of the catalogue's items, by row."""
    return tables.read("catalogue", catalogue, ["row", "title"]).sort_by("row")["title"].to_pylist()


def of_table(table: pa.Table, titles: list[str], prompt_history: int, samples: Path, catalogue: Path) -> Split:
    """Make a Split from rows of samples.parquet; raises InputError if one refers to a row beyond the catalogue.

    titles: by catalogue row. prompt_history: see `load`. samples, catalogue: the files that the error message names.
    """
    history = padded(table["history_rows"].combine_chunks())
    target = tables.numpy(table, "target_row").astype(np.int64)
    if max(target.max(), history.max()) >= len(titles):
        raise InputError(
            f"{samples} refers to row {max(target.max(), history.max())}, beyond {catalogue}; run prepare again"
        )
    bodies = list(_bodies(table, titles, prompt_history))
    return Split(tables.numpy(table, "sample_id"), target, history, bodies)


def catalogue_texts(catalogue: Path) -> list[str]:
    """Texts [m] of the catalogue's items for the prompts about them, by row."""
    return tables.read("catalogue", catalogue, ["row", "text"]).sort_by("row")["text"].to_pylist()


def padded(lists: pa.ListArray) -> np.ndarray:
    """Lists of whole numbers as an int64 matrix [n, longest], padded right with -1.

    >>> padded(pa.array([[4, 5], [], [6]]))
    array([[ 4,  5],
           [-1, -1],
           [ 6, -1]])
    """
    offsets, values = np.asarray(lists.offsets), np.asarray(lists.values)
    lengths = np.diff(offsets)
    out = np.full((len(lengths), max(1, lengths.max(initial=0))), -1, dtype=np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = values[offsets[0] : offsets[-1]]
    return out


def _bodies(table: pa.Table, titles: list[str], count: int) -> Iterator[str]:
    """The last `count` items of each history, as text for the prompt."""
    columns = (table[name].to_pylist() for name in ("history_rows", "history_rating", "history_age_ms"))
    for rows, ratings, ages in zip(*columns, strict=True):
        yield history_lines([titles[row] for row in rows[-count:]], ratings[-count:], ages[-count:])
