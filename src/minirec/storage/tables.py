"""Read and write tables as Parquet, checked against their declarations in `columns`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minirec.errors import InputError, one_line
from minirec.storage import artefact
from minirec.storage.artefact import Provenance
from minirec.storage.columns import TABLES, TYPES, Column

METADATA_KEY = b"minirec"


def write(name: str, table: pa.Table, path: Path, provenance: Provenance) -> None:
    """Check a table and write it atomically; raises ValueError if it does not fit its declaration in `columns`."""
    with writer(name, path, provenance) as append:
        append(table)


@contextlib.contextmanager
def writer(name: str, path: Path, provenance: Provenance) -> Iterator[Callable[[pa.Table], None]]:
    """Write a table in parts: `with writer(...) as append: append(part)`; each part becomes a row group.

    Raises ValueError as `write` does, but notices repeated keys within a part only.
    """
    schema = TABLES[name].schema()
    with (
        artefact.writing_with_digest(path, provenance) as (partial, record),
        pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as out,
    ):
        out.add_key_value_metadata({METADATA_KEY: record})  # not as the schema's: that would be stored encoded, too

        def append(part: pa.Table) -> None:
            problem = _problem(name, part, f"the new {path.name}")
            if problem:
                raise ValueError(problem)
            out.write_table(part.select(schema.names).cast(schema), row_group_size=max(1, part.num_rows))

        yield append


def read(name: str, path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a table, or some columns of it, in the declared types; optional columns that are absent become nulls.

    Raises InputError if the file is missing or damaged, or does not fit its declaration.
    """
    declared = TABLES[name]
    names = columns or list(declared.columns)
    with opened(path, declared.foreign) as (file, _):
        table = file.read(columns=present_columns(name, path, file, columns))
    for column in names:
        if column not in table.column_names:
            kind = TYPES[declared.columns[column].type]
            table = table.append_column(pa.field(column, kind), pa.nulls(table.num_rows, kind))
    table = table.select(names)
    check(name, table, path, columns)
    schema = declared.schema()
    return table.cast(pa.schema([schema.field(column) for column in names]))


def check(name: str, table: pa.Table, path: Path, columns: list[str] | None = None) -> None:
    """Raise InputError if a table that was read from `path` does not fit its declaration."""
    problem = _problem(name, table, str(path), columns)
    if problem:
        raise InputError(problem)


def present_columns(name: str, path: Path, file: pq.ParquetFile, columns: list[str] | None) -> list[str]:
    """Which of `columns`, None: all, the file has; raises InputError if one is missing or the file has unknown ones."""
    declared = TABLES[name]
    present = set(file.schema_arrow.names)
    required = [c for c in (columns or declared.columns) if c in present or not declared.columns[c].optional]
    missing = [c for c in required if c not in present]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}; a table of {name} needs {', '.join(declared.columns)}")
    unknown = present - set(declared.columns)
    if unknown and not declared.foreign:
        raise InputError(f"{path} has the column {min(unknown)}, which is not part of {name}; make the file again")
    return required


def read_provenance(path: Path) -> dict[str, Any]:
    """The record of what made a table, without its digest; raises InputError if the file is damaged."""
    with opened(path, foreign=False) as (_, record):
        return {name: value for name, value in record.items() if name != "digest"}


@contextlib.contextmanager
def opened(path: Path, foreign: bool, **options: Any) -> Iterator[tuple[pq.ParquetFile, dict[str, Any]]]:
    """Open a Parquet file and read its record, after its digest was verified; a `foreign` file may have no record.

    Raises InputError if the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that makes it")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, **options) as file:
            raw = (file.metadata.metadata or {}).get(METADATA_KEY)
            record = {} if raw is None else artefact.parse_record(raw, path)
            if raw is not None or not foreign or artefact.has_lost_record(path):
                artefact.verify(path, record)
            yield file, record
    except (pa.ArrowException, OSError, ValueError) as error:
        advice = "make or copy it again"
        if path.suffix != ".parquet":
            advice = "write it as Parquet; for rollouts in other formats there is minirec pick"
        raise InputError(f"{path} is not a readable Parquet file ({one_line(error)}); {advice}") from error


def numpy(table: pa.Table, column: str) -> np.ndarray:
    """A column without nulls as a NumPy array [n]."""
    return table[column].combine_chunks().to_numpy(zero_copy_only=False)


def rows_of(sample_id: np.ndarray, wanted: np.ndarray, path: Path) -> np.ndarray:
    """Rows [k] at which `sample_id` [n] has the wanted samples [k]; raises InputError if it lacks one.

    path: the file that the error message names.

    >>> rows_of(np.array([7, 3, 9]), np.array([9, 7]), Path("scores.parquet"))
    array([2, 0])
    """
    order = np.argsort(sample_id, kind="stable")
    slots = np.searchsorted(sample_id, wanted, sorter=order).clip(max=max(len(sample_id) - 1, 0))
    rows = order[slots] if len(sample_id) else slots
    if len(wanted) and (len(sample_id) == 0 or (bad := sample_id[rows] != wanted).any()):
        first = wanted[0] if len(sample_id) == 0 else wanted[bad][0]
        raise InputError(f"{path} has no sample {first}; make it again from the same samples")
    return rows


def _problem(name: str, table: pa.Table, where: str, columns: list[str] | None = None) -> str | None:
    """One sentence on how a table does not fit its declaration; None if it fits."""
    declared = TABLES[name]
    expected = columns or list(declared.columns)
    if set(table.column_names) != set(expected):
        odd = sorted(set(table.column_names) ^ set(expected))
        return f"{where} and the table {name} differ in the column {odd[0]}"
    for column in expected:
        problem = _column_problem(declared.columns[column], table[column])
        if problem:
            return f"{where}: column {column} {problem}"
    if declared.key and set(declared.key) <= set(expected):
        repeated = _repeated_key(table, declared.key)
        if repeated:
            return f"{where}: {repeated} occurs twice, but {', '.join(declared.key)} must be unique in {name}"
    return None


def _column_problem(column: Column, values: pa.ChunkedArray) -> str | None:
    """How values do not fit the declaration of their column, as the end of a sentence; None if they fit."""
    kind = TYPES[column.type]
    if values.type != kind:
        try:
            values = values.cast(kind)
        except pa.ArrowException as error:
            return f"is {values.type}, not {kind} ({one_line(error)})"
    if values.null_count and not column.nullable:
        return f"has {values.null_count} nulls, the first in row {pc.index(pc.is_null(values), True).as_py()}"
    if pa.types.is_string(kind):
        try:
            values.validate(full=True)
        except pa.ArrowException:
            return "holds text that is not UTF-8; convert it first"
    if pa.types.is_floating(kind) and (bad := pc.index(pc.is_finite(values), False).as_py()) >= 0:
        return f"is {values[bad].as_py()} in row {bad}; only finite numbers are allowed"
    for bound, beyond in ((column.low, pc.less), (column.high, pc.greater)):
        if bound is not None and (bad := pc.index(beyond(values, bound), True).as_py()) >= 0:
            return f"is {values[bad].as_py()} in row {bad}; allowed is {column.low} to {column.high}"
    if column.values:
        bad = pc.index(pc.is_in(values, pa.array(column.values)), False).as_py()
        if bad >= 0:
            return f"is {values[bad].as_py()!r} in row {bad}; allowed is {', '.join(column.values)}"
    return None


def _repeated_key(table: pa.Table, key: tuple[str, ...]) -> str | None:
    """The first key that several rows share, as text; None if there is none."""
    counts = table.select(list(key)).group_by(list(key)).aggregate([([], "count_all")])
    if counts.num_rows == table.num_rows:
        return None
    first = counts.filter(pc.greater(counts["count_all"], 1)).select(list(key)).slice(0, 1).to_pylist()[0]
    return " / ".join(f"{name} {value}" for name, value in first.items())
