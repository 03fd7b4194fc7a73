"""Free memory, so that a stage that needs more stops before it begins its work."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

from minirec.errors import InputError

CONTAINERS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # lines "number:controllers:/path"; cgroup version 2 names no controllers
FILES = (  # limit, use, and entry of the use that is only cached files; in cgroup versions 2 and 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free() -> int:
    """Bytes that this process may still allocate, by the machine, its containers (as Slurm uses them) and ulimit."""
    limits = [psutil.virtual_memory().available, *_left_in_containers()]
    ulimit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if ulimit != resource.RLIM_INFINITY:
        limits.append(ulimit - psutil.Process().memory_info().vms)
    return max(0, min(limits))


def _left_in_containers() -> Iterator[int]:
    """Bytes left in each container (control group) around this process, from the innermost outwards."""
    for line in OWN.read_text().splitlines() if OWN.is_file() else ():
        _, controllers, path = line.split(":", 2)
        innermost = CONTAINERS / controllers / path.lstrip("/")
        for folder in (innermost, *innermost.parents):
            for limit, used, cache in FILES:
                if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()).isdigit():
                    stat = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                    yield int(text) - int((folder / used).read_text()) + int(stat.get(cache, 0))


def require(needed: float, what: str, advice: str) -> None:
    """Raise InputError, which says what needs the memory and adds `advice`, if fewer bytes are free than `needed`."""
    available = free()
    if needed > available:
        raise InputError(
            f"{what} needs about {needed / 1e9:.1f} GB of memory, but {available / 1e9:.1f} GB is free; {advice}"
        )
