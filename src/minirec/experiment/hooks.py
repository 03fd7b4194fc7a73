"""What the workflow does besides its rules: checks before it plans, a note when it starts, words when it ends."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from snakemake.exceptions import UnknownRuleException

from minirec.experiment import copied, paths
from minirec.experiment.config import MADE_BY, Config
from minirec.experiment.job_logs import events
from minirec.experiment.validation import suggestion
from minirec.storage.files import atomic_write


def check_targets(config: Config, arguments: Iterable[str]) -> None:
    """End the program with one sentence if a target among the arguments names an unknown data set."""
    top = Path(config.results)
    for target in map(Path, arguments):
        made = target.suffix in (".json", ".parquet", ".safetensors", ".txt", ".png")  # no value of an option
        if made and target.is_relative_to(top) and len(target.parts) > len(top.parts) + 1:
            dataset = target.relative_to(top).parts[0]
            if dataset not in config.datasets:
                known = ", ".join(config.datasets)
                hint = suggestion(dataset, config.datasets)
                sys.exit(f"minirec: {target}: the data set {dataset} is not among {known}{hint}; name it in `datasets`")


def check_copied(config: Config, workflow: Any) -> None:
    """End the program if results made elsewhere are out of date, see `copied.check`. workflow: Snakemake's."""

    def trigger(rule: str, wildcards: Mapping[str, str]) -> str | None:
        try:
            made = workflow.get_rule(rule).params
            return copied.trigger_digest(made.settings(wildcards), made.code(wildcards))
        except (KeyError, UnknownRuleException):  # of a variant, model or shard that is not configured now
            return None

    if workflow.is_main_process:
        copied.check(Path(config.results), trigger, copied.recorded(), sys.argv[1:])


def remember(config: Config, jobs: Iterable[Any]) -> None:
    """Write the configuration into the results of every data set that these jobs work on."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    for dataset in {job.wildcards.get("dataset") for job in jobs} & set(config.datasets):
        folder = Path(paths.FOLDERS["top"].format(results=config.results, dataset=dataset))
        with atomic_write(folder / MADE_BY) as partial:
            partial.write_text(text, encoding="utf-8")


def print_failures(config: Config, started: float) -> None:
    """Print why each job failed that failed since `started`, one sentence each."""
    for log in sorted([*Path(config.results).rglob("logs/*.log"), *Path("data/logs").rglob("*.log")]):
        _, end = events(log)
        if end is not None and end["reason"] != "done" and log.stat().st_mtime >= started:
            sys.stderr.write(f"minirec: {end['stage']} failed, {end['reason']} (log: {log})\n")


def print_summaries(config: Config, started: float) -> None:
    """Print the summaries and comparisons that were written since `started`."""
    for file in sorted(Path(config.results).glob("*/*.txt")):
        if file.stat().st_mtime >= started:
            sys.stdout.write(file.read_text(encoding="utf-8"))
