"""plan: estimate what each stage of a target will need, before a long run.

Numbers of samples and items and the lengths of prompts are read from prepare's tables. Time comes from the logs of
earlier jobs, scaled by the work, else from the speed of this machine. Where a table or a model does not exist yet, the
numbers are unknown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minirec.errors import InputError
from minirec.experiment import limits
from minirec.experiment.config import DEFAULTS, Config, load, remembered
from minirec.experiment.job_logs import RULES, cost, events
from minirec.experiment.paths import Run, compared_runs, experiment_runs, folders, logs
from minirec.experiment.sections import Backward, Passes
from minirec.planning import estimates, training_memory
from minirec.planning.estimates import Estimate, Estimates, duration
from minirec.planning.gpu_rates import MEASURED_ON_GPU, GpuRates
from minirec.planning.jobs import Job, PlannedWork, jobs
from minirec.planning.paper_models import SHAPES
from minirec.planning.workload import Shape, Sizes, Work, shape_of
from minirec.storage import memory

TARGETS = {"metrics.json": (experiment_runs, "summarise"), "comparison.parquet": (compared_runs, "compare")}
HEAD = ("rule", "model", "jobs", "read", "sampled", "TFLOP", "disk MB", "took", "estimate", "by")
GPU_RATES = Path("docs/results/gpu.csv")  # where `make bench-gpu` writes
_LINE = "  {:<15}{:<12}{:>5}{:>10}{:>10}{:>11}{:>9}{:>9}{:>10}  {}\n"


@dataclass
class Need:
    """What the jobs of a rule need for one model, in all; model: empty where they run none."""

    rule: str
    model: str
    jobs: int = 0
    work: Work = field(default_factory=Work)
    estimates: list[Estimate | None] = field(default_factory=list)  # of each job; None: unknown

    @property
    def seconds(self) -> float | None:
        """Estimated seconds of all jobs, one after the other; None if one of them is unknown."""
        known = [one.seconds for one in self.estimates if one is not None]
        return sum(known) if len(known) == self.jobs else None


def needs(
    planned: PlannedWork, runs: list[Run], last: str, known: Estimates, rates: Mapping[str, GpuRates]
) -> list[Need]:
    """What the rules need for these runs, in the order in which they run; last: the rule that reads all runs.

    rates: of a GPU, by language model; empty: the jobs run on this machine.
    """
    needed: dict[tuple[str, str], Need] = {}
    for job in jobs(planned.config, runs, last):
        key = job.rule, job.language_model
        need, work = needed.setdefault(key, Need(*key)), planned.work(job)
        need.jobs += 1
        need.work += work
        gpu, shape = rates.get(job.language_model), planned.shape(job.language_model)
        if gpu and shape and work.flop:
            seconds = estimates.GUESSED_STARTUP + gpu.seconds(work.written, work.flop, shape.parameters)
            need.estimates.append(Estimate(seconds, MEASURED_ON_GPU))
        else:
            need.estimates.append(known.of(job, work.flop))
    return sorted(needed.values(), key=lambda need: RULES.index(need.rule))


def run(*, target: str, configfile: list[Path] | None, gpu: str | None = None, gpu_rates: Path | None = None) -> None:
    """Print the plan of results/DATASET/metrics.json or comparison.parquet; raises InputError for another target.

    gpu: a part of the name of a GPU; gpu_rates: the file of `make bench-gpu` that knows it.
    """
    if gpu_rates and not gpu:
        raise InputError("--gpu-rates is a file of measured GPUs; name one of them, e.g. --gpu h100")
    folder = Path(target).parent
    config = load(DEFAULTS, *remembered(folder, configfile))
    if folder.name not in config.datasets or folder.parent != Path(config.results) or Path(target).name not in TARGETS:
        raise InputError(
            f"the target {target} is not {config.results}/DATASET/{' or '.join(TARGETS)} "
            f"with DATASET among {', '.join(config.datasets)}"
        )
    runs_of, last = TARGETS[Path(target).name]
    runs = runs_of(config)
    limits.require(config, folder, runs)
    out = sys.stdout.write
    out(f"{target}: {len(runs)} runs\n")
    for configuration in dict.fromkeys(run.configuration for run in runs):
        seeds = [run.seed for run in runs if run.configuration == configuration]
        out(f"  {configuration}, seeds {seeds}\n")
    planned, names = PlannedWork(config, folder), _models(runs)
    size = planned.sizes(names[0])
    if size is None:
        out("  samples and items: unknown until prepare has run; snakemake --until prepare makes them\n")
        return
    out(f"  {size.train} train, {size.valid} valid, {size.test} test samples; {size.items} items; {_tokens(size)}\n\n")
    known = Estimates.from_logs(Path(config.results), config.policy.dtype)
    shapes = {name: shape for name in names if (shape := planned.shape(name)) is not None}
    rates = (
        {name: _rates(gpu_rates or GPU_RATES, gpu, shape, config.sampling.engine) for name, shape in shapes.items()}
        if gpu
        else {}
    )
    rows = needs(planned, runs, last, known, rates)
    out(table(rows, measured_seconds(logs(folder, folders(config, runs)))))
    cards = ", ".join(dict.fromkeys(one.card for one in rates.values()))
    out(totals(rows, known, cards))
    for name in names:
        out(f"\n  memory of {name}: {_memory(config, folder.name, planned, name, rates.get(name))}\n")


def _models(runs: list[Run]) -> list[str]:
    """The language models of these runs, each once."""
    return list(dict.fromkeys([run.model for run in runs] + [run.selector for run in runs if run.selector != "none"]))


def _tokens(size: Sizes) -> str:
    return f"about {size.user_tokens:.0f} tokens a user prompt, {size.item_tokens:.0f} an item prompt"


def measured_seconds(files: Iterable[Path]) -> dict[tuple[str, str], float]:
    """Seconds of the finished jobs with these logs, by rule and language model."""
    found: dict[tuple[str, str], float] = {}
    for log in files:
        _, end = events(log)
        if end is not None and (spent := cost(log)) is not None:
            job = Job.of(log.stem, end.get("wildcards") or {})
            key = job.rule, job.language_model
            found[key] = found.get(key, 0.0) + spent["seconds"]
    return found


def table(rows: list[Need], spent: dict[tuple[str, str], float]) -> str:
    """A line for the jobs of each rule and model; spent: seconds of finished ones by rule and model."""
    lines = [_LINE.format(*HEAD)]
    for row in rows:
        tokens = [_count(row.work.read), _count(row.work.written)] if row.model else ["-", "-"]
        flop, disk = ("unknown", "unknown") if row.model and not row.work.flop else _flop_and_disk(row.work)
        past = duration(spent[row.rule, row.model]) if (row.rule, row.model) in spent else "-"
        seconds = "unknown" if row.seconds is None else duration(row.seconds)
        basis = ", ".join(dict.fromkeys(one.basis for one in row.estimates if one is not None))
        cells = row.rule, row.model or "-", row.jobs, *tokens, flop, disk, past, seconds, basis
        lines.append(_LINE.format(*cells))
    return "".join(lines)


def _flop_and_disk(work: Work) -> tuple[str, str]:
    flop = f"{work.flop / 1e12:,.{0 if work.flop >= 1e14 else 2}f}" if work.flop >= 1e10 else "-"
    return flop, f"{work.disk / 1e6:,.0f}" if work.disk else "-"


def _count(number: float) -> str:
    """A large number in three digits or so.

    >>> _count(950), _count(1_234_000)
    ('950', '1.23 M')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def totals(rows: list[Need], known: Estimates, cards: str) -> str:
    """The sum of the estimates, and what they rest on; cards: names of the GPUs whose rates count."""
    every = [one for row in rows for one in row.estimates]
    parts = {basis: sum(one.seconds for one in every if one and one.basis == basis) for basis in estimates.BASES}
    text = f"\n  in sum: about {duration(sum(parts.values()))}, one job after the other"
    if unknown := [f"{row.rule} of {row.model}" if row.model else row.rule for row in rows if row.seconds is None]:
        text += f", besides what is unknown until the model is fetched: {', '.join(unknown)}"
    text += "\n"
    for basis, meaning in estimates.BASES.items():
        if parts[basis]:
            more = known.speed if basis == estimates.GUESSED else cards if basis == MEASURED_ON_GPU else ""
            text += f"    {duration(parts[basis])} {basis}: {meaning}{more}\n"
    return text


def _rates(file: Path, gpu: str, shape: Shape, engine: str) -> GpuRates:
    from transformers import AutoConfig  # here, as it loads torch, which takes seconds

    measured = {name: shape_of(AutoConfig.for_model(**one), "bfloat16").parameters for name, one in SHAPES.items()}
    return GpuRates.read(file, gpu, measured, shape.parameters, engine)


def _memory(config: Config, dataset: str, planned: PlannedWork, name: str, gpu: GpuRates | None) -> str:
    model, policy = planned.shape(name), planned.language_model(name)
    if model is None or policy is None:
        return "unknown until the model is fetched"
    step = training_memory.tokens(
        policy, config.train, config.sampling, Passes().batch_tokens, Backward().micro_batch_prompts
    )
    parts = training_memory.parts(policy, model, config.train, step)
    needed = sum(parts.values())
    text = (
        f"about {needed / 1e9:.1f} GB in a training step ({model.parameters / 1e6:.0f} M parameters in "
        f"{config.policy.dtype}, {step.reading:,.0f} tokens read again at a time); less with the resources "
        "micro_batch_prompts and batch_tokens"
    )
    for part, size in parts.items():
        text += f"\n    {part:<40}{size / 1e9:>7.2f} GB"
    if gpu is not None:
        fits = "fits" if needed < gpu.memory else "does NOT fit; lower the two resources"
        return f"{text}\n    a {gpu.card} has {gpu.memory / 1e9:.0f} GB: it {fits}"
    if needed > (free := memory.free()):
        text += (
            f"\n  this machine has {free / 1e9:.1f} GB free: set a stricter datasets.{dataset}.filter, "
            "embed.keep_frozen_states to false, or take a larger one"
        )
    return text
