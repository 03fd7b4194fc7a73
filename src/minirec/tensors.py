"""Tensors on disk: safetensors with the rows' ids beside them, and what made them in the metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minirec import artefact
from minirec.artefact import Made
from minirec.errors import InputError


def write(tensors: Mapping[str, np.ndarray], path: Path, made: Made) -> None:
    """Write named arrays beside `path`, then rename."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with artefact.sealing(path, made) as (partial, record):
        save_file(arrays, partial, metadata={"minirec": record})  # one key: the order of several is random


def read(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read the named arrays, all where none are named; raises InputError where the file is damaged."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that makes it")
    try:
        with safe_open(path, framework="numpy") as file:
            artefact.verify(path, artefact.record((file.metadata() or {}).get("minirec", "{}"), path))
            missing = [name for name in names if name not in file.keys()]  # noqa: SIM118
            if missing:
                raise InputError(f"{path} has no tensor {missing[0]}; run the stage that makes it again")
            return {name: file.get_tensor(name) for name in names or file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}); run the stage that makes it again"
        ) from error


def rows_of(sample_id: np.ndarray, wanted: np.ndarray, path: Path) -> np.ndarray:
    """Row numbers of the wanted samples; raises InputError where one is missing."""
    order = np.argsort(sample_id, kind="stable")
    slots = np.searchsorted(sample_id, wanted, sorter=order).clip(max=max(len(sample_id) - 1, 0))
    rows = order[slots] if len(sample_id) else slots
    if len(wanted) and (len(sample_id) == 0 or (bad := sample_id[rows] != wanted).any()):
        first = wanted[0] if len(sample_id) == 0 else wanted[bad][0]
        raise InputError(f"{path} has no sample {first}; make it again from the same samples")
    return rows
