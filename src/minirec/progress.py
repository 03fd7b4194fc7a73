"""Progress and logs: a bar with rate and ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger("minirec")
LINE_SECONDS = 15.0  # between two lines where there is no terminal


def start_log(stage: str, file: Path | None) -> None:
    """Send a stage's log to stderr, and to a file where one is named."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, mode="w", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {stage:<10} %(message)s", "%H:%M:%S"))
    log.handlers[:] = handlers
    log.setLevel(logging.INFO)
    log.propagate = False


class Progress:
    """Counts units of work; made by `progress`."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.first, self.started, self.last = done, time.monotonic(), time.monotonic()
        live = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", disable=not live, leave=False)

    def add(self, count: int = 1) -> None:
        """Note that `count` more units are done."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and now - self.last >= LINE_SECONDS and self.done < self.total:
            self.last = now
            rate = (self.done - self.first) / (now - self.started)
            left = (self.total - self.done) / rate if rate else float("inf")
            log.info("%s: %d of %d %s, %.3g/s, %.0f s left", self.what, self.done, self.total, self.unit, rate, left)

    def close(self) -> None:
        """End the bar and log the rate."""
        self.bar.close()
        seconds = time.monotonic() - self.started
        count = self.done - self.first
        log.info("%s: %d %s in %.1f s (%.3g/s)", self.what, count, self.unit, seconds, count / max(seconds, 1e-9))


@contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show the progress of a loop: `with progress("rollout", n, "samples") as p: ... p.add()`."""
    bar = Progress(what, total, unit, done)
    try:
        yield bar
    finally:
        bar.close()
