"""What the Snakefile asks of a configuration: flags, wildcards, resources and the runs behind a target."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from minirec.errors import InputError
from minirec.experiment import config
from minirec.experiment.config import METHODS, SIGNAL_FREE, Config

Wildcards = Mapping[str, str]
PICTURES = ("rewards", "scores", "curriculum")  # of the main experiment


def checked(raw: Mapping[str, Any]) -> Config:
    """The configuration Snakemake merged; ends the program with one sentence where it is wrong."""
    try:
        return config.validate(raw)
    except InputError as error:
        sys.exit(f"minirec: configuration error: {error}")


def own_python_first() -> None:
    """Let `python` in a rule mean the Python that runs Snakemake; an environment that a job activates still wins."""
    folders = [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)]
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys(folders))


def settings(given: Config, stage: str) -> Callable[[Wildcards], str]:
    """The flags of a stage as a function of the wildcards: a variant of a method has settings of its own."""
    return lambda wildcards: config.flags(given, stage, wildcards.get("method"))


def named(wildcards: Wildcards) -> list[str]:
    """A job's wildcards as NAME=VALUE, for its log."""
    return [f"{name}={value}" for name, value in wildcards.items()]


def entry(given: Config, kind: str, name: str) -> str:
    """Where a data set or model comes from, as JSON; a data set's filter is not part of it."""
    return str(getattr(given, kind)[name].model_dump_json(exclude={"filter"}, exclude_defaults=True))


def data_filter(given: Config, dataset: str) -> str:
    """The filter of a data set as JSON."""
    return str(given.datasets[dataset].filter.model_dump_json(exclude_defaults=True))


def prepare_inputs(given: Config, dataset: str) -> dict[str, str]:
    """The two files of a data set; ends the program with one sentence where they are yours to provide and missing."""
    files = {"interactions": f"data/{dataset}/interactions.parquet", "item_file": f"data/{dataset}/items.parquet"}
    missing = [file for file in files.values() if not Path(file).is_file()]
    if given.datasets[dataset].source == "own" and missing:
        sys.exit(
            f"minirec: the data set {dataset} is your own (source: own), but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there; put {'it' if len(missing) == 1 else 'them'} there"
        )
    return files


def gradient_inputs(given: Config) -> Callable[[Any], dict[str, str]]:
    """What `gradient.space: lora` reads besides the kept hidden states: the policy and what it read."""

    def inputs(wildcards: Any) -> dict[str, str]:
        top = f"{wildcards.results}/{wildcards.dataset}"
        proxy = f"{top}/signals/{wildcards.selector}/proxy/adapter"
        return {"catalogue": f"{top}/catalogue.parquet", "model": f"data/models/{wildcards.selector}", "adapter": proxy}

    return inputs if given.gradient.space == "lora" else lambda wildcards: {}


def flags_of(*names: str) -> Callable[[Any, Any], str]:
    """Inputs that a rule has or has not as flags of the same names, a function of wildcards and input."""

    def flags(wildcards: Any, input: Any) -> str:
        found = {name: input.get(name) for name in names if input.get(name)}
        files = {name: [file] if isinstance(file, str) else list(file) for name, file in found.items()}
        return " ".join(f"--{name} {shlex.join(map(str, several))}" for name, several in files.items())

    return flags


def winners(given: Config) -> Callable[[Any], list[str]]:
    """The selections of the first round where a method's `select.shards` asks for one, else none."""

    def files(wildcards: Any) -> list[str]:
        shards = _rounds(given, wildcards.method)
        pattern = "{results}/{dataset}/selections/{selector}/{method}-{budget}/seed{seed}/shards/"
        folder = pattern.format(**dict(wildcards.items()))
        return [f"{folder}{shard}/selection.parquet" for shard in range(shards)] if shards > 1 else []

    return files


def _rounds(given: Config, method: str) -> int:
    """`select.shards` of a method."""
    variant = given.variants.get(method)
    return int((variant.select if variant else {}).get("shards", given.select.shards))


def constraints(given: Config) -> dict[str, str]:
    """A regular expression for every wildcard: names of the configuration and nothing else."""
    full = [name for name in [*METHODS, *given.variants] if given.method(name) == "full"]
    return {
        "results": re.escape(given.results),
        "dataset": one_of(given.datasets),
        "model": one_of(given.models),
        "selector": one_of([*given.models, "none"]),
        "method": one_of([*METHODS, *given.variants]),
        "budget": "all|" + "".join(f"(?<!/{re.escape(name)}-)" for name in full) + "[1-9][0-9]*",  # no full-256
        "seed": "0|[1-9][0-9]*",
        "shard": "0|[1-9][0-9]*",
    }


def one_of(names: Iterable[str]) -> str:
    """A regular expression that matches the names and nothing else."""
    return "|".join(map(re.escape, names)) or r"\b\B"


def methods(given: Config, signals: bool) -> list[str]:
    """The methods and variants that need signals, or those that do not."""
    return [name for name in [*METHODS, *given.variants] if (given.method(name) not in SIGNAL_FREE) == signals]


def run_path(given: Config, model: str, selector: str, method: str, budget: int | str, seed: int) -> str:
    """The part of a path that names a run: `model/selector/method-budget/seed0`."""
    budget = "all" if given.method(method) == "full" else budget
    return f"{model}/{given.selector(method, selector)}/{method}-{budget}/seed{seed}"


def main_runs(given: Config) -> list[str]:
    """The runs behind results/DATASET/metrics.json, one a seed."""
    main = given.main
    return [run_path(given, main.model, main.selector, main.method, main.budget, seed) for seed in main.seeds]


def compared_runs(given: Config) -> list[str]:
    """The runs behind results/DATASET/comparison.parquet: the grid of `compare` and the main experiment."""
    grid = given.compare
    cells = [
        run_path(given, model, selector, method, budget, seed)
        for model in grid.models
        for selector in grid.selectors or grid.models
        for method in grid.methods
        for budget in grid.budgets
        for seed in grid.seeds
    ]
    return list(dict.fromkeys([*main_runs(given), *cells]))  # random and full have no selector, full no budget


def resources(file: Path) -> Callable[[str], dict[str, Any]]:
    """What a stage asks of a machine, from workflow/resources.yaml; memory grows with every attempt."""
    table = yaml.safe_load(file.read_text(encoding="utf-8"))

    def needs(stage: str) -> dict[str, Any]:
        asked = table["default"] | table.get(stage, {})
        memory = asked.pop("mem_mb")
        asked.pop("threads")
        if stage == "train":
            asked.setdefault("processes", max(1, asked.get("gpu", 1)))
            asked |= _nodes(asked.setdefault("nodes", 1), asked.pop("gpu", 0))
        return {"mem_mb": lambda wildcards, attempt: memory * attempt, **asked}

    return needs


def _nodes(nodes: int, gpu: int) -> dict[str, Any]:
    """What Slurm's plugin must be told for one task on each of several nodes; `gpu` is a node's."""
    if nodes == 1:
        return {"gpu": gpu} if gpu else {}
    one_a_node = {"mpi": "srun", "tasks": nodes, "tasks_per_gpu": 0}  # the command calls srun, not the plugin
    return one_a_node | ({"gres": f"gpu:{gpu}"} if gpu else {})


def threads(file: Path) -> Callable[[str], int]:
    """The threads of a stage, from workflow/resources.yaml; Snakemake never uses more than --cores."""
    table = yaml.safe_load(file.read_text(encoding="utf-8"))
    return lambda stage: int((table["default"] | table.get(stage, {}))["threads"])


def tokenizer_items(given: Config, model: str) -> list[str]:
    """The items whose titles train a tiny model's tokenizer; nothing for a real model."""
    dataset = given.models[model].dataset
    return [] if dataset is None else [f"data/{dataset}/items.parquet"]


def jobs(given: Config) -> list[str]:
    """The jobs of the main experiment, as the names of their benchmark files below benchmarks/DATASET."""
    runs = main_runs(given)
    model, selector = runs[0].split("/")[:2]
    selections = [run.split("/", 1)[1] for run in runs]
    found = ["fetch", "prepare", "baselines", *(f"{stage}_base/{model}" for stage in ("embed", "evaluate", "measure"))]
    if selector != "none":
        shards = given.rollout.shards
        parts = [f"rollout/shards/{shard}" for shard in range(shards)] + ["gather"] if shards > 1 else ["rollout"]
        stages = ["embed_base", "train_proxy", "embed_proxy", *parts, "gradient", "score"]
        found += [f"{stage}/{selector}" for stage in stages]
        if (rounds := _rounds(given, given.main.method)) > 1:
            found += [f"select/{run}/shards/{shard}" for run in selections for shard in range(rounds)]
    found += [f"{stage}/{run}" for stage in ("select", "curriculum") for run in selections]
    found += [f"{stage}/{run}" for stage in ("train", "evaluate", "measure") for run in runs]
    return list(dict.fromkeys(found))


def summary_inputs(runs: list[str], results: str, dataset: str) -> dict[str, str | list[str]]:
    """The files behind results/DATASET/metrics.json, of the runs of the main experiment."""
    top = f"{results}/{dataset}"
    model, selector = runs[0].split("/")[:2]
    selections = [run.split("/", 1)[1] for run in runs]
    files: dict[str, str | list[str]] = {
        "samples": f"{top}/samples.parquet",
        "catalogue": f"{top}/catalogue.parquet",
        "prepare": f"{top}/prepare.json",
        "baselines": f"{top}/baselines.parquet",
        "base": f"{top}/base/{model}/metrics.json",
        "base_ranks": f"{top}/base/{model}/ranks.parquet",
        "metrics": [f"{top}/runs/{run}/metrics.json" for run in runs],
        "ranks": [f"{top}/runs/{run}/ranks.parquet" for run in runs],
        "history": [f"{top}/runs/{run}/history.parquet" for run in runs],
        "selection": [f"{top}/selections/{run}/selection.parquet" for run in selections],
        "curriculum": [f"{top}/selections/{run}/curriculum.parquet" for run in selections],
    }
    if selector != "none":
        files["scores"] = f"{top}/signals/{selector}/scores.parquet"
        files["rollouts"] = f"{top}/signals/{selector}/rollouts.parquet"
    return files


def pictures(runs: list[str]) -> list[str]:
    """The pictures of the main experiment; none where no selector has judged."""
    return [] if runs[0].split("/")[1] == "none" else list(PICTURES)


def compared_files(given: Config, results: str, dataset: str) -> list[str]:
    """The files behind results/DATASET/comparison.parquet."""
    files = ("metrics.json", "ranks.parquet", "history.parquet")
    return [f"{results}/{dataset}/runs/{run}/{file}" for run in compared_runs(given) for file in files]


def recorded(benchmark: Path) -> float | None:
    """Seconds of a job that has run, from its benchmark file; None where it has not."""
    try:
        return float(benchmark.read_text(encoding="utf-8").splitlines()[-1].split("\t")[0])
    except (OSError, ValueError, IndexError):
        return None


def print_summaries(given: Config, since: float) -> None:
    """Print the summaries and comparisons written since a time, in seconds since 1970."""
    for file in sorted(Path(given.results).glob("*/*.txt")):
        if file.stat().st_mtime >= since:
            sys.stdout.write(file.read_text(encoding="utf-8"))
