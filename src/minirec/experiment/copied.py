"""Results that were made elsewhere: Snakemake has no record of them, so it would not see that their settings changed.

A job's log ends with a digest of the settings and code that made its outputs, and lies beside them wherever they go.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from minirec.experiment.config import MADE_BY
from minirec.experiment.job_logs import events

DECIDED = ("-F", "--forceall", "-R", "--forcerun", "-t", "--touch", "--cleanup-metadata", "--unlock")
Trigger = Callable[[str, Mapping[str, str]], str | None]  # digest of a rule's settings and code; None: no such rule


def trigger_digest(settings: str, code: str) -> str:
    """Digest of what makes a job run again, as in its log."""
    return hashlib.sha256(f"{settings}\0{code}".encode()).hexdigest()[:16]


def check(results: Path, trigger: Trigger, recorded: Callable[[Path], bool], arguments: list[str]) -> None:
    """End the program if files without Snakemake's record were made with other settings or code than now.

    recorded: whether Snakemake has a record of a file. If all such files were made as now, print what to do should jobs
    be planned because copying gave them new times. Nothing happens if the arguments decide (DECIDED).
    """
    if any(argument.split("=")[0] in DECIDED for argument in arguments):
        return
    changed: dict[str, Path] = {}
    same, datasets = 0, set()
    for rule, outputs, made_by, wildcards in _made(results):
        unrecorded = [file for file in outputs if file.exists() and not recorded(file)]
        now = trigger(rule, wildcards) if unrecorded else None
        if now is not None and now != made_by:
            changed.setdefault(rule, unrecorded[0])
            datasets.add(wildcards["dataset"])
        elif now is not None:
            same += len(unrecorded)
    if changed:
        folder = "" if results == Path("results") else f" --config results={results}"
        made = ", ".join(str(results / dataset / MADE_BY) for dataset in sorted(datasets))
        sys.exit(
            f"minirec: {', '.join(map(str, changed.values()))}: made elsewhere with other settings or code, so that "
            "Snakemake does not see what is out of date; run once with --touch --forceall under the configuration that "
            f"made them (--configfile {made}{folder}), then as now, or make them again with "
            f"--forcerun {' '.join(changed)}"
        )
    if same:
        sys.stderr.write(
            f"minirec: {same} files below {results} were made elsewhere with these settings and code; if jobs are "
            "planned only because copying changed their times, run the same command once with --touch --forceall\n"
        )


def recorded() -> Callable[[Path], bool]:
    """A function: whether Snakemake has a record of a file, in .snakemake/ of the working folder."""
    from snakemake.io import IOFile
    from snakemake.persistence.file import FilePersistence

    kept = FilePersistence(nolock=True)
    return lambda file: kept.metadata(IOFile(str(file))) is not None


def _made(results: Path) -> Iterator[tuple[str, list[Path], str, dict[str, str]]]:
    """(rule, outputs, digest, wildcards) of every finished job below a folder."""
    for log in sorted(results.rglob("logs/*.log")):
        _, end = events(log)
        if end is not None and end["reason"] == "done" and end.get("made_by"):
            outputs = [Path(os.path.normpath(log.parent / name)) for name in end["outputs"]]
            yield log.stem, outputs, end["made_by"], end["wildcards"]
