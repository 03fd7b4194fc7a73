"""Atomic writes, so that other processes see a file whole or not at all, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil

from minirec.errors import InputError

Output = Path  # type of a stage's parameters that name what it writes
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of a file system without locks


def temporary(path: Path) -> Path:
    """A hidden temporary path beside `path` for this process; removes what killed processes of this machine left."""
    prefix = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(prefix)}*.part"):
        pid = left.name.removeprefix(prefix).removesuffix(".part")
        if pid == str(os.getpid()) or (pid.isdigit() and not psutil.pid_exists(int(pid))):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{prefix}{os.getpid()}.part")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file beside `path`; on success it is renamed to `path`, on failure removed.

    The block writes to it or replaces it. The result can be read by all who can read a new file of the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(path)
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        allow(partial, mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def allow(file: Path, mode: int) -> None:
    """Let a file be read and written by all whom `mode` lets; safetensors makes files for their owner alone.

    A hard link is left alone: it has the mode of the user's own file.
    """
    now = file.stat()
    if now.st_nlink == 1 and now.st_mode | mode & 0o666 != now.st_mode:
        file.chmod(now.st_mode | mode & 0o666)


@contextlib.contextmanager
def exclusive_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Lock `path` during the block: only one process at a time is in it; others wait, or raise InputError.

    The lock is a hidden file beside `path`, which the system frees however the process ends. Between machines it works
    only if their shared file system supports flock.
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
            if not _is_at(stream, lock):  # its last owner has removed it since
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def locked_stage(output: str, folder: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a stage's `run` with an exclusive lock on `folder` beside one of its outputs.

    output: name of the argument of `run` that is this output's path. Of several processes, rank 0 takes the lock.
    """

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(run)
        def locked(**arguments: Any) -> None:
            first = int(os.environ.get("RANK", "0")) == 0
            with exclusive_lock(arguments[output].with_name(folder)) if first else contextlib.nullcontext():
                run(**arguments)

        return locked

    return decorate


def _is_at(stream: IO[str], path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
