"""Tensors on disk: safetensors with the rows' ids beside them, and what made them in the metadata."""

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

BLOCK_BYTES = 2**25  # read at a time where a file is compared with its digest
KINDS = {"int64": "I64", "float32": "F32"}  # what a file written row by row may hold, in the library's order


def write(tensors: Mapping[str, np.ndarray], path: Path, made: Provenance) -> None:
    """Write named arrays beside `path`, then rename."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with artefact.writing_with_digest(path, made) as (partial, record):
        save_file(arrays, partial, metadata={"minirec": record})  # one key: the order of several is random


@contextmanager
def writer(shapes: Mapping[str, tuple[int, ...]], path: Path, made: Provenance) -> Iterator[Callable[..., None]]:
    """Write float32 arrays of these shapes with their int64 `sample_id` some rows at a time, first to last.

    `with writer({"z": (n, d)}, ...) as append: append(sample_id=..., z=...)`. Gives the bytes that `write` gives; the
    digest, known last, fills a space left in the header. Raises ValueError where the rows are not n in the end.
    """
    count = next(iter(shapes.values()))[0]
    kinds = {"sample_id": "int64"} | dict.fromkeys(shapes, "float32")
    layout = {"sample_id": (count,), **shapes}
    names = sorted(layout, key=lambda name: (list(KINDS).index(kinds[name]), name))
    bytes_ = {name: int(np.prod(layout[name])) * np.dtype(kinds[name]).itemsize for name in names}
    ends = dict(zip(names, np.cumsum([bytes_[name] for name in names]).tolist(), strict=True))

    def header(record: str) -> bytes:
        about: dict[str, Any] = {"__metadata__": {"minirec": record}}
        for name in names:
            offsets = [ends[name] - bytes_[name], ends[name]]
            about[name] = {"dtype": KINDS[kinds[name]], "shape": list(layout[name]), "data_offsets": offsets}
        text = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    done = 0
    with artefact.writing_with_digest(path, made) as (partial, record), partial.open("wb") as file:
        start = file.write(header(record))

        def append(**rows: np.ndarray) -> None:
            nonlocal done
            if rows.keys() != layout.keys() or len({len(part) for part in rows.values()}) != 1:
                raise ValueError(f"{path.name} needs as many rows of each of {', '.join(names)}")
            for name, part in rows.items():
                if part.shape[1:] != layout[name][1:]:
                    raise ValueError(f"{name} has rows of {part.shape[1:]}, not {layout[name][1:]}")
                file.seek(start + ends[name] - bytes_[name] + done * (bytes_[name] // max(count, 1)))
                file.write(np.ascontiguousarray(part, dtype=kinds[name]).data)
            done += len(rows["sample_id"])

        yield append
        if done != count:
            raise ValueError(f"{path.name} got {done} rows, not {count}")
        file.truncate(start + ends[names[-1]])


def read(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read the named arrays, all where none are named; raises InputError where the file is damaged."""
    with _opened(path) as (file, record):
        artefact.verify(path, record)
        _check(path, file.keys(), names)
        return {name: file.get_tensor(name) for name in names or file.keys()}


def shapes(path: Path, *names: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the named arrays; raises InputError where the file is damaged. Holds a block of it at a time."""
    with _opened(path) as (file, record):
        artefact.verify(path, record)
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    _check(path, found, names)
    return {name: found[name] for name in names or found}


def take(path: Path, name: str, rows: np.ndarray) -> np.ndarray:
    """Rows of an array by their numbers [k]; only blocks of the file that hold some are read, see `part`."""
    with _opened(path) as (file, _):
        shape = tuple(file.get_slice(name).get_shape())
    first = read_rows(path, name, 0, min(1, shape[0]))
    out = np.empty((len(rows), *shape[1:]), dtype=first.dtype)
    order = np.argsort(rows, kind="stable")
    step = max(1, BLOCK_BYTES // max(1, first.nbytes))
    edges = np.searchsorted(rows[order], np.arange(0, shape[0] + step, step))
    for number in np.flatnonzero(np.diff(edges)):
        own = order[edges[number] : edges[number + 1]]
        begin, end = int(rows[own[0]]), int(rows[own[-1]]) + 1
        out[own] = read_rows(path, name, begin, end)[rows[own] - begin]
    return out


def read_rows(path: Path, name: str, begin: int = 0, end: int | None = None) -> np.ndarray:
    """Rows begin to end of an array, all by default, and nothing else of the file.

    `shapes` compares the whole with its digest. Opens the file anew, so that memory does not hold more and more of it.
    """
    with _opened(path) as (file, _):
        rows = file.get_slice(name)
        end = rows.get_shape()[0] if end is None else end
        return rows[begin:end] if begin < end else file.get_tensor(name)[:0]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A safetensors file and the record of what made it, its digest not compared."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that makes it")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file, artefact.record((file.metadata() or {}).get("minirec", "{}"), path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}); run the stage that makes it again"
        ) from error


def _check(path: Path, found: Collection[str], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{path} has no tensor {missing[0]}; run the stage that makes it again")


def rows_of(sample_id: np.ndarray, wanted: np.ndarray, path: Path) -> np.ndarray:
    """Row numbers of the wanted samples; raises InputError where one is missing."""
    order = np.argsort(sample_id, kind="stable")
    slots = np.searchsorted(sample_id, wanted, sorter=order).clip(max=max(len(sample_id) - 1, 0))
    rows = order[slots] if len(sample_id) else slots
    if len(wanted) and (len(sample_id) == 0 or (bad := sample_id[rows] != wanted).any()):
        first = wanted[0] if len(sample_id) == 0 else wanted[bad][0]
        raise InputError(f"{path} has no sample {first}; make it again from the same samples")
    return rows
