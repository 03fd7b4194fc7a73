"""show: print what made a file, its columns or tensors, counts and first rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from minirec.data import splits
from minirec.errors import InputError
from minirec.storage import artefact, tables, tensors
from minirec.storage.tables import TABLES, Column

CELL = 32  # most characters of a value in a row of data
ADAPTER_FILE = "adapter_model.safetensors"


def describe(path: Path, rows: int) -> str:
    """The text that `show` prints about a file or folder; rows: how many first rows. Raises InputError."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; name a Parquet, safetensors or JSON file, or an adapter's folder")
    kinds = {".parquet": lambda: _parquet(path, rows), ".safetensors": lambda: _safetensors(path)}
    kinds[".json"] = lambda: _json(path)
    if path.suffix not in kinds:
        raise InputError(f"{path} is not something minirec makes; it shows {', '.join(kinds)} and adapters' folders")
    return kinds[path.suffix]()


def table_name(path: Path, columns: Sequence[str]) -> str | None:
    """Name of the table in a file, by its columns; if several fit, by the file's name. None: not one of minirec's."""
    fitting = [
        name
        for name, table in TABLES.items()
        if {n for n, c in table.columns.items() if not c.optional} <= set(columns)
        and (table.foreign or set(columns) <= set(table.columns))
    ]
    exact = [name for name in fitting if not TABLES[name].foreign]
    return path.stem if path.stem in fitting else next(iter([*exact, *fitting]), None)


def align(rows: Iterable[Sequence[str]], indent: str = "  ") -> str:
    """Rows of cells as lines of left-aligned columns."""
    lines = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)] if lines else []
    return "".join(
        indent + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )


def _origin(provenance: dict[str, Any]) -> str:
    """What made an artefact, as text."""
    if not provenance.get("stage"):
        return "made elsewhere: it carries no record of how\n"
    lines = [["settings", short(value, f"{name}: ", 400)] for name, value in provenance.get("settings", {}).items()]
    lines += [["input", f"{name} {str(digest)[:12]}"] for name, digest in provenance.get("inputs", {}).items()]
    return f"made by minirec {provenance.get('version', '?')}, stage {provenance['stage']}\n{align(lines)}"


def _folder_record(path: Path) -> dict[str, Any]:
    """The record of the folder that holds a file; empty if the folder has none or it does not list the file.

    Raises InputError if the file is not the one that was listed.
    """
    record = path.parent / artefact.FOLDER_RECORD
    stored = artefact.load_json(record) if record.is_file() else {}
    listed = stored.get("files", {}).get(path.name)
    if listed is None:
        return {}
    artefact.verify(record, stored)
    if artefact.digest(path) != listed:
        raise InputError(f"{path} is damaged: its bytes do not match its digest; run the stage that makes it again")
    return stored


def _parquet(path: Path, rows: int) -> str:
    with tables.opened(path, foreign=True) as (file, provenance):
        schema = file.schema_arrow
        name = table_name(path, schema.names)
        known: dict[str, Column] = TABLES[name].columns if name else {}
        lines = [["column", "type", "nulls", "range", "meaning"]]
        for field in schema:
            nulls, span = _span(file, field.name)
            meaning = known[field.name].meaning if field.name in known else "-"
            lines.append([field.name, str(field.type), str(nulls), span, meaning])
        first = next(file.iter_batches(batch_size=max(rows, 1)), None) if file.metadata.num_rows and rows > 0 else None
        count = file.metadata.num_rows
    text = f"{path}: {name or 'a table unknown to minirec'}, {count:,} rows\n"
    text += align(lines)
    if first is not None:
        shown = first.slice(0, rows).to_pylist()
        data = [schema.names, *([short(v) for v in row.values()] for row in shown)]
        text += f"\nfirst {len(shown)} rows\n{align(data)}"
        if "sample_id" in schema.names and name != "samples":
            text += _titles(path, [row["sample_id"] for row in shown])
    return f"{text}\n{_origin(provenance)}"


def _titles(path: Path, sample_id: list[int]) -> str:
    """Lines with the titles of these samples, if the data set's samples and catalogue lie in a folder above a file."""
    top = next((one for one in path.absolute().parents if (one / "samples.parquet").is_file()), None)
    if top is None or not (top / "catalogue.parquet").is_file():
        return ""
    samples = pq.read_table(
        top / "samples.parquet",
        columns=["sample_id", "target_row", "history_rows"],
        filters=[("sample_id", "in", sample_id)],
    )
    titles = splits.titles(top / "catalogue.parquet")
    found = {row["sample_id"]: row for row in samples.to_pylist()}
    lines = [["sample_id", "last items of the history", "target"]]
    for one in dict.fromkeys(sample_id):
        if one in found:
            history = "; ".join(short(titles[row]) for row in found[one]["history_rows"][-2:])
            lines.append([str(one), history, short(titles[found[one]["target_row"]])])
    return f"\ntheir samples\n{align(lines)}"


def _span(file: pq.ParquetFile, column: str) -> tuple[int, str]:
    """Number of nulls and range of a column; for lists, the range of their lengths. Reads part by part."""
    nulls, low, high, unit = 0, None, None, ""
    for batch in file.iter_batches(batch_size=65536, columns=[column]):
        values = batch.column(0)
        nulls += values.null_count
        if pa.types.is_list(values.type):
            values, unit = pc.list_value_length(values), " long"
        if pa.types.is_nested(values.type) or not len(values):
            continue
        ends = pc.min_max(values).as_py()
        if ends["min"] is not None:
            low = ends["min"] if low is None else min(low, ends["min"])
            high = ends["max"] if high is None else max(high, ends["max"])
    return nulls, "-" if low is None else f"{short(low, '', 18)} to {short(high, '', 18)}{unit}"


def _safetensors(path: Path, in_folder: bool = False) -> str:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            shapes = {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); make it again") from error
    provenance = artefact.parse_record(metadata.get("minirec", "{}"), path)
    count = sum(int(np.prod(shape)) for _, shape in shapes.values())
    lines = [["tensor", "type", "shape", "range"]]
    arrays = tensors.read(path) if provenance else {}  # checks the digest
    for name, (kind, shape) in shapes.items():
        array = arrays.get(name)
        span = "-" if array is None or not array.size else f"{short(array.min().item())} to {short(array.max().item())}"
        lines.append([name, str(kind), " x ".join(map(str, shape)) or "scalar", span])
    origin = "" if in_folder and not provenance else f"\n{_origin(provenance or _folder_record(path))}"
    return f"{path}: {len(shapes)} tensors, {count:,} numbers\n{align(lines)}{origin}"


def _folder(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not (path / "config.json").is_file() and not (path / ADAPTER_FILE).is_file():
        return _list(path, files)
    artefact.verify_folder(path, foreign=True)
    lines = [[str(file.relative_to(path)), f"{file.stat().st_size:,} bytes"] for file in files]
    text = f"{path}: {'adapter' if (path / ADAPTER_FILE).is_file() else 'model'}, {len(files)} files\n{align(lines)}"
    record = path / artefact.FOLDER_RECORD
    text += f"\n{_origin(artefact.load_json(record) if record.is_file() else {})}"
    for file in files:
        if file.name == "adapter_config.json":
            text += f"\n{file}\n{align(_leaves(artefact.load_json(file), ''))}"
    for file in files:
        if file.suffix == ".safetensors":
            text += f"\n{_safetensors(file, in_folder=True)}"
    return text


def _list(path: Path, files: list[Path]) -> str:
    """Names and sizes of the tables, tensors, texts and pictures in a folder of results."""
    shown = [file for file in files if file.suffix in (".parquet", ".safetensors", ".json", ".txt", ".png")]
    if not shown:
        raise InputError(f"{path} is a folder without any file that minirec makes; name another folder, or a file")
    lines = []
    for file in shown:
        rows = f"{pq.read_metadata(file).num_rows:,} rows" if file.suffix == ".parquet" else ""
        lines.append([str(file.relative_to(path)), f"{file.stat().st_size:,} bytes", rows])
    return f"{path}: {len(shown)} files; look into any with: minirec show FILE\n{align(lines)}"


def _json(path: Path) -> str:
    content = artefact.load_json(path)
    if path.name == artefact.FOLDER_RECORD:
        provenance, content = content, {}
    else:
        provenance = content.pop("provenance") if isinstance(content.get("provenance"), dict) else {}
    if provenance:
        artefact.verify(path, provenance)
    return f"{path}\n{align(_leaves(content, ''))}\n{_origin(provenance or _folder_record(path))}"


def _leaves(value: Any, key: str) -> list[list[str]]:
    """Rows (key.subkey, value) of everything below a value; long lists are truncated."""
    if isinstance(value, dict) and value:
        return [leaf for name, part in value.items() for leaf in _leaves(part, f"{key}.{name}" if key else name)]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [leaf for i, part in enumerate(value[:20]) for leaf in _leaves(part, f"{key}[{i}]")]
    return [[key, short(value, "", 100)]]


def short(value: Any, before: str = "", width: int = CELL) -> str:
    """A value as text on one line, truncated to `width` characters."""
    if isinstance(value, float):
        return f"{before}{value:.6g}"
    text = before + (value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False))
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= width else text[: width - 1] + "…"


def run(file: Path, rows: int) -> None:
    """Print `describe` of a file or folder."""
    sys.stdout.write(describe(file, rows))
