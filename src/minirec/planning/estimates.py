"""How long jobs will take, by what earlier jobs took (from their logs), scaled by the work.

A job takes `startup + operations / rate`: the seconds until it has loaded its libraries and its model, and the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minirec.experiment.job_logs import events
from minirec.planning.gpu_rates import MEASURED_ON_GPU
from minirec.planning.jobs import STAGES, Job

GUESSED_STARTUP = 6.0  # seconds: libraries and a small model
EFFICIENCY = 0.5  # of the speed of a product of matrices; measured with the quickstart, float32, two CPU cores
SHORT = ("gather", "score", "select", "curriculum", "measure", "measure_base", "summarise", "compare")  # seconds
MEASURED, SIMILAR, GUESSED = "measured", "similar", "guess"
BASES = {
    MEASURED: "what earlier jobs of the same rule and model took here, scaled by their operations",
    SIMILAR: "what earlier jobs of the same stage, or of the same model, took here, scaled by their operations",
    MEASURED_ON_GPU: "the rates that make bench-gpu measured on ",
    GUESSED: "no such job has run here yet; ",
}


@dataclass(frozen=True)
class Finished:
    """What the log of a job that succeeded says."""

    job: Job
    seconds: float
    startup: float  # seconds
    flop: float  # operations of its work; 0: not known

    @classmethod
    def read(cls, log: Path) -> Finished | None:
        """What a log says; None if the job has not succeeded, or went on with an interrupted one."""
        _, end = events(log)
        if end is None or end["reason"] != "done" or end.get("resumed"):
            return None
        job = Job.of(log.stem, end.get("wildcards") or {})
        return cls(job, end["seconds"], end.get("startup_seconds", 0.0), end.get("flop", 0.0))


@dataclass(frozen=True)
class Estimate:
    """Seconds that a job will take. basis: MEASURED on its rule and model, SIMILAR rule or model, or GUESSED."""

    seconds: float
    basis: str


class Estimates:
    """Estimates seconds of planned jobs from finished ones."""

    def __init__(self, finished: Iterable[Finished], rate: Callable[[], float]) -> None:
        """rate: operations a second of this machine, called where no finished job is similar."""
        self.finished, self.rate = list(finished), rate

    @property
    def speed(self) -> str:
        """What the guesses assume, as text."""
        speed = f"{self.rate() / 1e9:,.0f} GFLOP a second"
        return f"{speed}, {EFFICIENCY:.0%} of what this machine does in a product of matrices"

    @classmethod
    def from_logs(cls, results: Path, dtype: str) -> Estimates:
        """Estimates from all logs below a folder of results; dtype: `policy.dtype`, in which this machine computes."""
        found = [Finished.read(log) for log in sorted(results.rglob("logs/*.log"))]
        return cls([one for one in found if one is not None], lambda: EFFICIENCY * matrix_rate(dtype))

    def of(self, job: Job, flop: float) -> Estimate | None:
        """How long a job of so many operations will take; None if nothing tells it.

        A job that runs no language model and whose operations are not known takes the mean of its rule.
        """
        model = job.language_model
        same = [one for one in self.finished if one.job.rule == job.rule and one.job.language_model == model]
        if flop <= 0:
            if model or (not same and job.rule not in SHORT):
                return None
            seconds = sum(one.seconds for one in same) / len(same) if same else GUESSED_STARTUP
            return Estimate(seconds, MEASURED if same else GUESSED)
        stage = [one for one in self.finished if model and STAGES.get(one.job.rule) == STAGES[job.rule]]
        other = [one for one in self.finished if model and one.job.language_model == model]
        for similar, basis in ((same, MEASURED), (stage, SIMILAR), (other, SIMILAR)):
            if known := [one for one in similar if one.flop > 0]:
                return Estimate(scaled(known, flop), basis)
        return Estimate(GUESSED_STARTUP + flop / self.rate(), GUESSED)


def scaled(finished: list[Finished], flop: float) -> float:
    """Seconds of a job of so many operations, at the rate of finished ones.

    >>> scaled([Finished(Job("train"), seconds=30, startup=10, flop=2e9)], flop=4e9)
    50.0
    """
    startup = sum(one.startup for one in finished) / len(finished)
    working = sum(max(one.seconds - one.startup, 0.0) for one in finished)
    return startup + working * flop / sum(one.flop for one in finished)


@cache
def matrix_rate(dtype: str) -> float:
    """Operations a second of a product of matrices on this machine, on its GPU if it has one; takes about a second."""
    import torch  # here, as it takes seconds to load

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 1024
    matrix = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    best, deadline = float("inf"), time.perf_counter() + 0.5
    while time.perf_counter() < deadline or best == float("inf"):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def duration(seconds: float) -> str:
    """Seconds as text in the unit that suits them.

    >>> duration(45.2), duration(600), duration(9000), duration(400_000)
    ('45 s', '10 min', '2.5 h', '4.6 days')
    """
    for unit, size, most in (("s", 1, 100), ("min", 60, 100 * 60), ("h", 3600, 72 * 3600)):
        if seconds < most:
            digits = 0 if unit != "h" else 1
            return f"{seconds / size:,.{digits}f} {unit}"
    return f"{seconds / 86400:,.1f} days"
