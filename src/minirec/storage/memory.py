"""How much memory there is, so that a stage stops in one sentence before hours of work that cannot end."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

from minirec.errors import InputError

CONTAINERS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # lines "number:controllers:/path", of version 2 without controllers
FILES = (  # limit, used, and what of it is only files' cache; of version 2 and of version 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free() -> int:
    """Bytes this process may still take: of the machine, of its containers (as Slurm's jobs are), of its own limit."""
    found = [psutil.virtual_memory().available, *_left()]
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    if own != resource.RLIM_INFINITY:
        found.append(own - psutil.Process().memory_info().vms)
    return max(0, min(found))


def _left() -> Iterator[int]:
    """Bytes left in each container around this process; one may lie in another."""
    for line in OWN.read_text().splitlines() if OWN.is_file() else ():
        _, controllers, path = line.split(":", 2)
        inmost = CONTAINERS / controllers / path.lstrip("/")
        for folder in (inmost, *inmost.parents):
            for limit, used, cache in FILES:
                if (folder / limit).is_file() and (text := (folder / limit).read_text().strip()).isdigit():
                    stat = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                    yield int(text) - int((folder / used).read_text()) + int(stat.get(cache, 0))


def require(needed: float, what: str, advice: str) -> None:
    """Raise InputError where `what` needs more bytes than there are."""
    there = free()
    if needed > there:
        raise InputError(
            f"{what} needs about {needed / 1e9:.1f} GB of memory, but {there / 1e9:.1f} GB is free; {advice}"
        )
