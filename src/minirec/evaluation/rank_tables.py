"""Ranks that a recommender gives the targets of the test samples, and the files that hold them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minirec.data.splits import padded
from minirec.errors import InputError
from minirec.storage import tables
from minirec.storage.artefact import Provenance

TOP = 10  # how many recommended items of a sample are recorded


@dataclass(frozen=True)
class Ranks:
    """Rank of each sample's target in the whole catalogue, and the items that are recommended."""

    sample_id: np.ndarray  # [n]
    rank: np.ndarray  # [n], 1 is best
    top: np.ndarray  # [n, k] recommended catalogue rows, best first, padded with -1 if fewer remain

    def columns(self) -> dict[str, object]:
        """The columns of the table; `top` as lists without padding."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return arrays | {"top": [rows[rows >= 0] for rows in self.top]}


@dataclass(frozen=True)
class PolicyRanks(Ranks):
    """Ranks by a policy after greedily decoded reasoning, and also after an empty completion."""

    rank_without_reasoning: np.ndarray  # [n]


def write_ranks(ranks: PolicyRanks, path: Path, provenance: Provenance) -> None:
    """Write a policy's ranks.parquet."""
    tables.write("ranks", pa.table(ranks.columns(), tables.TABLES["ranks"].schema()), path, provenance)


def write_baselines(baselines: dict[str, Ranks], path: Path, provenance: Provenance) -> None:
    """Write baselines.parquet: the ranks of every baseline, one below the other."""
    schema = tables.TABLES["baselines"].schema()
    parts = [pa.table({"baseline": [name] * len(b.rank)} | b.columns(), schema) for name, b in baselines.items()]
    tables.write("baselines", pa.concat_tables(parts), path, provenance)


def read_ranks(path: Path, sample_id: np.ndarray | None = None) -> PolicyRanks:
    """Read ranks.parquet in the order of sample_id.

    sample_id [n], ascending: the expected samples; raises InputError if the file holds others. None: any samples.
    """
    table = tables.read("ranks", path).sort_by("sample_id")
    ranks = _ranks(table, path, sample_id)
    return PolicyRanks(ranks.sample_id, ranks.rank, ranks.top, tables.numpy(table, "rank_without_reasoning"))


def read_baselines(path: Path, sample_id: np.ndarray) -> dict[str, Ranks]:
    """Read baselines.parquet: the ranks of every baseline by name, checked as in `read_ranks`."""
    table = tables.read("baselines", path).sort_by("sample_id")
    names = pc.unique(table["baseline"]).to_pylist()
    return {name: _ranks(table.filter(pc.equal(table["baseline"], name)), path, sample_id) for name in names}


def _ranks(table: pa.Table, path: Path, expected: np.ndarray | None) -> Ranks:
    """The ranks of a table; raises InputError if `expected` [n] is given and the table has other test samples."""
    sample_id = tables.numpy(table, "sample_id")
    if expected is not None and not np.array_equal(sample_id, expected):
        raise InputError(f"{path} is of other test samples; run the stage that makes it again")
    return Ranks(sample_id, tables.numpy(table, "rank"), padded(table["top"].combine_chunks()))
