"""status: which jobs of a data set's results are done, running, failed or stale, and how long the rest will take.

Snakemake plans the workflow twice, once for all jobs and once for those still to run; states and times come from the
job logs. The times of jobs to come are estimated as by `plan`.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from minirec.errors import InputError
from minirec.experiment.config import DEFAULTS, Config, load, remembered
from minirec.experiment.job_logs import cost, events
from minirec.planning import jobs
from minirec.planning.estimates import GUESSED, Estimate, Estimates, duration
from minirec.planning.planned_jobs import Planned, planned_jobs

STATES = ("done", "running", "failed", "stale", "planned")
SILENCE = 120.0  # seconds; a job on another machine that has not touched its log for so long counts as dead


@dataclass(frozen=True)
class State:
    """A job with its state, the reason for it, and its seconds: measured if done, else expected; None: unknown."""

    job: Planned
    state: str
    why: str
    seconds: float | None
    guessed: bool = False  # no earlier job tells the seconds


def alive(start: dict[str, Any], log: Path) -> bool:
    """Whether a started job still runs: its process; on another machine, whether it still touches its log."""
    if start["host"] != socket.gethostname():
        return time.time() - log.stat().st_mtime < SILENCE
    try:  # another process may have the number by now
        return any("minirec" in word for word in psutil.Process(start["pid"]).cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def states(
    everything: list[Planned], planned: Iterable[Planned], expected: Callable[[Planned], Estimate | None]
) -> list[State]:
    """The state of every job; planned: those that the next run would start; expected: how long a job will take."""
    open_jobs = {job.log: job for job in planned}
    rows = []
    for job in everything:
        start, end = events(job.log)
        if start is not None and end is None and alive(start, job.log):
            rows.append(_to_come(job, "running", "", expected))
        elif job.log not in open_jobs:
            spent = cost(job.log)
            rows.append(State(job, "done", "", spent["seconds"] if spent else None))
        elif start is not None and end is None:
            rows.append(_to_come(job, "failed", "killed", expected))
        elif end is not None and end["reason"] != "done":
            rows.append(_to_come(job, "failed", str(end["reason"]), expected))
        elif open_jobs[job.log].reason.startswith("Missing output"):
            rows.append(_to_come(job, "planned", "", expected))
        else:
            rows.append(_to_come(job, "stale", open_jobs[job.log].reason, expected))
    return rows


def _to_come(job: Planned, state: str, why: str, expected: Callable[[Planned], Estimate | None]) -> State:
    estimate = expected(job)
    if estimate is None:
        return State(job, state, why, None)
    return State(job, state, why, estimate.seconds, estimate.basis == GUESSED)


def expected_by(settings: Config, folder: Path) -> Callable[[Planned], Estimate | None]:
    """A function that estimates how long a job of a data set's results will take; folder: these results."""
    known = Estimates.from_logs(Path(settings.results), settings.policy.dtype)
    planned = jobs.PlannedWork(settings, folder)

    def expected(one: Planned) -> Estimate | None:
        job = jobs.Job.of(one.log.stem, one.wildcards)
        return known.of(job, planned.work(job).flop)

    return expected


def text(folder: Path, rows: list[State]) -> str:
    """The text that `status` prints."""
    rules = list(dict.fromkeys(state.job.rule for state in rows))
    lines = [f"{folder}: {len(rows)} jobs\n", f"  {'rule':<26}" + "".join(f"{s:>9}" for s in STATES) + f"{'s':>12}"]
    for rule in rules:
        of_rule = [state for state in rows if state.job.rule == rule]
        counts = "".join(f"{sum(state.state == s for state in of_rule) or '-':>9}" for s in STATES)
        known = [state.seconds for state in of_rule if state.seconds is not None]
        lines.append(f"  {rule:<26}{counts}{f'{sum(known) / len(known):,.1f}' if known else 'unknown':>12}")
    notes = [state for state in rows if state.why]
    if notes:
        lines.append("")
    for state in notes:
        lines.append(f"  {state.state} {state.job.rule}: {' '.join(state.why.split())[:160]}")
        if state.state == "failed":
            lines.append(f"    log: {state.job.log}")
    left = [state for state in rows if state.state != "done"]
    if left:
        seconds = sum(state.seconds for state in left if state.seconds is not None)
        lines.append(f"\n  left: {len(left)} jobs, about {duration(seconds)} one after the other")
        for what, some in (
            ("guessed, as no such job has run yet", [state for state in left if state.guessed]),
            ("unknown yet", [state for state in left if state.seconds is None]),
        ):
            if some:
                lines.append(f"    {what}: {', '.join(sorted({state.job.rule for state in some}))}")
    else:
        lines.append("\n  nothing is left to do")
    return "\n".join(lines) + "\n"


def run(*, folder: Path, configfile: list[Path] | None) -> None:
    """Print the status of results/DATASET; raises InputError for another folder."""
    files = remembered(folder, configfile)
    settings = load(DEFAULTS, *files)
    if str(folder.parent) != str(Path(settings.results)) or folder.name not in settings.datasets:
        names = ", ".join(settings.datasets)
        raise InputError(f"{folder} is not {settings.results}/DATASET with DATASET among {names}")
    flags = ["--configfile", *map(str, files)] if files else []
    everything = planned_jobs("--forceall", *flags, "--", f"{folder}/metrics.json")
    planned = planned_jobs(*flags, "--", f"{folder}/metrics.json")
    sys.stdout.write(text(folder, states(everything, planned, expected_by(settings, folder))))
