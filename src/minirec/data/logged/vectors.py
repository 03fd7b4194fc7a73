"""Vectors of prompts that users bring: NumPy, safetensors or Parquet, by the order of the prompts or by a key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file

from minirec.data.logged.rollouts import RolloutLog, text_of
from minirec.errors import InputError, one_sentence
from minirec.storage.user_files import identifier, quoted

ENDINGS = (".npy", ".npz", ".safetensors", ".parquet")


def vectors(log: RolloutLog, path: Path, id: str | None = None) -> np.ndarray:
    """The vectors [n, d], float32, of all prompts of a log from a file, in the order of the prompts.

    The file holds one matrix [m, d] and, but for .npy, may hold a key a row, called as the column of the prompts,
    `prompt` or `id`, a column of the log. Without keys row i is of the i-th prompt in the log. Raises InputError if a
    prompt has no vector or two, or a vector is not finite.
    """
    if path.suffix not in ENDINGS:
        raise InputError(f"{path} is in no known format; its name must end in {', '.join(ENDINGS)}")
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    names = list(dict.fromkeys(filter(None, (id, log.columns.prompt, "prompt"))))
    with one_sentence(f"{path} holds no vectors that can be read (", "); write it again"):
        key, keys, matrix = _parquet(log, path, names) if path.suffix == ".parquet" else _arrays(path, names)
    if key is None:
        if len(matrix) != len(log):
            raise InputError(f"{path} holds {len(matrix):,} vectors without a key, but there are {len(log):,} prompts")
        vectors = matrix
    else:
        wanted = log.texts() if key != id else [str(value) for value in log.rows(np.arange(len(log)))[key].to_pylist()]
        vectors = matrix[_rows(keys, wanted, path, key)]
    with np.errstate(over="ignore"):
        vectors = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        raise InputError(f"{path}: the vector of prompt {row} holds NaN, infinity or numbers beyond float32")
    return vectors


def _rows(keys: list[str], wanted: list[str], path: Path, key: str) -> np.ndarray:
    """The row [n] of each wanted key."""
    place: dict[str, int] = {}
    twice = [one for row, one in enumerate(keys) if place.setdefault(one, row) != row]
    if bad := set(twice) & set(wanted):
        raise InputError(f"{path} holds the {key} {min(bad)[:80]!r} twice; keep one of its vectors")
    missing = [one for one in wanted if one not in place]
    if missing:
        raise InputError(
            f"{path} has no vector for {len(missing):,} of {len(wanted):,} prompts, "
            f"the first with the {key} {missing[0][:80]!r}; add them"
        )
    return np.array([place[one] for one in wanted], dtype=np.int64)


def _arrays(path: Path, names: list[str]) -> tuple[str | None, list[str], np.ndarray]:
    """Name of the key or None, keys and matrix of a file of NumPy or safetensors; no object is unpickled."""
    if path.suffix == ".safetensors":
        arrays: Mapping[str, np.ndarray] = load_file(path)
    else:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        if isinstance(loaded, np.ndarray):
            arrays = {"vectors": loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
    matrices = [name for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind in "fiu"]
    if len(matrices) != 1 or not arrays[matrices[0]].size:
        raise InputError(f"{path} must hold one matrix of numbers with a row a prompt, but has {len(matrices)}")
    matrix = arrays[matrices[0]]
    key = next((name for name in names if name in arrays and name != matrices[0]), None)
    if key is None:
        return None, [], matrix
    if arrays[key].shape != matrix.shape[:1]:
        raise InputError(f"{path}: {key} has the shape {arrays[key].shape}, but there are {len(matrix):,} vectors")
    return key, [str(value) for value in arrays[key].tolist()], matrix


def _parquet(log: RolloutLog, path: Path, names: list[str]) -> tuple[str | None, list[str], np.ndarray]:
    """The same of a Parquet file, whose matrix is a column of lists."""
    table = f"read_parquet({quoted(str(path))})"
    types = {name: kind for name, kind, *_ in log.engine.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()}
    key = next((name for name in names if name in types), None)
    lists = [name for name, kind in types.items() if kind.endswith("]") and name != key]
    if len(lists) != 1:
        raise InputError(f"{path} must hold one column of lists of numbers, but has {len(lists)}")
    columns = [f"{identifier(lists[0])}::DOUBLE[] AS vector"]
    if key is not None:
        columns.append(f"CAST({text_of(key, types)} AS VARCHAR) AS key")
    found: pa.Table = log.engine.sql(f"SELECT {', '.join(columns)} FROM {table}").to_arrow_table()
    values = found["vector"].combine_chunks()
    lengths = np.unique(np.diff(np.asarray(values.offsets)))
    if values.null_count or len(lengths) != 1 or not lengths[0] or values.flatten().null_count:
        raise InputError(f"{path}: the lists of {lists[0]} must have one length and no nulls")
    matrix = np.asarray(values.flatten()).reshape(len(values), -1)
    return key, [] if key is None else [str(one) for one in found["key"].to_pylist()], matrix
