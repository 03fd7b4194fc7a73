"""Artefacts: what made them, how they take their name only when whole, and how damage is noticed.

An artefact carries a record of what made it, and in the record a digest of all its bytes. As a digest cannot cover
itself, it is taken while a stand-in of the same length fills its place; the stand-in follows from the rest of the
record, so nothing else in the file can look like it. A folder's record names the digest of each of its files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import psutil

from minirec import __version__
from minirec.errors import InputError

FOLDER_RECORD = "made.json"
BLOCK = 1 << 20  # bytes hashed at a time
MARK = b'{"digest": "'  # how a record begins, see `_dump`
Output = Path  # a parameter of a stage that names what it writes
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system without flock


@dataclass(frozen=True)
class Provenance:
    """What made an artefact: stage, settings, and the inputs' sha256 by name. Holds no time, so bytes repeat."""

    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Path | str] = field(default_factory=dict)  # files, or their digests

    @classmethod
    def parse(cls, stored: dict[str, Any]) -> Provenance:
        """From what an artefact stores."""
        return cls(stored["stage"], stored["settings"], stored["inputs"])

    def json(self) -> str:
        """As text, without a digest."""
        inputs = {name: digest(i) if isinstance(i, Path) else i for name, i in self.inputs.items()}
        content = {"version": __version__, "stage": self.stage, "settings": self.settings, "inputs": inputs}
        return json.dumps(content, sort_keys=True, default=str)


def digest(path: Path) -> str:
    """Sha256 of a file, or of the names and contents of the files in a folder, hidden ones aside."""
    if path.is_dir():
        whole = hashlib.sha256()
        for name in _names(path):
            whole.update(f"{name}\0{digest(path / name)}\0".encode())
        return whole.hexdigest()
    state = path.stat()
    return _sha256(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256(path: Path, *state: int) -> str:
    """Sha256 of a file, computed once as long as its state stays."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def temporary(path: Path) -> Path:
    """A name beside `path` for this process alone; what killed processes of this machine left there is removed."""
    mine = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(mine)}*.part"):
        number = left.name.removeprefix(mine).removesuffix(".part")
        if number == str(os.getpid()) or (number.isdigit() and not psutil.pid_exists(int(number))):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{mine}{os.getpid()}.part")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name on success and vanishes on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """A block for one process at a time that works on `path`; another waits, or stops with InputError.

    The lock is a hidden file beside `path`, and the kernel frees it however its process ends. It holds on one machine;
    between machines on a network file system as far as that does flock, and without any flock not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with lock.open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise InputError(f"another process is making {path}; wait for it or end it") from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            if not _is_at(stream, lock):  # who had it has removed it since
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def locked_stage(output: str, folder: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a stage run `alone` on the `folder` beside one of its outputs; of several ranks only the first locks it."""

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(run)
        def locked(**given: Any) -> None:
            first = int(os.environ.get("RANK", "0")) == 0
            with exclusive_lock(given[output].with_name(folder)) if first else contextlib.nullcontext():
                run(**given)

        return locked

    return decorate


@contextlib.contextmanager
def writing_with_digest(path: Path, made: Provenance, **more: Any) -> Iterator[tuple[Path, str]]:
    """A temporary path as from `atomic_write`, and the record to store in it; the digest is filled in at the end.

    `more` goes into the record. The stored record may be escaped as JSON text, but not compressed or encoded.
    """
    content = json.loads(made.json()) | more
    with atomic_write(path) as partial:
        yield partial, _dump(content | {"digest": _placeholder(content)})
        found, place = _scan(partial, _placeholder(content), _placeholder(content))
        if place is None:
            raise ValueError(f"{path.name} was written without its record")
        with partial.open("r+b") as stream:
            stream.seek(place)
            stream.write(found.encode())


def verify(path: Path, record: Mapping[str, Any]) -> None:
    """Raise InputError where the bytes of a file are not those that were written; `record` is what it stores."""
    content = dict(record)
    stored = content.pop("digest", None)
    if not isinstance(stored, str) or not re.fullmatch("[0-9a-f]{64}", stored):
        raise InputError(f"{path} carries no digest, so damage would not show; run the stage that makes it again")
    if _scan(path, stored, _placeholder(content))[0] != stored:
        raise InputError(f"{path} is damaged: its bytes do not match its digest; run the stage that makes it again")


def record(raw: bytes | str, path: Path) -> dict[str, Any]:
    """A stored record; raises InputError where it is damaged."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path} carries a damaged record of what made it; run the stage that makes it again")
    return found


def has_lost_record(path: Path) -> bool:
    """Whether the end of a file holds what looks like a record: a file in which none is found may have lost it."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - BLOCK))
        return MARK in stream.read()


def write_json(content: Mapping[str, Any], path: Path, made: Provenance) -> None:
    """Write a JSON object with its record under `made`."""
    with writing_with_digest(path, made) as (partial, stored):
        text = json.dumps({**content, "made": json.loads(stored)}, indent=2)
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of ours, its record under `made`; raises InputError where it is missing or damaged."""
    found = load_json(path)
    made = found.get("made")
    verify(path, made if isinstance(made, dict) else {})
    return found


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object of anybody; raises InputError where it is missing or none."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the stage that makes it")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); run the stage that makes it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object; run the stage that makes it again")
    return found


@contextlib.contextmanager
def atomic_folder(path: Path, made: Provenance) -> Iterator[Path]:
    """A temporary folder beside `path` that gets its record and takes its name on success, and vanishes on failure."""
    partial = temporary(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        write_manifest(partial, made)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_manifest(folder: Path, made: Provenance) -> None:
    """Write the record of a folder: what made it and the digest of each of its files."""
    files = {name: digest(folder / name) for name in _names(folder) if name != FOLDER_RECORD}
    path = folder / FOLDER_RECORD
    with writing_with_digest(path, made, files=files) as (partial, stored):
        partial.write_text(stored, encoding="utf-8")


def verify_folder(folder: Path, foreign: bool = False) -> None:
    """Raise InputError where a file of a folder is not as written; a `foreign` folder may come without a record."""
    path = folder / FOLDER_RECORD
    if foreign and not path.is_file():
        return
    stored = load_json(path)
    verify(path, stored)
    for name, expected in stored.get("files", {}).items():
        part = folder / name
        if not part.is_file():
            raise InputError(f"{part} does not exist; run the stage that makes {folder} again")
        if digest(part) != expected:
            raise InputError(
                f"{part} is damaged: its bytes do not match its digest; run the stage that makes {folder} again"
            )


def _is_at(stream: IO[str], path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _names(folder: Path) -> list[str]:
    """Files of a folder, as paths within it; not hidden ones, which Snakemake adds."""
    parts = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return [p.as_posix() for p in parts if not p.name.startswith(".")]


def _dump(content: Mapping[str, Any]) -> str:
    """A record as text, its digest first."""
    return json.dumps({"digest": content["digest"], **dict(sorted(content.items()))})


def _placeholder(content: Mapping[str, Any]) -> str:
    """What fills the digest's place while the digest is taken."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _scan(path: Path, stored: str, stand_in: str) -> tuple[str, int | None]:
    """The digest of a file with `stand_in` instead of `stored`, and where `stored` was."""
    old, new, overlap = stored.encode(), stand_in.encode(), len(stored) - 1
    whole, place, rest, start = hashlib.sha256(), None, b"", 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            block = rest + block
            if (found := block.find(old)) >= 0 and place is None:
                place = start + found
                block = block.replace(old, new, 1)
            whole.update(block[:-overlap])
            start += max(0, len(block) - overlap)
            rest = block[-overlap:]
    whole.update(rest)
    return whole.hexdigest(), place
