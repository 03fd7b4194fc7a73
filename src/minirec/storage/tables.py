"""Every table: its columns with type, meaning and range. `write` and `read` are the only way in and out of a file.

A column is `name: type`, with `?` where it may be null. An artefact's metadata says what made it: see `Provenance`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minirec.errors import InputError
from minirec.storage import artefact
from minirec.storage.artefact import Provenance

METADATA_KEY = b"minirec"
TYPES = {
    "str": pa.string(),
    "i32": pa.int32(),
    "i64": pa.int64(),
    "f32": pa.float32(),
    "f64": pa.float64(),
    "bool": pa.bool_(),
    "list<i32>": pa.list_(pa.int32()),
    "list<i64>": pa.list_(pa.int64()),
    "list<f32?>": pa.list_(pa.float32()),
}


@dataclass(frozen=True)
class Column:
    """One column: type, whether null is allowed, meaning with unit, and the allowed range."""

    type: str
    meaning: str
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] | None = None
    nullable: bool = False
    optional: bool = False  # may be absent; read as nulls


@dataclass(frozen=True)
class Table:
    """A table: its columns in order, and the columns that identify a row."""

    columns: dict[str, Column]
    key: tuple[str, ...]
    foreign: bool = False  # made by others: further columns are ignored

    def schema(self) -> pa.Schema:
        """The Arrow schema."""
        return pa.schema([pa.field(n, TYPES[c.type], nullable=c.nullable) for n, c in self.columns.items()])


def _c(kind: str, meaning: str, low: float | None = None, high: float | None = None, **more: Any) -> Column:
    return Column(kind.removesuffix("?"), meaning, low, high, nullable=kind.endswith("?"), **more)


TABLES: dict[str, Table] = {
    "interactions": Table(
        {
            "user_id": _c("str", "user"),
            "item_id": _c("str", "item, a row of items"),
            "timestamp": _c("i64", "time, ms since 1970-01-01 UTC", 0),
            "rating": _c("f32?", "rating as given, e.g. 1-5 stars", optional=True),
        },
        key=(),  # (user, item, timestamp, position in the file) is unique by construction
        foreign=True,
    ),
    "items": Table(
        {
            "item_id": _c("str", "item"),
            "title": _c("str", "title, may be empty"),
            "categories": _c("str?", "categories, separated by commas", optional=True),
            "store": _c("str?", "store or brand", optional=True),
            "description": _c("str?", "description", optional=True),
            "price": _c("f32?", "price as listed", 0, optional=True),
            "average_rating": _c("f32?", "mean rating", optional=True),
            "rating_number": _c("i64?", "number of ratings", 0, optional=True),
        },
        key=("item_id",),
        foreign=True,
    ),
    "samples": Table(
        {
            "sample_id": _c("i64", "rank by (target timestamp, user, item) before any draw", 0),
            "split": _c("str", "split by time", values=("train", "valid", "test")),
            "user_id": _c("str", "user"),
            "target": _c("i32", "catalogue row to predict", 0),
            "history": _c("list<i32>", "catalogue rows of the earlier items, oldest first"),
            "history_rating": _c("list<f32?>", "ratings of the history"),
            "history_age": _c("list<i64>", "time before the target, ms"),
            "timestamp": _c("i64", "time of the target, ms since 1970-01-01 UTC", 0),
        },
        key=("sample_id",),
    ),
    "catalogue": Table(
        {
            "row": _c("i32", "row in the item table", 0),
            "item_id": _c("str", "item"),
            "title": _c("str", "title"),
            "text": _c("str", "what the item prompt says"),
            "popularity": _c("i64", "interactions in the training samples' targets and histories", 0),
        },
        key=("row",),
    ),
    "rollouts": Table(
        {
            "sample_id": _c("i64", "sample", 0),
            "completion": _c("i32", "0 to G-1", 0),
            "reward": _c("f32", "(1 - beta) NDCG + beta pi", 0, 1),
            "ndcg": _c("f32", "1 / log2(1 + rank), 0 beyond the cutoff", 0, 1),
            "pi": _c("f32", "probability of the target under the item softmax", 0, 1),
            "hit": _c("bool", "rank within the cutoff"),
            "rank": _c("i32", "rank of the target, 1 is best", 1),
            "advantage": _c("f32", "reward standardised within the group"),
            "tokens": _c("list<i32>", "sampled token ids, forced marker not included"),
            "text": _c("str", "the completion"),
        },
        key=("sample_id", "completion"),
    ),
    "scores": Table(
        {
            "sample_id": _c("i64", "sample", 0),
            "mean_reward": _c("f64", "mean reward over the completions", 0, 1),
            "reward_std": _c("f64", "standard deviation of the rewards (ddof 1)", 0),
            "learnability": _c("f64", "Gaussian of the mean reward, min-max normalised", 0, 1),
            "representativeness": _c("f64", "cosine to the mean direction, min-max normalised", 0, 1),
            "gradient_norm": _c("f64", "length of the mean gradient, by what gradient.space says", 0),
            "hits": _c("i32", "completions whose rank is within the cutoff", 0),
        },
        key=("sample_id",),
    ),
    "selection": Table(
        {
            "position": _c("i32", "order of the picks, 0 is first", 0),
            "sample_id": _c("i64", "sample", 0),
            "value": _c("f64?", "V at the pick; null: picked without signals"),
            "mean_reward": _c("f64?", "mean reward of the pick; null: picked without rewards", 0, 1),
            "learnability": _c("f64?", "learnability of the pick", 0, 1),
            "representativeness": _c("f64?", "representativeness of the pick", 0, 1),
            "diversity": _c("f64?", "D~ at the pick; 1 for the first", 0, 1),
        },
        key=("sample_id",),
    ),
    "curriculum": Table(
        {
            "position": _c("i32", "order in training, 0 is first", 0),
            "sample_id": _c("i64", "sample", 0),
            "group": _c("i32", "group of the curriculum", 0),
            "mean_reward": _c("f64?", "mean reward of the proxy; null: ordered without signals", 0, 1),
        },
        key=("sample_id",),
    ),
    "history": Table(
        {
            "step": _c("i64", "optimiser step, from 1", 1),
            "epoch": _c("f32", "passes over the curriculum so far", 0),
            "loss": _c("f64", "token loss + item loss"),
            "token_loss": _c("f64", "clipped policy loss, mean over sampled tokens"),
            "item_loss": _c("f64", "clipped recommendation loss, mean over prompts"),
            "reward": _c("f64", "mean reward of the step's completions", 0, 1),
            "reward_std": _c("f64", "mean standard deviation within a group", 0),
            "gradient_norm": _c("f64", "global norm before clipping", 0),
            "learning_rate": _c("f64", "rate of the step", 0),
            "valid_ndcg": _c("f64?", "NDCG@10 on valid after the step; null: not evaluated", 0, 1),
            "seconds": _c("f64", "wall time of the step", 0),
            "seconds_generate": _c("f64", "of that, writing completions", 0),
            "seconds_items": _c("f64", "of that, item vectors", 0),
            "seconds_loss": _c("f64", "of that, forward and backward pass", 0),
            "sample_ids": _c("list<i64>", "samples of the step, in order"),
        },
        key=("step",),
    ),
    "ranks": Table(
        {
            "sample_id": _c("i64", "test sample", 0),
            "rank": _c("i32", "rank of the target after greedy reasoning", 1),
            "rank_without_reasoning": _c("i32", "rank of the target after an empty completion", 1),
            "top": _c("list<i32>", "the 10 catalogue rows recommended, best first"),
        },
        key=("sample_id",),
    ),
    "baselines": Table(
        {
            "baseline": _c("str", "recommender without a language model"),
            "sample_id": _c("i64", "test sample", 0),
            "rank": _c("i32", "rank of the target", 1),
            "top": _c("list<i32>", "the 10 catalogue rows recommended, best first"),
        },
        key=("baseline", "sample_id"),
    ),
    "comparison": Table(
        {
            "model": _c("str", "trained model"),
            "selector": _c("str", "model that judged the samples; none: no signals"),
            "method": _c("str", "method or variant"),
            "budget": _c("str", "samples trained on"),
            "seed": _c("i64", "seed of selection and training", 0),
            "metric": _c("str", "e.g. ndcg@10"),
            "value": _c("f64", "mean over the test samples", 0, 1),
            "low": _c("f64", "lower end of the bootstrap interval", 0, 1),
            "high": _c("f64", "upper end of the bootstrap interval", 0, 1),
            "train_seconds": _c("f64?", "time of the training", 0),
        },
        key=("model", "selector", "method", "budget", "seed", "metric"),
    ),
}


def write(name: str, table: pa.Table, path: Path, made: Provenance) -> None:
    """Check a table and write it beside `path`, then rename; raises ValueError where the table breaks its schema."""
    with writer(name, path, made) as append:
        append(table)


@contextlib.contextmanager
def writer(name: str, path: Path, made: Provenance) -> Iterator[Any]:
    """Write a table in parts, one row group a call: `with writer(...) as append: append(part)`.

    The key is checked within each part only.
    """
    spec = TABLES[name]
    schema = spec.schema()
    with (
        artefact.writing_with_digest(path, made) as (partial, record),
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
    """Read a table and check it against its schema; raises InputError with one sentence."""
    spec = TABLES[name]
    with opened(path, spec.foreign) as (file, _):
        table = file.read(columns=columns_in(name, path, file, columns))
    for column in columns or spec.columns:
        if column not in table.column_names:
            kind = TYPES[spec.columns[column].type]
            table = table.append_column(pa.field(column, kind), pa.nulls(table.num_rows, kind))
    table = table.select(columns or list(spec.columns))
    check(name, table, path, columns)
    schema = spec.schema()
    return table.cast(pa.schema([schema.field(name) for name in table.column_names]))


def check(name: str, table: pa.Table, path: Path, columns: list[str] | None = None) -> None:
    """Raise InputError, in one sentence, where a table read from a file breaks its schema."""
    problem = _problem(name, table, str(path), columns)
    if problem:
        raise InputError(problem)


def columns_in(name: str, path: Path, file: pq.ParquetFile, columns: list[str] | None) -> list[str]:
    """Which of the columns to read; raises InputError where one is missing or foreign."""
    spec = TABLES[name]
    present = set(file.schema_arrow.names)
    wanted = [c for c in (columns or spec.columns) if c in present or not spec.columns[c].optional]
    missing = [c for c in wanted if c not in present]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}; a table of {name} needs {', '.join(spec.columns)}")
    foreign = present - set(spec.columns)
    if foreign and not spec.foreign:
        raise InputError(f"{path} has the column {min(foreign)}, which is not part of {name}; make the file again")
    return wanted


def read_made(path: Path) -> dict[str, Any]:
    """What made a Parquet file of ours, without its digest; raises InputError where it is damaged."""
    with opened(path, foreign=False) as (_, record):
        return {name: value for name, value in record.items() if name != "digest"}


@contextlib.contextmanager
def opened(path: Path, foreign: bool, **how: Any) -> Iterator[tuple[pq.ParquetFile, dict[str, Any]]]:
    """A Parquet file and the record of what made it, the digest checked; `foreign` files may come without a record.

    Raises InputError where the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that makes it")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, **how) as file:
            raw = (file.metadata.metadata or {}).get(METADATA_KEY)
            record = {} if raw is None else artefact.record(raw, path)
            if raw is not None or not foreign or artefact.has_lost_record(path):
                artefact.verify(path, record)
            yield file, record
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable Parquet file ({_one_line(error)}); make or copy it again"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _problem(name: str, table: pa.Table, where: str, columns: list[str] | None = None) -> str | None:
    """What is wrong with a table, as one sentence, or None."""
    spec = TABLES[name]
    expected = columns or list(spec.columns)
    if set(table.column_names) != set(expected):
        odd = sorted(set(table.column_names) ^ set(expected))
        return f"{where} and the table {name} differ in the column {odd[0]}"
    for column in expected:
        problem = _column_problem(spec.columns[column], table[column])
        if problem:
            return f"{where}: column {column} {problem}"
    if spec.key and set(spec.key) <= set(expected):
        repeated = _repeated_key(table, spec.key)
        if repeated:
            return f"{where}: {repeated} occurs twice, but {', '.join(spec.key)} must be unique in {name}"
    return None


def _column_problem(column: Column, values: pa.ChunkedArray) -> str | None:
    kind = TYPES[column.type]
    if values.type != kind:
        try:
            values = values.cast(kind)
        except pa.ArrowException as error:
            return f"is {values.type}, not {kind} ({_one_line(error)})"
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
    counts = table.select(list(key)).group_by(list(key)).aggregate([([], "count_all")])
    if counts.num_rows == table.num_rows:
        return None
    first = counts.filter(pc.greater(counts["count_all"], 1)).select(list(key)).slice(0, 1).to_pylist()[0]
    return " / ".join(f"{name} {value}" for name, value in first.items())


def numpy(table: pa.Table, column: str) -> np.ndarray:
    """A column without nulls as one array."""
    return table[column].combine_chunks().to_numpy(zero_copy_only=False)
