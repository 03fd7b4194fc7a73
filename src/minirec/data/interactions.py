"""The two files of a data set, checked and encoded by DuckDB within `prepare.memory`, before METHOD 1 begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from minirec.errors import InputError
from minirec.experiment.config import Filter, Prepare
from minirec.storage import tables

CHUNK = 250_000  # rows a row group


@dataclass(frozen=True)
class Events:
    """Interactions as columns; user and item are ranks of their ids, so their order is the ids' order."""

    user: np.ndarray  # [n] int32
    item: np.ndarray  # [n] int32
    timestamp: np.ndarray  # [n] int64, ms
    rating: np.ndarray  # [n] float32, NaN where unknown

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Events:
        """These rows, or the rows where a mask is true."""
        return Events(self.user[rows], self.item[rows], self.timestamp[rows], self.rating[rows])


def read(engine: duckdb.DuckDBPyConnection, interactions: Path, items: Path) -> tuple[Events, pa.Array, dict[str, int]]:
    """Check and encode both files; the engine then holds `goods` (code, item_id) and a view `listed` of the items."""
    for path, name in ((items, "items"), (interactions, "interactions")):
        _check(engine, path, name)
    have = set(pq.read_schema(items).names)
    optional = ["categories", "store", "description", "price", "average_rating", "rating_number"]
    columns = ", ".join(c if c in have else f"NULL AS {c}" for c in ["item_id", "title", *optional])
    with _asking(items):
        engine.read_parquet(str(items)).project(columns).create_view("listed")
        engine.execute(
            "CREATE TABLE goods AS SELECT (row_number() OVER (ORDER BY item_id) - 1)::INTEGER AS code, item_id "
            "FROM listed ORDER BY code"
        )
    again = engine.execute(
        "SELECT item_id FROM goods GROUP BY item_id HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    ).fetchone()
    if again:
        raise InputError(f"{items}: item_id {again[0]} occurs twice; keep one row an item")
    rating = "rating" if "rating" in pq.read_schema(interactions).names else "NULL"
    with _asking(interactions):
        engine.execute(
            "CREATE TABLE people AS SELECT (row_number() OVER (ORDER BY user_id) - 1)::INTEGER AS code, user_id "
            "FROM (SELECT DISTINCT user_id FROM read_parquet(?)) ORDER BY code",
            [str(interactions)],
        )
        lost = engine.execute(
            "SELECT i.item_id, i.file_row_number FROM read_parquet(?, file_row_number = true) i "
            "ANTI JOIN goods USING (item_id) ORDER BY 2 LIMIT 1",
            [str(interactions)],
        ).fetchone()
        if lost:
            raise InputError(f"{interactions}: item {lost[0]} in row {lost[1]} has no row in {items}; add it there")
        found = engine.execute(
            "SELECT p.code AS u, g.code AS i, i.timestamp::BIGINT AS t, i.file_row_number::INTEGER AS n, "
            f"{rating}::FLOAT AS r "
            "FROM read_parquet(?, file_row_number = true) i JOIN people p USING (user_id) JOIN goods g USING (item_id)",
            [str(interactions)],
        ).fetchnumpy()
        ids: pa.Table = engine.sql("SELECT user_id FROM people ORDER BY code").to_arrow_table()
        engine.execute("DROP TABLE people")
    order = np.lexsort((found.pop("n"), found["t"], found["u"])).astype(np.int32)
    rating_ = np.ma.filled(np.ma.asarray(found.pop("r"), dtype=np.float32), np.nan)[order]
    rating_[~np.isfinite(rating_)] = np.nan
    user, item, time = (np.ma.getdata(found.pop(column))[order] for column in ("u", "i", "t"))
    unknown = int(np.isnan(rating_).sum())
    return Events(user, item, time, rating_), ids["user_id"].combine_chunks(), {"interactions_without_rating": unknown}


def refused(engine: duckdb.DuckDBPyConnection, filter: Filter) -> tuple[np.ndarray, dict[str, int]]:
    """Mask [m] of the items a filter refuses, and how many for which reason (the first that applies)."""
    rules = {
        "without_title": (filter.title, "trim(title) = ''"),
        "long_title": (
            filter.max_title_words is not None,
            f"len(string_split_regex(trim(title), '\\s+')) > {filter.max_title_words or 0}",
        ),
        "without_price": (filter.price, "price IS NULL OR NOT isfinite(price::DOUBLE)"),
    }
    case = " ".join(f"WHEN {test} THEN '{name}'" for name, (on, test) in rules.items() if on)
    if not case:
        count = engine.execute("SELECT count(*) FROM goods").fetchall()[0][0]
        return np.zeros(count, dtype=bool), {}
    found = engine.execute(
        f"SELECT coalesce(CASE {case} END, '') AS why FROM listed JOIN goods USING (item_id) ORDER BY code"
    ).fetchnumpy()["why"]
    reasons = np.asarray(found, dtype=str)
    return reasons != "", {name: int((reasons == name).sum()) for name, (on, _) in rules.items() if on}


def catalogue(
    engine: duckdb.DuckDBPyConnection, items: Path, codes: np.ndarray, count: np.ndarray, prepare: Prepare
) -> Iterator[pa.Table]:
    """catalogue.parquet in parts, of the items with these codes, ascending; count [m] is their popularity."""
    words = prepare.description_words
    lines = {
        "title": _line("Title", "title"),
        "average_rating": "'Rating: ' || printf('%.1f', average_rating::DOUBLE)",
        "rating_number": "'Number of ratings: ' || rating_number::BIGINT",
        "categories": _line("Categories", "categories"),
        "store": _line("Store", "store"),
        "description": _line("Description", "description", words),
    }
    text = ", ".join(lines[name] for name in prepare.item_fields)
    row = np.arange(len(codes), dtype=np.int32)
    kept = {"row": row, "code": codes.astype(np.int32), "popularity": count.astype(np.int64)}
    engine.register("kept", pa.table(kept))
    with _asking(items):
        found = engine.sql(
            f"SELECT row, item_id, {_clean('title')} AS title, concat_ws(chr(10), {text}) AS text, popularity "
            "FROM kept JOIN goods USING (code) JOIN listed USING (item_id) ORDER BY row"
        )
        for part in found.to_arrow_reader(CHUNK):
            yield pa.Table.from_batches([part])


def _check(engine: duckdb.DuckDBPyConnection, path: Path, name: str) -> None:
    """Raise InputError where a file is no Parquet file or breaks the table's schema."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; put your data there or fetch it")
    with tables.opened(path, foreign=True) as (file, _):
        schema = file.schema_arrow
    spec = tables.TABLES[name]
    for column, rule in spec.columns.items():
        if column not in schema.names:
            if rule.optional:
                continue
            raise InputError(f"{path} has no column {column}; {name} needs {_needed(name)}")
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        fits = text if rule.type == "str" else pa.types.is_integer(kind) if column == "timestamp" else number
        if not fits and not pa.types.is_null(kind):
            wanted = {"str": "text", "i64": "whole numbers"}.get(rule.type, "numbers")
            raise InputError(f"{path}: column {column} is {kind}, not {wanted}; convert it")
    tests = []
    for column, rule in spec.columns.items():
        if column in schema.names and not rule.nullable:
            tests.append((column, "has a null", f"{column} IS NULL"))
            if rule.low is not None:
                tests.append((column, "is negative", f"{column} < {rule.low}"))
    rows = "SELECT count(*) FROM read_parquet(?)"
    with _asking(path):
        if engine.execute(rows, [str(path)]).fetchall()[0][0] == 0:
            raise InputError(f"{path} is empty; {name} needs at least one row")
        case = " ".join(f"WHEN {test} THEN {i}" for i, (_, _, test) in enumerate(tests))
        bad = engine.execute(
            f"SELECT CASE {case} END AS why, file_row_number FROM read_parquet(?, file_row_number = true) "
            "WHERE why IS NOT NULL ORDER BY 2 LIMIT 1",
            [str(path)],
        ).fetchone()
    if bad:
        column, what, _ = tests[bad[0]]
        raise InputError(f"{path}: column {column} {what} in row {bad[1]}; correct or remove the row")


def _needed(name: str) -> str:
    return ", ".join(column for column, rule in tables.TABLES[name].columns.items() if not rule.optional)


class _asking:
    """Turn the engine's errors about a file into one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, duckdb.Error):
            what = " ".join(str(error).split())[:200]
            hint = "text must be UTF-8" if "UTF" in what or "encoding" in what else "make or copy it again"
            raise InputError(f"{self.path} cannot be read ({what}); {hint}") from error


def _clean(column: str) -> str:
    """SQL: text on one line, without control characters."""
    return f"trim(regexp_replace({column}, '[[:cntrl:]\\s]+', ' ', 'g'))"


def _line(label: str, column: str, words: int | None = None) -> str:
    """SQL: `Label: text`, null where there is no text."""
    text = _clean(column)
    if words is not None:
        text = f"array_to_string(list_slice(string_split({text}, ' '), 1, {words}), ' ')"
    return f"'{label}: ' || nullif({text}, '')"
