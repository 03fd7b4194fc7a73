"""Give each job of a machine GPUs of its own, so that several jobs at a time use several GPUs."""

from __future__ import annotations

import fcntl
import itertools
import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"


def choose(processes: int, environment: MutableMapping[str, str]) -> None:
    """Make only GPUs visible that the fewest of this user's other jobs use, one for each process.

    Nothing changes where Slurm, the user or a launcher has chosen, or where all GPUs are wanted.
    """
    if not {VISIBLE, "SLURM_JOB_ID", "RANK"} & set(environment):
        import torch

        if 0 < processes < (count := torch.cuda.device_count()):
            environment[VISIBLE] = ",".join(map(str, claim(processes, count)))


def claim(wanted: int, count: int) -> list[int]:
    """The numbers of `wanted` of `count` GPUs; each is locked until this process ends, however it ends.

    A lock is a file for each place on each GPU. A second job takes another GPU; it takes the second place on one, as
    jobs that share a GPU do, only where all first places are taken.
    """
    claimed: list[int] = []
    for place in itertools.count():
        for gpu in range(count):
            if gpu not in claimed and len(claimed) < wanted and _lock(f"gpu{gpu}-{place}"):
                claimed.append(gpu)
        if len(claimed) == wanted:
            break
    return claimed


def _lock(name: str) -> bool:
    """Whether the lock of this name was free; this process, and the program it becomes, then holds it until the end."""
    file = os.open(Path(tempfile.gettempdir()) / f"minirec-{os.getuid()}-{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    os.set_inheritable(file, True)
    return True
