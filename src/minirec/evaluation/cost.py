"""What the jobs of an experiment cost, from the benchmark files of the workflow."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def job_costs(benchmarks: Path, jobs: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds and peak memory (MiB) of each job that has run; `benchmarks`/JOB.tsv is the file of a job."""
    costs = {}
    for job in jobs:
        if not (file := benchmarks / f"{job}.tsv").is_file():
            continue
        with file.open(encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["s"] not in ("", "NA")]
        if rows:
            memory = [float(row["max_rss"]) for row in rows if row["max_rss"] not in ("", "-", "NA")]
            costs[job] = {"seconds": float(rows[-1]["s"]), "max_rss_mib": max(memory, default=0.0)}
    return costs


def seconds_by_stage(costs: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Seconds of all jobs of a stage; a job's name starts with its stage.

    >>> seconds_by_stage({"train/a": {"seconds": 2.0}, "train/b": {"seconds": 3.0}, "score/a": {"seconds": 1.0}})
    {'train': 5.0, 'score': 1.0}
    """
    total: dict[str, float] = {}
    for job, cost in costs.items():
        stage = job.split("/")[0]
        total[stage] = total.get(stage, 0.0) + cost["seconds"]
    return total
