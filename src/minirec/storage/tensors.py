"""Read and write tensors as safetensors, with the sample_id of their rows and the record of what made them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minirec.errors import InputError
from minirec.storage import artefact
from minirec.storage.artefact import Provenance

BLOCK_BYTES = 2**25  # how much of an array `take` reads at a time
DTYPES: dict[str, np.dtype[Any]] = {"I64": np.dtype("int64"), "F32": np.dtype("float32")}  # types that `writer` writes


def write(tensors: Mapping[str, np.ndarray], path: Path, provenance: Provenance) -> None:
    """Write named arrays atomically."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with artefact.writing_with_digest(path, provenance) as (partial, record):
        save_file(arrays, partial, metadata={"minirec": record})  # one key: the order of several is random


@contextmanager
def writer(shapes: Mapping[str, tuple[int, ...]], path: Path, provenance: Provenance) -> Iterator[Callable[..., None]]:
    """Write float32 arrays of these shapes [n, ...] and their int64 `sample_id` [n] in parts, from first row to last.

    `with writer({"z": (n, d)}, ...) as append: append(sample_id=..., z=...)`. The file has the same bytes as from
    `write`. Raises ValueError if rows have another shape, or are not n in the end.
    """
    count = next(iter(shapes.values()))[0]
    entries = _header_entries({"sample_id": (count,), **dict(sorted(shapes.items()))})
    done = 0
    with artefact.writing_with_digest(path, provenance) as (partial, record), partial.open("wb") as file:
        header = {"__metadata__": {"minirec": record}, **entries}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        start = file.write(len(text).to_bytes(8, "little") + text)

        def append(**rows: np.ndarray) -> None:
            nonlocal done
            if rows.keys() != entries.keys() or len({len(part) for part in rows.values()}) != 1:
                raise ValueError(f"{path.name} needs as many rows of each of {', '.join(entries)}")
            for name, part in rows.items():
                if list(part.shape[1:]) != entries[name]["shape"][1:]:
                    raise ValueError(f"{name} has rows of {list(part.shape[1:])}, not {entries[name]['shape'][1:]}")
                begin, end = entries[name]["data_offsets"]
                file.seek(start + begin + done * ((end - begin) // max(count, 1)))
                file.write(np.ascontiguousarray(part, dtype=DTYPES[entries[name]["dtype"]]).data)
            done += len(rows["sample_id"])

        yield append
        if done != count:
            raise ValueError(f"{path.name} got {done} rows, not {count}")
        file.truncate(start + max(entry["data_offsets"][1] for entry in entries.values()))


def read(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read the named arrays, or all; raises InputError if the file is missing or damaged, or lacks one."""
    with _opened(path) as (file, record):
        artefact.verify(path, record)
        _check(path, file.keys(), names)
        return {name: file.get_tensor(name) for name in names or file.keys()}


def read_provenance(path: Path) -> dict[str, Any]:
    """The record of what made a file, without its digest; raises InputError if the file is missing or damaged."""
    with _opened(path) as (_, record):
        artefact.verify(path, record)
        return {name: value for name, value in record.items() if name != "digest"}


def shapes(path: Path, *names: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the named arrays, or of all; also compares the whole file with its digest, a block at a time.

    Raises InputError if the file is missing or damaged, or lacks one.
    """
    with _opened(path) as (file, record):
        artefact.verify(path, record)
        _check(path, file.keys(), names)
        return {name: tuple(file.get_slice(name).get_shape()) for name in names or file.keys()}


def take(path: Path, name: str, rows: np.ndarray) -> np.ndarray:
    """Rows [k] of an array, in any order; reads only the blocks that contain them, without a check of the digest."""
    with _opened(path) as (file, _):
        shape = tuple(file.get_slice(name).get_shape())
    first = read_rows(path, name, 0, min(1, shape[0]))
    out = np.empty((len(rows), *shape[1:]), dtype=first.dtype)
    order = np.argsort(rows, kind="stable")
    step = max(1, BLOCK_BYTES // max(1, first.nbytes))
    edges = np.searchsorted(rows[order], np.arange(0, shape[0] + step, step))
    for number in np.flatnonzero(np.diff(edges)):
        of_block = order[edges[number] : edges[number + 1]]
        begin, end = int(rows[of_block[0]]), int(rows[of_block[-1]]) + 1
        out[of_block] = read_rows(path, name, begin, end)[rows[of_block] - begin]
    return out


def read_rows(path: Path, name: str, begin: int = 0, end: int | None = None) -> np.ndarray:
    """Rows begin to end-1 of an array, all by default. Reads nothing else: `shapes` has to check the digest before.

    Opens the file anew at each call, so that the memory map does not grow.
    """
    with _opened(path) as (file, _):
        rows = file.get_slice(name)
        end = rows.get_shape()[0] if end is None else end
        return rows[begin:end] if begin < end else file.get_tensor(name)[:0]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a safetensors file and read its record; the caller verifies the digest."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that makes it")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file, artefact.parse_record((file.metadata() or {}).get("minirec", "{}"), path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}); run the stage that makes it again"
        ) from error


def _check(path: Path, present: Collection[str], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in present]
    if missing:
        raise InputError(f"{path} has no tensor {missing[0]}; run the stage that makes it again")


def _header_entries(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """Entry of each array in the header of a safetensors file; the int64 array comes first, as the library does it."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        kind = "I64" if name == "sample_id" else "F32"
        begin, end = end, end + int(np.prod(shape)) * DTYPES[kind].itemsize
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    return entries
