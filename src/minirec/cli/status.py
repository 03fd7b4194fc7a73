"""status: what of a data set's results is done, running, failed or stale, and what the rest will take.

The jobs are those of two dry runs of the workflow, one as things are and one that forces everything; their states come
from the job logs, the seconds from the benchmark files of jobs of the same rule.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minirec.errors import InputError
from minirec.experiment.config import load
from minirec.experiment.rules import recorded

STATES = ("done", "running", "failed", "stale", "planned")
SILENCE = 120.0  # seconds after which a job on another machine counts as dead; a job touches it every 30 s


@dataclass(frozen=True)
class Planned:
    """A job of the workflow as a dry run prints it."""

    rule: str
    log: Path
    benchmark: Path
    reason: str


@dataclass(frozen=True)
class State:
    """A job, its state, why, and its seconds: measured where it is done, else expected; None where nobody knows."""

    job: Planned
    state: str
    why: str
    seconds: float | None


def jobs(text: str) -> list[Planned]:
    """The jobs that the output of a dry run names."""
    found = []
    for block in re.split(r"\n(?=(?:local)?rule \w+:\n)", "\n" + text)[1:]:
        rule = block.split(":", 1)[0].split()[1]
        about = dict(re.findall(r"^    (log|benchmark|reason): (.*)$", block, re.MULTILINE))
        if "log" in about and "benchmark" in about:
            found.append(Planned(rule, Path(about["log"]), Path(about["benchmark"]), about.get("reason", "").strip()))
    return found


def ending(log: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The structured first and last line of a job's log; None where it has none."""
    start = end = None
    if log.is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith('{"event": '):
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                start, end = (event, None) if event["event"] == "start" else (start, event)
    return start, end


def alive(start: dict[str, Any], log: Path) -> bool:
    """Whether the process of a started job still runs; on another machine, whether its log is still touched."""
    if start["host"] != socket.gethostname():
        return time.time() - log.stat().st_mtime < SILENCE
    try:
        command = Path(f"/proc/{start['pid']}/cmdline").read_bytes()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
        return _exists(start["pid"])
    return b"minirec" in command  # else another process has the number by now


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def states(everything: Iterable[Planned], planned: Iterable[Planned], benchmarks: Path) -> list[State]:
    """The state of every job; `planned` are those that the next run would start."""
    open_jobs = {job.log: job for job in planned}
    measured: dict[str, list[float]] = {}
    everything = list(everything)
    for job in everything:
        if (seconds := recorded(job.benchmark)) is not None:
            measured.setdefault(job.rule, []).append(seconds)
    found = []
    for job in everything:
        seconds = recorded(job.benchmark)
        start, end = ending(job.log)
        if start is not None and end is None and alive(start, job.log):
            found.append(State(job, "running", "", _expected(job, measured, benchmarks)))
        elif job.log not in open_jobs:
            found.append(State(job, "done", "", seconds))
        else:
            why = open_jobs[job.log].reason
            expected = _expected(job, measured, benchmarks)
            if start is not None and end is None:
                found.append(State(job, "failed", "killed", expected))
            elif end is not None and end["reason"] != "done":
                found.append(State(job, "failed", str(end["reason"]), expected))
            elif why.startswith("Missing output"):
                found.append(State(job, "planned", "", expected))
            else:
                found.append(State(job, "stale", why, expected))
    return found


def _expected(job: Planned, measured: dict[str, list[float]], benchmarks: Path) -> float | None:
    """Mean seconds of the jobs of the same rule, here or, where there are none, on other data sets."""
    known = measured.get(job.rule)
    if not known:
        parts = job.benchmark.relative_to(benchmarks).parts if job.benchmark.is_relative_to(benchmarks) else ()
        names = sorted(benchmarks.glob(f"*/{Path(parts[1]).stem}*")) if len(parts) > 1 else []
        files = [file for name in names for file in (name.rglob("*.tsv") if name.is_dir() else [name])]
        known = [seconds for file in files if (seconds := recorded(file)) is not None]
    return sum(known) / len(known) if known else None


def text(folder: Path, found: list[State]) -> str:
    """What the terminal shows."""
    rules = list(dict.fromkeys(state.job.rule for state in found))
    lines = [f"{folder}: {len(found)} jobs\n", f"  {'rule':<26}" + "".join(f"{s:>9}" for s in STATES) + f"{'s':>12}"]
    for rule in rules:
        own = [state for state in found if state.job.rule == rule]
        counts = "".join(f"{sum(state.state == s for state in own) or '-':>9}" for s in STATES)
        known = [state.seconds for state in own if state.seconds is not None]
        lines.append(f"  {rule:<26}{counts}{f'{sum(known) / len(known):,.1f}' if known else 'unknown':>12}")
    notes = [state for state in found if state.why]
    if notes:
        lines.append("")
    for state in notes:
        lines.append(f"  {state.state} {state.job.rule}: {' '.join(state.why.split())[:160]}")
        if state.state == "failed":
            lines.append(f"    log: {state.job.log}")
    left = [state for state in found if state.state != "done"]
    if left:
        known = [state.seconds for state in left if state.seconds is not None]
        unknown = sorted({state.job.rule for state in left if state.seconds is None})
        lines.append(f"\n  left: {len(left)} jobs, about {sum(known):,.0f} s one after the other")
        if unknown:
            lines[-1] += f", besides what no job has shown yet: {', '.join(unknown)}"
    else:
        lines.append("\n  nothing is left to do")
    return "\n".join(lines) + "\n"


def dry_run(target: str, config: list[Path], *flags: str) -> list[Planned]:
    """The jobs a run would start; raises InputError where the workflow cannot be planned."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--nocolor", "--rerun-incomplete", "--quiet", "host"]
    command += [*flags, "--configfile", *map(str, config), "--", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        problems = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise InputError(f"the workflow cannot be planned ({' '.join(problems[-3:])[:300]})")
    return jobs(done.stdout + done.stderr)


def run(*, folder: Path, config: list[Path]) -> None:
    """Print the status of results/DATASET; raises InputError for another folder."""
    given = load(Path("config/config.yaml"), *[file for file in config if file != Path("config/config.yaml")])
    if str(folder.parent) != str(Path(given.results)) or folder.name not in given.datasets:
        names = ", ".join(given.datasets)
        raise InputError(f"{folder} is not {given.results}/DATASET with DATASET among {names}")
    target = f"{folder}/metrics.json"
    planned = dry_run(target, config)
    everything = dry_run(target, config, "--forceall")
    sys.stdout.write(text(folder, states(everything, planned, Path(given.results) / "benchmarks")))
