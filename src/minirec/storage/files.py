"""Files and folders that other processes see whole or not at all, and locks."""

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

Output = Path  # a parameter of a stage that names what it writes
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system without flock


def temporary(path: Path) -> Path:
    """A hidden name beside `path` for this process; what killed processes of this machine left there is removed."""
    prefix = f".{path.name}.{socket.gethostname()}."
    for left in path.parent.glob(f"{glob.escape(prefix)}*.part"):
        pid = left.name.removeprefix(prefix).removesuffix(".part")
        if pid == str(os.getpid()) or (pid.isdigit() and not psutil.pid_exists(int(pid))):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{prefix}{os.getpid()}.part")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it on success and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """A block that one process at a time enters for `path`; another waits, or stops with InputError.

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
            if not _is_at(stream, lock):  # its last owner has removed it since
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def locked_stage(output: str, folder: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a stage's `run` with an exclusive lock on `folder` beside one of its outputs.

    output: the keyword argument of `run` that holds the output's path. Of several ranks only the first takes the lock.
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
