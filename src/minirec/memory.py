"""How much memory there is, so that a stage stops in one sentence before hours of work that cannot end."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil

from minirec.errors import InputError

CONTAINER = Path("/sys/fs/cgroup")


def free() -> int:
    """Bytes this process may still take: of the machine, of its container, of its own limit."""
    found = [psutil.virtual_memory().available]
    limit, used = CONTAINER / "memory.max", CONTAINER / "memory.current"
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        found.append(int(text) - int(used.read_text()))
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    if own != resource.RLIM_INFINITY:
        found.append(own - psutil.Process().memory_info().vms)
    return max(0, min(found))


def require(needed: float, what: str, advice: str) -> None:
    """Raise InputError where `what` needs more bytes than there are."""
    there = free()
    if needed > there:
        raise InputError(
            f"{what} needs about {needed / 1e9:.1f} GB of memory, but {there / 1e9:.1f} GB is free; {advice}"
        )
