"""Check, encode and filter a data set's two files by DuckDB, within a limit of memory (METHOD 1, filters)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from minirec.data.plain_text import plain
from minirec.data.times import milliseconds, require_plausible
from minirec.data.usable_rows import stored_unit, usable
from minirec.errors import InputError, one_line
from minirec.experiment.sections import Prepare
from minirec.experiment.sources import Filter, Format
from minirec.storage import user_files

CHUNK = 250_000  # rows of a row group


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


def read(
    engine: duckdb.DuckDBPyConnection, interactions: Path, items: Path, rules: Filter, form: Format
) -> tuple[Interactions, pa.Array, dict[str, Any]]:
    """The interactions, sorted by (user, time, row of the file), the users' ids [u] by code, and a report.

    The report says how many rows there are and how many are left out, by reason. Raises InputError if a file does not
    fit its declaration. Leaves in `engine` the table `item_codes` (code, item_id) and the view `listed_items`, which
    the functions below use.
    """
    with _reading(items):
        bad_items = usable(engine, user_files.load(engine, items, "items"), "items", form)
        _read_items(engine, items)
    with _reading(interactions):
        file = user_files.load(engine, interactions, "interactions")
        dropped = usable(engine, file, "interactions", form)
        dropped["of_unlisted_items"] = _unlisted(engine, interactions, items, rules)
        columns, users = _read_interactions(engine)
        unit = stored_unit(engine, file, form)
    order = np.lexsort((columns.pop("row"), columns["timestamp"], columns["user"])).astype(np.int32)
    rating = np.ma.filled(np.ma.asarray(columns.pop("rating"), dtype=np.float32), np.nan)[order]
    user, item, time = (np.ma.getdata(columns.pop(name))[order] for name in ("user", "item", "timestamp"))
    data = Interactions(user, item, time, rating)
    first = ~copies(data)
    report: dict[str, Any] = {
        "interactions": len(data) + sum(dropped.values()),
        "items": _count_items(engine),
        "users": len(users),
    }
    report |= {"bad_items": bad_items, "dropped_interactions": dropped | {"copies": int((~first).sum())}}
    data = data.take(first)
    if unit != "order" and len(data):
        report["implausible_times"] = require_plausible(data.timestamp, unit, interactions)
        data = replace(data, timestamp=milliseconds(data.timestamp, unit))
    return data, users, report


def copies(interactions: Interactions) -> np.ndarray:
    """Mask [n] of the interactions that repeat an earlier row: same user, item, time and rating.

    interactions: sorted by (user, time, row of the file).
    """
    same = (np.diff(interactions.user) == 0) & (np.diff(interactions.timestamp) == 0)
    tied = np.flatnonzero(np.concatenate([same, [False]]) | np.concatenate([[False], same]))
    rating = np.nan_to_num(interactions.rating[tied], nan=np.inf)
    keys = (interactions.user[tied], interactions.timestamp[tied], interactions.item[tied], rating)
    order = np.lexsort(keys)  # stable: of equal ones, the first row of the file comes first
    equal = np.logical_and.reduce(
        [np.diff(key[order]) == 0 if key is not rating else key[order][1:] == key[order][:-1] for key in keys]
    )
    mask = np.zeros(len(interactions), dtype=bool)
    mask[tied[order[1:][equal]]] = True
    return mask


def titles(items: Path) -> list[str]:
    """Titles of the items in a file, in its order."""
    with duckdb.connect() as engine, _reading(items):
        usable(engine, user_files.load(engine, items, "items"), "items", Format(cast=True))
        return [title for (title,) in engine.execute("SELECT title FROM items_rows ORDER BY row").fetchall()]


def _read_items(engine: duckdb.DuckDBPyConnection, items: Path) -> None:
    engine.create_function("plain", plain, ["VARCHAR"], "VARCHAR")
    cleaned = ", ".join(f"{_plain(c)} AS {c}" for c in ("title", "categories", "store", "description"))
    engine.execute(f"CREATE VIEW listed_items AS SELECT * EXCLUDE (row) REPLACE ({cleaned}) FROM items_rows")
    engine.execute(
        "CREATE TABLE item_codes AS SELECT (row_number() OVER (ORDER BY item_id) - 1)::INTEGER AS code, item_id "
        "FROM listed_items ORDER BY code"
    )
    twice = engine.execute(
        "SELECT item_id FROM item_codes GROUP BY item_id HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    ).fetchone()
    if twice:
        raise InputError(f"{items}: item_id {twice[0]} occurs twice; keep one row an item")


def _count_items(engine: duckdb.DuckDBPyConnection) -> int:
    return int(engine.execute("SELECT count(*) FROM item_codes").fetchall()[0][0])


def _unlisted(engine: duckdb.DuckDBPyConnection, interactions: Path, items: Path, rules: Filter) -> int:
    """Number of interactions whose item has no row in `items`; raises InputError if these are not to be dropped."""
    count, different, item, row = engine.execute(
        "SELECT count(*), count(DISTINCT item_id), arg_min(item_id, row), min(row) FROM interactions_rows "
        "ANTI JOIN item_codes USING (item_id)"
    ).fetchall()[0]
    if count and not rules.listed:
        raise InputError(
            f"{interactions}: item {item} in row {row} has no row in {items}, as {different} items of {count} "
            "interactions; add them, or set datasets.NAME.filter.listed to true to drop these interactions"
        )
    return int(count)


def _read_interactions(engine: duckdb.DuckDBPyConnection) -> tuple[dict[str, Any], pa.Array]:
    """The columns user and item (as codes), timestamp, row and rating of the interactions, and user ids by code."""
    engine.execute(
        "CREATE TABLE user_codes AS SELECT (row_number() OVER (ORDER BY user_id) - 1)::INTEGER AS code, user_id "
        "FROM (SELECT DISTINCT user_id FROM interactions_rows) ORDER BY code"
    )
    columns = engine.execute(
        "SELECT u.code AS user, c.code AS item, timestamp, row::INTEGER AS row, rating FROM interactions_rows "
        "JOIN user_codes u USING (user_id) JOIN item_codes c USING (item_id)"
    ).fetchnumpy()
    users: pa.Table = engine.sql("SELECT user_id FROM user_codes ORDER BY code").to_arrow_table()
    engine.execute("DROP TABLE user_codes")
    return columns, users["user_id"].combine_chunks()


def rejected_items(engine: duckdb.DuckDBPyConnection, rules: Filter) -> tuple[np.ndarray, dict[str, int]]:
    """Mask [m] by code of the items that a filter drops, and how many by reason; the first that applies counts."""
    conditions = {
        "without_title": (rules.title, "trim(title) = ''"),
        "long_title": (
            rules.max_title_words is not None,
            f"len(string_split_regex(trim(title), '\\s+')) > {rules.max_title_words or 0}",
        ),
        "without_price": (rules.price, "price IS NULL"),
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
        "rating_number": "'Number of ratings: ' || rating_number",
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


def _plain(column: str) -> str:
    """SQL expression: the text of a column without HTML."""
    return f"CASE WHEN regexp_matches({column}, '[&<]') THEN plain({column}) ELSE {column} END"


def _line(label: str, column: str, words: int | None = None) -> str:
    """SQL expression: `Label: text` with the first `words` words, None: all, of a column; null if it has no text."""
    text = _clean(column)
    if words is not None:
        text = f"array_to_string(list_slice(string_split({text}, ' '), 1, {words}), ' ')"
    return f"'{label}: ' || nullif({text}, '')"
