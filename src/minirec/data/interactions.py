"""Check, encode and filter a data set's two files by DuckDB, within a limit of memory (METHOD 1, filters)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from minirec.errors import InputError, one_line
from minirec.experiment.config import Filter
from minirec.experiment.sections import Prepare
from minirec.storage import tables
from minirec.storage.columns import TABLES, Column

CHUNK = 250_000  # rows of a row group
OPTIONAL = ["categories", "store", "description", "price", "average_rating", "rating_number"]  # columns of items


@dataclass(frozen=True)
class Interactions:
    """Interactions as columns. Users and items have codes: the position of their id among the sorted ids."""

    user: np.ndarray  # [n] int32, codes
    item: np.ndarray  # [n] int32, codes
    timestamp: np.ndarray  # [n] int64, ms
    rating: np.ndarray  # [n] float32, NaN where unknown

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Interactions:
        """The interactions at these row numbers, or where this mask is true."""
        return Interactions(self.user[rows], self.item[rows], self.timestamp[rows], self.rating[rows])


def read(engine: duckdb.DuckDBPyConnection, interactions: Path, items: Path) -> tuple[Interactions, pa.Array]:
    """The interactions, sorted by (user, time, row of the file), and the users' ids [u] by code.

    Raises InputError if a file does not fit its declaration, or an item has no row in `items`. Leaves in `engine` the
    table `item_codes` (code, item_id) and the view `listed_items` of the file, which the functions below use.
    """
    for path, name in ((items, "items"), (interactions, "interactions")):
        _check_columns(path, name)
        _check_values(engine, path, name)
    _read_items(engine, items)
    return _read_interactions(engine, interactions, items)


def _read_items(engine: duckdb.DuckDBPyConnection, items: Path) -> None:
    present = set(pq.read_schema(items).names)
    columns = ", ".join(c if c in present else f"NULL AS {c}" for c in ["item_id", "title", *OPTIONAL])
    with _reading(items):
        engine.read_parquet(str(items)).project(columns).create_view("listed_items")
        engine.execute(
            "CREATE TABLE item_codes AS SELECT (row_number() OVER (ORDER BY item_id) - 1)::INTEGER AS code, item_id "
            "FROM listed_items ORDER BY code"
        )
    twice = engine.execute(
        "SELECT item_id FROM item_codes GROUP BY item_id HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    ).fetchone()
    if twice:
        raise InputError(f"{items}: item_id {twice[0]} occurs twice; keep one row an item")


def _read_interactions(
    engine: duckdb.DuckDBPyConnection, interactions: Path, items: Path
) -> tuple[Interactions, pa.Array]:
    rated = "rating" if "rating" in pq.read_schema(interactions).names else "NULL"
    with _reading(interactions):
        engine.execute(
            "CREATE TABLE user_codes AS SELECT (row_number() OVER (ORDER BY user_id) - 1)::INTEGER AS code, user_id "
            "FROM (SELECT DISTINCT user_id FROM read_parquet(?)) ORDER BY code",
            [str(interactions)],
        )
        unlisted = engine.execute(
            "SELECT i.item_id, i.file_row_number FROM read_parquet(?, file_row_number = true) i "
            "ANTI JOIN item_codes USING (item_id) ORDER BY 2 LIMIT 1",
            [str(interactions)],
        ).fetchone()
        if unlisted:
            raise InputError(
                f"{interactions}: item {unlisted[0]} in row {unlisted[1]} has no row in {items}; add it there"
            )
        columns = engine.execute(
            "SELECT u.code AS user, c.code AS item, i.timestamp::BIGINT AS timestamp, "
            f"i.file_row_number::INTEGER AS row, {rated}::FLOAT AS rating "
            "FROM read_parquet(?, file_row_number = true) i JOIN user_codes u USING (user_id) "
            "JOIN item_codes c USING (item_id)",
            [str(interactions)],
        ).fetchnumpy()
        users: pa.Table = engine.sql("SELECT user_id FROM user_codes ORDER BY code").to_arrow_table()
        engine.execute("DROP TABLE user_codes")
    order = np.lexsort((columns.pop("row"), columns["timestamp"], columns["user"])).astype(np.int32)
    rating = np.ma.filled(np.ma.asarray(columns.pop("rating"), dtype=np.float32), np.nan)[order]
    rating[~np.isfinite(rating)] = np.nan
    user, item, timestamp = (np.ma.getdata(columns.pop(name))[order] for name in ("user", "item", "timestamp"))
    return Interactions(user, item, timestamp, rating), users["user_id"].combine_chunks()


def rejected_items(engine: duckdb.DuckDBPyConnection, rules: Filter) -> tuple[np.ndarray, dict[str, int]]:
    """Mask [m] by code of the items that a filter drops, and how many by reason; the first that applies counts."""
    conditions = {
        "without_title": (rules.title, "trim(title) = ''"),
        "long_title": (
            rules.max_title_words is not None,
            f"len(string_split_regex(trim(title), '\\s+')) > {rules.max_title_words or 0}",
        ),
        "without_price": (rules.price, "price IS NULL OR NOT isfinite(price::DOUBLE)"),
    }
    active = {reason: condition for reason, (on, condition) in conditions.items() if on}
    first = "''"
    for reason, condition in reversed(active.items()):
        first = f"CASE WHEN {condition} THEN '{reason}' ELSE {first} END"
    columns = engine.execute(
        f"SELECT {first} AS reason FROM listed_items JOIN item_codes USING (item_id) ORDER BY code"
    ).fetchnumpy()
    reasons = np.asarray(columns["reason"], dtype=str)
    return reasons != "", {reason: int((reasons == reason).sum()) for reason in active}


def catalogue(
    engine: duckdb.DuckDBPyConnection, items: Path, codes: np.ndarray, popularity: np.ndarray, prepare: Prepare
) -> Iterator[pa.Table]:
    """Yield catalogue.parquet in parts; codes [m]: of its items, ascending; popularity [m]: of these items."""
    lines = {
        "title": _line("Title", "title"),
        "average_rating": "'Rating: ' || printf('%.1f', average_rating::DOUBLE)",
        "rating_number": "'Number of ratings: ' || rating_number::BIGINT",
        "categories": _line("Categories", "categories"),
        "store": _line("Store", "store"),
        "description": _line("Description", "description", prepare.description_words),
    }
    text = ", ".join(lines[name] for name in prepare.item_fields)
    row = np.arange(len(codes), dtype=np.int32)
    kept = {"row": row, "code": codes.astype(np.int32), "popularity": popularity.astype(np.int64)}
    engine.register("kept_items", pa.table(kept))
    with _reading(items):
        rows = engine.sql(
            f"SELECT row, item_id, {_clean('title')} AS title, concat_ws(chr(10), {text}) AS text, popularity "
            "FROM kept_items JOIN item_codes USING (code) JOIN listed_items USING (item_id) ORDER BY row"
        )
        for part in rows.to_arrow_reader(CHUNK):
            yield pa.Table.from_batches([part])


def _check_columns(path: Path, name: str) -> None:
    """Raise InputError if a file is no Parquet file, or its columns or their types are not those of table `name`."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; put your data there or fetch it")
    with tables.opened(path, foreign=True) as (file, _):
        schema = file.schema_arrow
    declared = TABLES[name].columns
    for column, rule in declared.items():
        if column in schema.names:
            _check_type(path, column, rule, schema.field(column).type)
        elif not rule.optional:
            needed = ", ".join(column for column, rule in declared.items() if not rule.optional)
            raise InputError(f"{path} has no column {column}; {name} needs {needed}")


def _check_type(path: Path, column: str, rule: Column, kind: pa.DataType) -> None:
    """Raise InputError if values of the Arrow type `kind` cannot be read as the column's type."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    fits = text if rule.type == "str" else pa.types.is_integer(kind) if column == "timestamp" else number
    if not fits and not pa.types.is_null(kind):
        expected = {"str": "text", "i64": "whole numbers"}.get(rule.type, "numbers")
        raise InputError(f"{path}: column {column} is {kind}, not {expected}; convert it")


def _check_values(engine: duckdb.DuckDBPyConnection, path: Path, name: str) -> None:
    """Raise InputError if a file has no rows, or for its first row with a null or a value out of range."""
    present = set(pq.read_schema(path).names)
    conditions = []
    for column, rule in TABLES[name].columns.items():
        if column in present and not rule.nullable:
            conditions.append((column, "has a null", f"{column} IS NULL"))
            if rule.low is not None:
                conditions.append((column, "is negative", f"{column} < {rule.low}"))
    with _reading(path):
        if engine.execute("SELECT count(*) FROM read_parquet(?)", [str(path)]).fetchall()[0][0] == 0:
            raise InputError(f"{path} is empty; {name} needs at least one row")
        case = " ".join(f"WHEN {condition} THEN {i}" for i, (_, _, condition) in enumerate(conditions))
        bad = engine.execute(
            f"SELECT CASE {case} END AS number, file_row_number FROM read_parquet(?, file_row_number = true) "
            "WHERE number IS NOT NULL ORDER BY 2 LIMIT 1",
            [str(path)],
        ).fetchone()
    if bad:
        column, problem, _ = conditions[bad[0]]
        raise InputError(f"{path}: column {column} {problem} in row {bad[1]}; correct or remove the row")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn DuckDB's errors about a file into one sentence."""
    try:
        yield
    except duckdb.Error as error:
        problem = one_line(error)
        hint = "text must be UTF-8" if "UTF" in problem or "encoding" in problem else "make or copy it again"
        raise InputError(f"{path} cannot be read ({problem}); {hint}") from error


def _clean(column: str) -> str:
    """SQL expression: the text of a column on one line, without control characters."""
    return f"trim(regexp_replace({column}, '[[:cntrl:]\\s]+', ' ', 'g'))"


def _line(label: str, column: str, words: int | None = None) -> str:
    """SQL expression: `Label: text` with the first `words` words, None: all, of a column; null if it has no text."""
    text = _clean(column)
    if words is not None:
        text = f"array_to_string(list_slice(string_split({text}, ' '), 1, {words}), ' ')"
    return f"'{label}: ' || nullif({text}, '')"
