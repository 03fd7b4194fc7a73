"""Files of a user's own data, as tables of DuckDB: Parquet in one file or a folder of parts, CSV, TSV or JSON lines."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from minirec.errors import InputError
from minirec.storage import tables
from minirec.storage.columns import TABLES

FORMATS = ("parquet", "csv", "csv.gz", "tsv", "tsv.gz", "jsonl", "jsonl.gz")
JSON_BYTES = 2**26  # of the longest line


@dataclass(frozen=True)
class UserFile:
    """A file as `source`, a table or expression of DuckDB with the column `row`, the place in the file from 0.

    types: of each column, text where the file stores no types (`typed`). unreadable: how many lines are no rows at all.
    """

    path: Path
    source: str
    types: dict[str, pa.DataType]
    unreadable: int = 0
    typed: bool = True


def find(folder: Path, name: str) -> Path | None:
    """The file or folder `name` with one of the endings FORMATS; None without one. Raises InputError for two."""
    found = [file for ending in FORMATS if (file := folder / f"{name}.{ending}").exists()]
    if len(found) > 1:
        raise InputError(f"{folder} has both {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def parts(path: Path) -> list[Path]:
    """The file itself, or a folder's files by name; names that begin with . or _ (Spark's _SUCCESS) are left out."""
    if not path.is_dir():
        return [path]
    kept = inside(path)
    if not kept or path.suffix != ".parquet":
        raise InputError(f"{path} is a folder, but no folder of Parquet parts; put one file there")
    return sorted(kept, key=lambda file: file.relative_to(path).parts)


def inside(folder: Path) -> list[Path]:
    """The files of a folder and those below it, but for names that begin with . or _, which are not data."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if not any(n.startswith((".", "_")) for n in file.relative_to(folder).parts)]


def load(engine: duckdb.DuckDBPyConnection, path: Path, name: str) -> UserFile:
    """Open a file that holds the table `name`; raises InputError if it is missing or in no known format."""
    if not path.exists():
        raise InputError(f"{path} does not exist; put your data there or fetch it")
    files = parts(path)
    ending = next((ending for ending in FORMATS if path.name.endswith(f".{ending}")), None)
    if ending is None:
        raise InputError(f"{path} is in no known format; its name must end in .{', .'.join(FORMATS)}")
    if ending == "parquet":
        return _parquet(path, files, name)
    return _json(engine, path, name) if "jsonl" in ending else _csv(engine, path, name)


def _parquet(path: Path, files: list[Path], name: str) -> UserFile:
    schemas, starts = [], [0]
    for file in files:
        with tables.opened(file, foreign=True) as (opened, _):
            schemas.append({field.name: field.type for field in opened.schema_arrow})
            starts.append(starts[-1] + opened.metadata.num_rows)
        for column in TABLES[name].columns:
            here, there = (schema.get(column, "missing") for schema in (schemas[-1], schemas[0]))
            if here != there:
                raise InputError(f"{file}: column {column} is {here}, but {there} in {files[0]}; write the parts anew")
    names = ", ".join(map(quoted, map(str, files)))
    source = (
        f"(SELECT {_declared(name, schemas[0])} {starts}[file_index::BIGINT + 1] + file_row_number AS row "
        f"FROM read_parquet([{names}], file_row_number = true, hive_partitioning = false))"
    )
    return UserFile(path, source, schemas[0])


def _csv(engine: duckdb.DuckDBPyConnection, path: Path, name: str) -> UserFile:
    header, delimiter = first_line(path), delimiter_of(path)
    names = next(csv.reader([header], delimiter=delimiter), [])
    if len(set(names)) < len(names) or not all(names):
        raise InputError(f"{path}: the first line must name every column once, but is {header[:100]!r}")
    columns = ", ".join(f"{quoted(column)}: 'VARCHAR'" for column in names)
    engine.execute(
        f"CREATE TABLE {name}_lines AS SELECT * FROM read_csv({quoted(str(path))}, header = true, auto_detect = false, "
        f"delim = {quoted(delimiter)}, quote = '\"', escape = '\"', columns = {{{columns}}}, "
        f"store_rejects = true, rejects_limit = 0, rejects_table = '{name}_rejects', rejects_scan = '{name}_scans')"
    )
    source = f"(SELECT {_declared(name, names)} rowid AS row FROM {name}_lines)"
    return UserFile(path, source, dict.fromkeys(names, pa.string()), rejected_lines(engine, name), False)


def _json(engine: duckdb.DuckDBPyConnection, path: Path, name: str) -> UserFile:
    declared = list(TABLES[name].columns)
    columns = ", ".join(f"'{column}': 'VARCHAR'" for column in declared)
    nothing = " AND ".join(f"{column} IS NULL" for column in declared)
    engine.execute(
        f"CREATE TABLE {name}_lines AS SELECT * FROM read_json({quoted(str(path))}, format = 'newline_delimited', "
        f"ignore_errors = true, maximum_object_size = {JSON_BYTES}, columns = {{{columns}}})"
    )
    counts = ", ".join(f"count({column})" for column in declared)
    unreadable, *known = engine.execute(f"SELECT count(*) FILTER ({nothing}), {counts} FROM {name}_lines").fetchall()[0]
    engine.execute(f"CREATE VIEW {name}_objects AS SELECT *, rowid AS row FROM {name}_lines WHERE NOT ({nothing})")
    present = [column for column, count in zip(declared, known, strict=True) if count]
    with contextlib.suppress(ValueError, TypeError):  # the first line may be one of the unreadable ones
        present += [key for key in json.loads(first_line(path)) if key not in declared]
    return UserFile(path, f"{name}_objects", dict.fromkeys(present, pa.string()), unreadable, False)


def _declared(name: str, present: Iterable[str]) -> str:
    """The declared columns among those present, as the beginning of a list in SQL."""
    return "".join(f"{column}, " for column in TABLES[name].columns if column in present)


def rejected_lines(engine: duckdb.DuckDBPyConnection, name: str) -> int:
    """How many lines of a CSV file DuckDB could not read as rows; an open quote counts all lines behind it."""
    lines = f"SELECT DISTINCT ON (line) rtrim(csv_line, chr(10)) AS text FROM {name}_rejects ORDER BY line"
    found = engine.execute(f"SELECT sum(1 + length(text) - length(replace(text, chr(10), ''))) FROM ({lines})")
    return int(found.fetchall()[0][0] or 0)


def delimiter_of(path: Path) -> str:
    """What separates the columns of a CSV or TSV file: of the usual characters, the most frequent in its first line."""
    return max(",;\t|", key=first_line(path).count)


def first_line(path: Path) -> str:
    """The first line of a text file, which may be compressed; raises InputError if it is no text."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return stream.readline(JSON_BYTES).decode("utf-8-sig").rstrip("\r\n")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} is no text in UTF-8, or damaged ({error}); make or copy it again") from error


def kind_of(kind: pa.DataType) -> str:
    """What values of an Arrow type are: text, integer, number, time or null; of another type, its name."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    kinds = {
        "text": pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind),
        "integer": pa.types.is_integer(kind),
        "number": pa.types.is_floating(kind) or pa.types.is_decimal(kind),
        "time": pa.types.is_timestamp(kind) or pa.types.is_date(kind),
        "null": pa.types.is_null(kind),
    }
    return next((name for name, holds in kinds.items() if holds), str(kind))


def quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A name of a column in SQL, in double quotes."""
    return '"' + name.replace('"', '""') + '"'
