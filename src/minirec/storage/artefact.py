"""Artefacts, the files that stages write: each stores what made it and a SHA-256 that shows any damage.

The digest covers all bytes of the file but its own 64 characters. One file of a folder lists the digests of the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from minirec import __version__
from minirec.errors import InputError
from minirec.storage.code_digest import code_digest, libraries
from minirec.storage.files import allow, atomic_write, temporary

FOLDER_RECORD = "provenance.json"
BLOCK = 1 << 20  # bytes hashed at a time
RECORD_START = b'{"digest": "'  # how the record in a file begins


@dataclass(frozen=True)
class Provenance:
    """What made an artefact: stage, settings and the SHA-256 of each input.

    It contains no time, so the same inputs give files with the same bytes.
    """

    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Path | str] = field(default_factory=dict)  # by name: the file, or its digest

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Provenance:
        """Make it from the record that an artefact stores."""
        return cls(record["stage"], record["settings"], record["inputs"])

    def json(self) -> str:
        """The record as JSON text, with versions of minirec and its libraries, the device, and digests of inputs."""
        inputs = {name: digest(i) if isinstance(i, Path) else i for name, i in self.inputs.items()}
        content = {"version": __version__, "stage": self.stage, "settings": self.settings, "inputs": inputs}
        content["libraries"] = libraries(self.stage)
        if "torch" in content["libraries"]:
            content["device"] = device()
        return json.dumps(content, sort_keys=True, default=str)


def device() -> str:
    """Kind of the device that computes: the name of the GPU, or cpu."""
    torch = sys.modules.get("torch")  # a job that has not loaded it has computed nothing with it
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "cpu"


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files except hidden ones."""
    if path.is_dir():
        whole = hashlib.sha256()
        for name in _names(path):
            whole.update(f"{name}\0{digest(path / name)}\0".encode())
        return whole.hexdigest()
    state = path.stat()
    return _sha256(path, state.st_ino, state.st_size, state.st_mtime_ns)


@contextlib.contextmanager
def writing_with_digest(path: Path, provenance: Provenance, **more: Any) -> Iterator[tuple[Path, str]]:
    """Write a file atomically, with a record of its provenance, its digest and `more`.

    Yields a temporary path, to be written in the block, and the record: JSON text that the file must contain, as it is
    or as a JSON string. Raises ValueError if the file does not contain it.
    """
    placeholder = secrets.token_hex(32)  # random, so that nothing else in the file can look like it
    with atomic_write(path) as partial:
        yield partial, json.dumps({"digest": placeholder, **json.loads(provenance.json()), **more})
        sha256, place = _sha256_without(partial, placeholder)
        if place is None:
            raise ValueError(f"{path.name} was written without its record")
        with partial.open("r+b") as stream:
            stream.seek(place)
            stream.write(sha256.encode())


def verify(path: Path, record: Mapping[str, Any]) -> None:
    """Raise InputError if a file's bytes do not match the digest in `record`, which was read from the file."""
    stored = record.get("digest")
    if not isinstance(stored, str) or not re.fullmatch("[0-9a-f]{64}", stored):
        raise InputError(f"{path} carries no digest, so damage would not show; run the stage that makes it again")
    if _sha256_without(path, stored)[0] != stored:
        raise InputError(f"{path} is damaged: its bytes do not match its digest; run the stage that makes it again")


def parse_record(raw: bytes | str, path: Path) -> dict[str, Any]:
    """The record in `raw`, text that the file at `path` stores; raises InputError if it is damaged."""
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise InputError(f"{path} carries a damaged record of what made it; run the stage that makes it again")
    return record


def has_lost_record(path: Path) -> bool:
    """Whether a file in which the reader found no record has one near its end, so that it must be damaged."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - BLOCK))
        return RECORD_START in stream.read()


def keep_unfinished(folder: Path, provenance: Provenance, **more: Any) -> None:
    """Keep a folder of unfinished work if the same inputs, settings, code, libraries and `more` made it; else empty it.

    A file in the folder notes what made it.
    """
    made = json.loads(provenance.json())
    made.pop("device", None)  # a job may go on on another one
    origin = {"provenance": made, "code": code_digest(provenance.stage), **more}
    record, note = json.dumps(origin), folder / FOLDER_RECORD
    if folder.is_dir() and not (note.is_file() and note.read_text(encoding="utf-8") == record):
        shutil.rmtree(folder)
    with atomic_write(note) as partial:
        partial.write_text(record, encoding="utf-8")


def write_json(content: Mapping[str, Any], path: Path, provenance: Provenance) -> None:
    """Write a JSON object with its record under the key `provenance`."""
    with writing_with_digest(path, provenance) as (partial, record):
        text = json.dumps({**content, "provenance": json.loads(record)}, indent=2)
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that `write_json` wrote; raises InputError if it is missing or damaged."""
    content = load_json(path)
    record = content.get("provenance")
    verify(path, record if isinstance(record, dict) else {})
    return content


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object without a check of its digest; raises InputError if the file is missing or holds none."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that makes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); run the stage that makes it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; run the stage that makes it again")
    return content


@contextlib.contextmanager
def atomic_folder(path: Path, provenance: Provenance) -> Iterator[Path]:
    """Yield a temporary folder; on success it gets its record and is renamed to `path`, on failure it is removed."""
    partial = temporary(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        for name in _names(partial):
            allow(partial / name, partial.stat().st_mode)
        write_manifest(partial, provenance)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_manifest(folder: Path, provenance: Provenance) -> None:
    """Write a folder's record: what made it, and the digest of each of its files."""
    digests = {name: digest(folder / name) for name in _names(folder) if name != FOLDER_RECORD}
    with writing_with_digest(folder / FOLDER_RECORD, provenance, files=digests) as (partial, record):
        partial.write_text(record, encoding="utf-8")


def verify_folder(folder: Path, foreign: bool = False) -> None:
    """Raise InputError if a folder's file was damaged or is missing; a `foreign` folder may have no record."""
    path = folder / FOLDER_RECORD
    if foreign and not path.is_file():
        return
    record = load_json(path)
    verify(path, record)
    for name, expected in record.get("files", {}).items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} does not exist; run the stage that makes {folder} again")
        if digest(file) != expected:
            raise InputError(
                f"{file} is damaged: its bytes do not match its digest; run the stage that makes {folder} again"
            )


def _names(folder: Path) -> list[str]:
    """The files of a folder, as paths below it, except hidden ones, which Snakemake adds."""
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return [file.as_posix() for file in files if not file.name.startswith(".")]


@lru_cache(maxsize=1024)
def _sha256(path: Path, *state: int) -> str:
    """SHA-256 of a file, computed again only when `state` (inode, size, time of change) differs."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256_without(path: Path, text: str) -> tuple[str, int | None]:
    """SHA-256 of a file without the first occurrence of `text`, and where that begins, in bytes; None: nowhere."""
    needle, whole, place, hashed, rest = text.encode(), hashlib.sha256(), None, 0, b""
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            rest += block
            if place is None and (start := rest.find(needle)) >= 0:
                place = hashed + start
                rest = rest[:start] + rest[start + len(needle) :]
            ready = max(0, len(rest) - len(needle))  # what follows may be the beginning of the text
            whole.update(rest[:ready])
            hashed, rest = hashed + ready, rest[ready:]
    whole.update(rest)
    return whole.hexdigest(), place
