"""Users for whom to recommend: their histories in a Parquet file, checked, and read a part at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from minirec.errors import InputError
from minirec.storage import tables
from minirec.storage.user_files import kind_of

PART = 1024  # users in memory at a time
ID, HISTORY, RATING, AGE = "user_id", "history", "history_rating", "history_age_ms"
LISTS = {  # columns of lists: the kinds of their values, and what to write
    HISTORY: (("text",), "lists of titles or item ids as text, oldest first"),
    RATING: (("number", "integer", "null"), "lists of numbers, null where unknown"),
    AGE: (("integer", "null"), "lists of whole milliseconds from each item to now, null where unknown"),
}
LOWEST = {RATING: -math.inf, AGE: 0}


@dataclass(frozen=True)
class User:
    """A row of the file."""

    user_id: str  # as given, or the number of the row
    history: list[str]  # titles or item ids, oldest first
    ratings: list[float | None]  # of these items; None: unknown
    ages: list[int | None]  # milliseconds from each of these items to now; None: unknown


def parts(path: Path) -> Iterator[list[User]]:
    """Yield the users of a file, at most PART at a time; raises InputError at the first that cannot be used."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a Parquet file of users")
    with tables.opened(path, foreign=True) as (file, _):
        kinds = {field.name: field.type for field in file.schema_arrow if field.name in (ID, *LISTS)}
        _require_kinds(path, kinds)
        rows: dict[str, int] = {}  # by user_id
        begin = 0
        for batch in file.iter_batches(PART, columns=list(kinds)):
            part = [_user(path, row, values, rows) for row, values in enumerate(batch.to_pylist(), begin)]
            yield part
            begin += len(part)


def _require_kinds(path: Path, kinds: dict[str, pa.DataType]) -> None:
    if HISTORY not in kinds:
        raise InputError(f"{path} has no column {HISTORY}; add it: {LISTS[HISTORY][1]}")
    if ID in kinds and kind_of(kinds[ID]) not in ("text", "integer"):
        raise InputError(f"{path}: column {ID} is {kinds[ID]}; write text or whole numbers")
    for name in LISTS.keys() & kinds:
        listed = pa.types.is_list(kinds[name]) or pa.types.is_large_list(kinds[name])
        if not listed or kind_of(kinds[name].value_type) not in LISTS[name][0]:
            raise InputError(f"{path}: column {name} is {kinds[name]}; write {LISTS[name][1]}")


def _user(path: Path, row: int, values: dict[str, Any], rows: dict[str, int]) -> User:
    """A row of the file; rows: of the users before it, to which it is added."""
    where = f"{path}, row {row}"
    if values.get(ID, row) is None:
        raise InputError(f"{where}: {ID} is null; give every user an id, or leave the column out")
    user_id = str(values.get(ID, row))
    if rows.setdefault(user_id, row) != row:
        raise InputError(f"{where}: {ID} {user_id} is also that of row {rows[user_id]}; write one row a user")
    history = values[HISTORY]
    if history is None or None in history:
        raise InputError(f"{where}: {HISTORY} is null or has a null; list titles or item ids, an empty list for none")
    beside: dict[str, list[Any]] = {}
    for name in (RATING, AGE):
        found = beside[name] = [None] * len(history) if values.get(name) is None else values[name]
        if len(found) != len(history):
            raise InputError(f"{where}: {name} has {len(found)} values for {len(history)} items; give one for each")
        bad = [value for value in found if value is not None and not (math.isfinite(value) and value >= LOWEST[name])]
        if bad:
            raise InputError(f"{where}: {name} has {bad[0]}; write {LISTS[name][1]}")
    return User(user_id, history, beside[RATING], beside[AGE])
