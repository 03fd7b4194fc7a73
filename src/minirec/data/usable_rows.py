"""Which rows of a data set's file can be used: columns, types, and rows that are left out (METHOD 1, files)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from minirec.errors import InputError
from minirec.experiment.sources import Format
from minirec.progress import log
from minirec.storage.columns import TABLES, Column
from minirec.storage.user_files import UserFile, kind_of

MAX_BAD_SHARE = 0.01  # more bad rows than that are no accident
UNKNOWN = "'', 'na', 'n/a', 'nan', 'none', 'null', '-', '—', 'inf', '-inf', 'infinity', '-infinity'"
SYNONYMS = {  # what others call a column, in small letters without signs
    "user_id": "user uid reviewer reviewerid customer client member account visitor session person",
    "item_id": "item iid movie asin parentasin product sku book isbn business article track song video news gmap game",
    "timestamp": "time ts t date datetime unixreviewtime reviewtime unixtime created createdat eventtime when",
    "rating": "score stars star overall rate preference",
    "title": "name headline",
    "description": "text summary",
    "categories": "category genre genres class maincategory",
    "store": "brand seller author",
}


@dataclass(frozen=True)
class Problem:
    """What can be wrong with a value: a condition in SQL, and how the sentence about it goes on."""

    column: str
    reason: str  # as it is counted, e.g. negative
    sentence: str
    condition: str
    drops: bool  # the row; else the value counts as unknown


def usable(engine: duckdb.DuckDBPyConnection, file: UserFile, name: str, form: Format) -> dict[str, int]:
    """Make the view `{name}_rows` of a file's usable rows in declared types; return the numbers of bad rows by reason.

    Raises InputError if a column is missing or of another type, if there are no rows, or too many bad ones. The view
    has the column `row`, the place in the file; columns that the file lacks are null.
    """
    _require_columns(file, name, form)
    values, problems = {}, []
    for column, rule in TABLES[name].columns.items():
        kind = kind_of(file.types.get(column, pa.null()))
        if column == "timestamp" and column not in file.types:
            values[column] = "row"
        elif kind == "null":
            values[column] = "NULL"
        else:
            values[column] = _value(engine, file, column, rule, kind)
        if column in file.types:
            problems += _problems(column, rule, values[column], file.typed)
    counts = _count(engine, file, name, problems)
    kept = " AND ".join(f"NOT coalesce({p.condition}, false)" for p in problems if p.drops) or "true"
    columns = ", ".join(
        f"{_or_unknown(column, rule, values[column])} AS {column}" for column, rule in TABLES[name].columns.items()
    )
    engine.execute(f"CREATE VIEW {name}_rows AS SELECT {columns}, row FROM {file.source} WHERE {kept}")
    return counts


def stored_unit(engine: duckdb.DuckDBPyConnection, file: UserFile, form: Format) -> str:
    """The unit of the times in the view interactions_rows: `time_unit`, or us where the file holds dates."""
    return "us" if form.time_unit != "order" and _holds_dates(engine, file) else form.time_unit


def price(column: str) -> str:
    """SQL expression: a price as text, such as `$1,299.00`, as a number; null if it is none.

    A price may have a dollar sign, a comma before each three digits, and spaces around it.
    """
    form = r"[\s\x{00A0}]*(US)?\$?[\s\x{00A0}]*([0-9]+|[0-9]{1,3}(,[0-9]{3})+)?(\.[0-9]+)?[\s\x{00A0}]*"
    digits = f"regexp_replace({column}, '[^0-9.]', '', 'g')"
    return f"CASE WHEN regexp_full_match({column}, '{form}') THEN TRY_CAST({digits} AS DOUBLE) END"


def _require_columns(file: UserFile, name: str, form: Format) -> None:
    """Raise InputError if a column is missing or has another type than its declaration; note what others call it."""
    declared = TABLES[name].columns
    optional = {column for column, rule in declared.items() if rule.optional}
    optional |= {"timestamp"} if form.time_unit == "order" else set()
    missing = [column for column in declared if column not in file.types]
    renames = {column: found for column in missing if (found := _other_name(column, file.types))}
    advice = ", ".join(f"`{found}` to {column}" for column, found in renames.items())
    if required := [column for column in missing if column not in optional]:
        needed = ", ".join(column for column in declared if column not in optional)
        hint = f"rename {advice}" if set(required) & set(renames) else f"{name} needs {needed}"
        raise InputError(f"{file.path} has no column {required[0]}; {hint}")
    if renames:
        log.info("%s: to have them used, rename %s", file.path, advice)
    for column, rule in declared.items():
        if column in file.types:
            _require_type(file, column, rule, form)


def _other_name(column: str, names: Iterable[str]) -> str | None:
    """The name among `names` that most likely means this column; None if none does."""
    declared = TABLES["interactions"].columns | TABLES["items"].columns
    plain = {re.sub("[^a-z0-9]", "", name.lower()): name for name in names if name not in declared}
    wanted = [column.replace("_", ""), *SYNONYMS.get(column, "").split()]
    for word in wanted:
        for ending in ("", "id", "token", "idtoken"):
            if word + ending in plain:
                return plain[word + ending]
    close = difflib.get_close_matches(wanted[0], list(plain), n=1, cutoff=0.7)
    return plain[close[0]] if close else None


def _require_type(file: UserFile, column: str, rule: Column, form: Format) -> None:
    kind = kind_of(file.types[column])
    allowed = ["integer"] if column == "timestamp" else ["text"] if rule.type == "str" else ["integer", "number"]
    more = {"timestamp": "time", "user_id": "integer", "item_id": "integer"}.get(column)
    if kind in [*allowed, "null", more if form.cast else ""] or not file.typed:
        return
    expected = {"str": "text"}.get(rule.type, "whole numbers" if column == "timestamp" else "numbers")
    remedy = "set datasets.NAME.cast to true, or convert it" if kind == more else "convert it"
    raise InputError(f"{file.path}: column {column} is {file.types[column]}, not {expected}; {remedy}")


def _value(engine: duckdb.DuckDBPyConnection, file: UserFile, column: str, rule: Column, kind: str) -> str:
    """SQL expression: a value in the declared type; null where it cannot be read."""
    if column == "timestamp":
        return _time(engine, file)
    if rule.type == "str":
        joined = f"array_to_string(TRY_CAST({column} AS JSON)::VARCHAR[], ', ')"
        listed = not file.typed and column in ("categories", "description")
        text = f"{column}::VARCHAR"
        return (
            f"CASE WHEN {column} LIKE '[%]' AND json_valid({column}) THEN {joined} ELSE {text} END" if listed else text
        )
    if kind == "text":
        return price(column) if column == "price" else f"TRY_CAST(trim({column}) AS DOUBLE)"
    return f"{column}::DOUBLE"


def _time(engine: duckdb.DuckDBPyConnection, file: UserFile) -> str:
    dates = _holds_dates(engine, file)
    return "epoch_us(TRY_CAST(timestamp AS TIMESTAMP))" if dates else "TRY_CAST(timestamp AS BIGINT)"


def _holds_dates(engine: duckdb.DuckDBPyConnection, file: UserFile) -> bool:
    """Whether the times are dates, by their type or, in a file without types, as more of them read as dates."""
    if file.typed or "timestamp" not in file.types:
        return kind_of(file.types.get("timestamp", pa.null())) == "time"
    dates, numbers = (f"count(TRY_CAST(timestamp AS {kind}))" for kind in ("TIMESTAMP", "BIGINT"))
    return bool(engine.execute(f"SELECT {dates} > {numbers} FROM {file.source}").fetchall()[0][0])


def _problems(column: str, rule: Column, value: str, typed: bool) -> list[Problem]:
    """What can be wrong with a column; a row without a required value is left out, an item without a title stays."""
    required = not rule.nullable
    drops = required and column != "title"
    found = []
    if required and (typed or column != "title"):  # an empty field of a text file is an empty title
        found.append(Problem(column, "missing", "has a null", f"{column} IS NULL", drops))
    if rule.type != "str":
        unknown = "" if required else f"AND lower(trim({column}::VARCHAR)) NOT IN ({UNKNOWN})"
        what = "is no time" if column == "timestamp" else "is no number"
        unread = f"{column} IS NOT NULL {unknown} AND {value} IS NULL"
        found.append(Problem(column, "unreadable", what, unread, drops))
    if rule.low is not None:
        negative = f"isfinite(({value})::DOUBLE) AND {value} < {rule.low}"
        found.append(Problem(column, "negative", "is negative", negative, drops))
    return found


def _or_unknown(column: str, rule: Column, value: str) -> str:
    """SQL expression: a value in the declared type; no title is '', and NaN, infinity or a negative count null."""
    if rule.type == "str":
        return f"coalesce({value}, '')" if column == "title" else f"({value})::VARCHAR"
    if column == "timestamp":
        return f"({value})::BIGINT"
    low = "" if rule.low is None else f" AND {value} >= {rule.low}"
    kind = "BIGINT" if rule.type == "i64" else "FLOAT"
    return f"CASE WHEN isfinite(({value})::DOUBLE){low} THEN TRY_CAST({value} AS {kind}) END"


def _count(engine: duckdb.DuckDBPyConnection, file: UserFile, name: str, problems: list[Problem]) -> dict[str, int]:
    """Numbers of bad rows by reason; raises InputError over the first if there are too many, or no rows at all."""
    case = " ".join(f"WHEN {problem.condition} THEN {number}" for number, problem in enumerate(problems))
    rows = engine.execute(
        f"SELECT CASE {case} END AS number, count(*), min(row) FROM {file.source} GROUP BY 1 ORDER BY 3"
    ).fetchall()
    total = file.unreadable + sum(count for _, count, _ in rows)
    if total == 0:
        raise InputError(f"{file.path} is empty; {name} needs at least one row")
    bad = [(problems[number], count, row) for number, count, row in rows if number is not None]
    counts = {f"{problem.column}_{problem.reason}": count for problem, count, _ in bad}
    counts |= {"unreadable_line": file.unreadable} if file.unreadable else {}
    first = f": column {bad[0][0].column} {bad[0][0].sentence} in row {bad[0][2]}" if bad else ""
    require_few(counts, total, f"{file.path}{first}")
    return dict(sorted(counts.items()))


def require_few(counts: dict[str, int], total: int, where: str, always: int = 0) -> None:
    """Raise InputError if bad rows, by reason, are more than MAX_BAD_SHARE of all, or all; `where` begins the sentence.

    always: this many bad rows are no error while others are good.
    """
    bad = sum(counts.values())
    if bad > max(MAX_BAD_SHARE * total, always) or bad == total > 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        raise InputError(
            f"{where}: more than {MAX_BAD_SHARE:.0%} of {total} rows are bad ({reasons}); correct or remove them"
        )
