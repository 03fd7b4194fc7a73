"""Stages in processes of their own, forked from one that has imported the libraries and done nothing else.

Such a process starts at once; a new interpreter would import for longer than a stage of the tests works.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minirec.cli import main
from minirec.experiment.commands import STAGES

SECONDS = 600  # longer is a hang
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["transformers.models.llama.modeling_llama", *(f"minirec.stages.{s}" for s in STAGES)])


@dataclass(frozen=True)
class Running:
    """A stage at work, and the file that takes what it says."""

    process: Any
    said: Path

    def end(self) -> tuple[int, str]:
        """Wait; the exit status, negative for a signal, and what was said."""
        self.process.join(SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"no end within {SECONDS} s: {self.said.read_text(encoding='utf-8', errors='replace')}")
        text = self.said.read_text(encoding="utf-8", errors="replace")
        self.said.unlink()
        return self.process.exitcode, text


def import_libraries() -> None:
    """Let the process that all are forked from start; it imports while the caller goes on."""
    _fork(os.getpid)


def start(words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, first: str = "") -> Running:
    """Start `minirec WORDS` in a folder, with these variables and one thread, after the code `first`."""
    said = Path(tempfile.mkstemp()[1])
    return Running(_fork(_child, list(words), folder, said, dict(environment or {}), first), said)


def _fork(target: Callable[..., Any], *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")  # of the first call: the process that all are forked from keeps it
        process = FORKS.Process(target=target, args=arguments)
        process.start()
    return process


def _child(words: list[str], folder: Path, said: Path, environment: dict[str, str], first: str) -> None:
    os.chdir(folder)
    os.environ |= environment
    with said.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    exec(first, {})
    sys.exit(main.main(words))
