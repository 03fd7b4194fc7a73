"""Tensors on disk: safetensors with the rows' ids beside them, and what made them in the metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minirec.errors import InputError
from minirec.schemas import Made, replacing


def write(tensors: Mapping[str, np.ndarray], path: Path, made: Made) -> None:
    """Write named arrays beside `path`, then rename; a digest of the values goes into the metadata."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with replacing(path) as partial:
        record = json.loads(made.json()) | {"sha256": _digest(arrays)}
        save_file(
            arrays, partial, metadata={"minirec": json.dumps(record, sort_keys=True)}
        )  # one key: the order of several is random


def read(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read the named arrays, all where none are named; raises InputError where the file is damaged."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that makes it")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = json.loads((file.metadata() or {}).get("minirec", "{}")).get("sha256")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); make it again") from error
    if expected != _digest(arrays):
        raise InputError(f"{path} is damaged: its contents do not match its digest; make it again")
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError(f"{path} has no tensor {missing[0]}; make it again")
    return {name: arrays[name] for name in names or arrays}


def rows_of(sample_id: np.ndarray, wanted: np.ndarray, path: Path) -> np.ndarray:
    """Row numbers of the wanted samples; raises InputError where one is missing."""
    order = np.argsort(sample_id, kind="stable")
    slots = np.searchsorted(sample_id, wanted, sorter=order).clip(max=max(len(sample_id) - 1, 0))
    rows = order[slots] if len(sample_id) else slots
    if len(wanted) and (len(sample_id) == 0 or (bad := sample_id[rows] != wanted).any()):
        first = wanted[0] if len(sample_id) == 0 else wanted[bad][0]
        raise InputError(f"{path} has no sample {first}; make it again from the same samples")
    return rows


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    whole = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        whole.update(f"{name} {array.dtype} {array.shape}\0".encode())
        whole.update(np.ascontiguousarray(array).data)
    return whole.hexdigest()
