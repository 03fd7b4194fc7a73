"""Print each job that Snakemake would start as a line of JSON: `python -m minirec.planning.planned_jobs ARGUMENTS`."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minirec.errors import InputError


@dataclass(frozen=True)
class Planned:
    """A job that Snakemake would start, and why."""

    rule: str
    log: Path
    reason: str
    wildcards: Mapping[str, str] = field(default_factory=dict)


def planned_jobs(*arguments: str) -> list[Planned]:
    """The jobs that Snakemake would start with these arguments; raises InputError if it cannot plan the workflow."""
    import snakemake  # noqa: F401  where it is missing, the error of this line says which extra brings it

    command = [
        sys.executable,
        "-m",
        "minirec.planning.planned_jobs",
        "--dry-run",
        "--nocolor",
        "--rerun-incomplete",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        problems = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise InputError(f"the workflow cannot be planned ({' '.join(problems[-3:])[:300]})")
    jobs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rule"')]
    return [Planned(job["rule"], Path(job["log"]), job["reason"], job["wildcards"]) for job in jobs if job["log"]]


class _Jobs(logging.Filter):
    """Prints the jobs among Snakemake's log records; a logging filter, as Snakemake removes foreign handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Print a record that is a job, and let every record pass."""
        if getattr(record, "event", None) == LogEvent.JOB_INFO:
            log = str(record.log[0]) if record.log else None  # type: ignore[attr-defined]
            job = {"rule": record.rule_name, "log": log, "reason": record.reason}  # type: ignore[attr-defined]
            job["wildcards"] = dict(record.wildcards or {})  # type: ignore[attr-defined]
            sys.stdout.write(json.dumps(job) + "\n")
        return True


if __name__ == "__main__":
    from snakemake.cli import main
    from snakemake.logging import logger
    from snakemake_interface_logger_plugins.common import LogEvent

    logger.addFilter(_Jobs())
    main(sys.argv[1:])
