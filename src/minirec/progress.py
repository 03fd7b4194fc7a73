"""The log and the progress of a stage: a progress bar on a terminal, else a log line every 15 seconds."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

log = logging.getLogger("minirec")
LINE_SECONDS = 15.0  # between two lines of progress where there is no terminal
BEAT_SECONDS = 30.0  # between two touches of a running job's log
_counted: dict[str, tuple[int, float]] = {}  # (units, seconds) of each loop of this job, by e.g. "rollout samples"
_noted: dict[str, Any] = {}  # what else the last line of this job's log says


def start_log(stage: str, file: Path | None) -> None:
    """Send a stage's log to stderr, and also to `file` unless it is None.

    Of earlier attempts at a job that has not succeeded yet, `file` keeps the JSON lines: they say what these took.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(_unfinished(file)), encoding="utf-8")
        handlers.append(logging.FileHandler(file, mode="a", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(f"%(asctime)s {stage:<10} %(message)s", "%H:%M:%S"))
    log.handlers[:] = handlers
    log.setLevel(logging.INFO)
    log.propagate = False


def _unfinished(file: Path) -> list[str]:
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    events = [line for line in lines if line.startswith('{"event": ') and line.endswith("}\n")]
    return [] if events and '"reason": "done"' in events[-1] else events


def note(**values: Any) -> None:
    """Add values to the last line of this job's log."""
    _noted.update(values)


def loaded() -> None:
    """Note that the job has loaded its libraries, or its model; what comes before the last such call is its startup."""
    note(loaded_at=time.monotonic())


class Job:
    """Writes a JSON line to a job's log file when the job starts, and one with its time and memory when it ends.

    Where the second line is missing, the job is still running or was killed.
    """

    def __init__(self, stage: str, file: Path | None, wildcards: Mapping[str, str], **notes: Any) -> None:
        """`notes` become part of both lines."""
        self.file, self.started = file, time.monotonic()
        self.name = {"stage": stage, "wildcards": dict(wildcards), **notes}
        _counted.clear()
        _noted.clear()
        self._append(event="start", **self.name, host=socket.gethostname(), pid=os.getpid())
        self._ended = threading.Event()
        if file is not None:
            threading.Thread(target=self._beat, args=(file,), daemon=True).start()

    def end(self, reason: str) -> None:
        """Write the line of the end; `reason` is "done", or says why the job failed."""
        self._ended.set()
        loaded_at = _noted.pop("loaded_at", self.started)
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        peak = max(who.ru_maxrss for who in used)
        self._append(
            event="end",
            **self.name,
            reason=reason,
            seconds=round(time.monotonic() - self.started, 3),
            startup_seconds=round(loaded_at - self.started, 3),
            cpu_seconds=round(sum(who.ru_utime + who.ru_stime for who in used), 3),
            peak_mib=round(peak / (1024 if sys.platform != "darwin" else 2**20), 1),
            per_second={what: float(f"{n / max(s, 1e-9):.4g}") for what, (n, s) in _counted.items()},
            **_noted,
        )

    def _beat(self, file: Path) -> None:
        """Touch the log every BEAT_SECONDS: its time of change tells other machines that the job is alive."""
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(file)

    def _append(self, **line: Any) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")


class Progress:
    """Counts the finished units of a loop and shows their number and rate; made by `progress`."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.first, self.started, self.last = done, time.monotonic(), time.monotonic()
        if done:
            note(resumed=True)
        live = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", disable=not live, leave=False)

    def add(self, count: int = 1) -> None:
        """Count `count` more units as done."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and now - self.last >= LINE_SECONDS and self.done < self.total:
            self.last = now
            rate = (self.done - self.first) / (now - self.started)
            left = (self.total - self.done) / rate if rate else float("inf")
            log.info("%s: %d of %d %s, %.3g/s, %.0f s left", self.what, self.done, self.total, self.unit, rate, left)

    def skip(self, count: int) -> None:
        """Count `count` units that an earlier job finished; they do not enter the rate."""
        note(resumed=True)
        self.first += count
        self.done += count
        self.bar.update(count)

    def close(self) -> None:
        """Remove the bar and log the rate."""
        self.bar.close()
        seconds = time.monotonic() - self.started
        count = self.done - self.first
        before = _counted.get(f"{self.what} {self.unit}", (0, 0.0))
        _counted[f"{self.what} {self.unit}"] = before[0] + count, before[1] + seconds
        log.info("%s: %d %s in %.1f s (%.3g/s)", self.what, count, self.unit, seconds, count / max(seconds, 1e-9))


@contextmanager
def progress(what: str, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
    """Show the progress of a loop: `with progress("rollout", n, "samples") as p: ... p.add()`."""
    bar = Progress(what, total, unit, done)
    try:
        yield bar
    finally:
        bar.close()
