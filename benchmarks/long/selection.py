"""The laboratory: every selection method at every budget, by training the head alone on the signals of a real chain.

    python benchmarks/long/selection.py --datasets toys --methods learnable random --seeds 5

Methods are those of src/minirec/selection/methods and the variants of config/evidence.yaml: those with another proxy
like the methods, all others at two of the budgets and with half the seeds. random and full, with which they are
compared, always take part. No training on a selection visits more samples than one epoch of all. Two seeds share a
proxy with its rollouts and scores, made by the workflow. A training takes seconds; what is finished is not run again.
Rows go to docs/results/selection.csv; selection_report.py makes tables and pictures of them. MovieLens is fetched; cds
and toys take part where data/NAME holds their two files. So does a data set of your own, if a file of --configfile has
`datasets: {NAME: {source: own}}` and a tiny model for it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from frozen import States, Training, digest
from learning import BATCH_TOKENS, ROOT, keep, workflow

from minirec.data import stored_signals
from minirec.evaluation import metrics
from minirec.experiment import config, paths
from minirec.model.whitening import Whitening
from minirec.progress import progress
from minirec.selection.curriculum import curriculum_order
from minirec.selection.methods import registry
from minirec.selection.signals import Signals
from minirec.storage.artefact import Provenance
from minirec.storage.files import atomic_write

OUT = ROOT / "docs" / "results" / "selection.csv"
COLUMNS = ("dataset", "method", "budget", "epochs", "seed", "valid", "test", "steps", "seconds")
DATASETS = ("toys", "cds", "movielens")
CONTROLS = ("random", "full")  # with which all others are compared
BUDGETS = (1 / 8, 1 / 4, 1 / 16, 1 / 2)
ABLATED = (1 / 8, 1 / 4)  # budgets of the variants
EPOCHS = (1, 2, 4, 8)
MOST_PASSES = 1.0  # a training on a selection visits at most as many samples as so many epochs of all
SEEDS, PROXIES = 10, 5  # two seeds a proxy
FILES = tuple(ROOT / "config" / f"{name}.yaml" for name in ("quickstart", "learning", "learning_tiny", "evidence"))
LAID_OVER: list[Path] = []  # over these, of --configfile
RULES = ("embed_base", "train_proxy", "embed_proxy", "rollout", "embed_users", "gradient")  # that run the model


@dataclass(frozen=True)
class Cell:
    """One method at one budget on one data set with the signals of one seed: all numbers of epochs."""

    dataset: str
    method: str  # or variant
    seed: int  # of the head and of what is drawn
    proxy: int  # seed of the signals
    budget: float  # share of the training samples
    epochs: tuple[int, ...]

    @property
    def top(self) -> Path:
        """The results of the data set."""
        return ROOT / settings().results / self.dataset

    def signal(self, file: str) -> Path:
        """A file of the signals that the method reads."""
        selector = model_of(self.dataset)
        return (
            self.top
            / "signals"
            / paths.signal_set(settings(), file, selector, self.method)
            / f"seed{self.proxy}"
            / file
        )

    def inputs(self) -> dict[str, Path]:
        """The files that decide what comes out, by name."""
        found = {"samples": self.top / "samples.parquet", "whitening": self.top / "base" / model_of(self.dataset)}
        found["whitening"] /= "whitening.safetensors"
        if settings().method(self.method).reads:
            rewards = "rollouts" if settings().by_heads(self.method) else "scores"
            found |= {rewards: self.signal(f"{rewards}.parquet"), "embeddings": self.signal("embeddings.safetensors")}
        if "influence" in settings().method(self.method).reads:
            found["influences"] = self.top / "surrogate" / "influences.parquet"
        return found

    def file(self) -> Path:
        """Where the results are kept: another file for other inputs or settings."""
        read = {"training": asdict(training(self.seed)), "batch_prompts": settings().train.batch_prompts}
        of_method = settings().used_by(self.method)
        read |= {name: getattr(of_method, name).model_dump() for name in ("select", "curriculum")}
        said = Provenance("laboratory", asdict(self) | read, self.inputs())
        return self.top / "laboratory" / self.method / f"seed{self.seed}-{digest(said)}.parquet"


@cache
def settings() -> config.Config:
    """The settings of the laboratory."""
    return config.load(ROOT / "config" / "config.yaml", *FILES, *LAID_OVER)


def lay_over(files: list[Path]) -> None:
    """Lay these configuration files over all others, from now on."""
    LAID_OVER[:] = [file.absolute() for file in files]
    settings.cache_clear()


def training(seed: int) -> Training:
    """How a head is trained here, by the settings of the workflow."""
    train = settings().train
    return Training(train.head, train.head_learning_rate, settings().policy.tau, train.extra_negatives, seed)


def comparable_methods() -> list[str]:
    """The methods, and the variants that change no training: there is only one training here."""
    return [*registry.methods(), *(name for name, one in settings().variants.items() if "train" not in one.changes)]


def model_of(dataset: str) -> str:
    """The tiny model of a data set, whose tokenizer comes from its titles."""
    name, models = f"tiny_{dataset}", settings().models
    if name not in models:
        like = models["tiny_movielens"].model_dump(mode="json", exclude_unset=True) | {"dataset": dataset}
        line = f"models: {json.dumps({name: like})}"
        sys.exit(f"{name} is no model of the configuration; add to a file of --configfile: {line}")
    return name


def available(datasets: list[str]) -> list[str]:
    """The data sets whose files are there or can be fetched."""
    there = []
    for dataset in datasets:
        if dataset not in settings().datasets:
            sys.exit(f"{dataset} is no data set of the configuration; name a file that has it with --configfile")
        own = settings().datasets[dataset].source == "own"
        if own and not (ROOT / "data" / dataset / "interactions.parquet").is_file():
            sys.stderr.write(f"{dataset}: left out, data/{dataset} does not hold its two files\n")
        else:
            there.append(dataset)
    return there


def grid(datasets: list[str], methods: list[str], seeds: int, budgets: list[float], epochs: list[int]) -> list[Cell]:
    """All cells, those of the controls too, those of the first budget first.

    Numbers of epochs that visit more samples than MOST_PASSES are left out: a selection is there to save steps.
    """
    cells, methods = [], list(dict.fromkeys([*methods, *CONTROLS]))
    for budget, dataset, method, seed in product(budgets, available(datasets), methods, range(seeds)):
        every_budget = not (variant := settings().variants.get(method)) or variant.proxy
        if every_budget or (seed < PROXIES and budget in ABLATED):
            everything = settings().method(method).takes_all
            tried = tuple(number for number in epochs if everything or number * budget <= MOST_PASSES)
            if tried:
                cells.append(Cell(dataset, method, seed, seed % PROXIES, 1.0 if everything else budget, tried))
    return list(dict.fromkeys(cells))


def make_signals(cells: list[Cell], cores: int) -> None:
    """Let the workflow make the signals of all cells."""
    wanted = dict.fromkeys(str(path.relative_to(ROOT)) for cell in cells for path in cell.inputs().values())
    # jobs side by side are faster than one on all cores
    alone = ("--set-threads", *(f"{rule}=1" for rule in (*RULES, "crossfit")))
    workflow([*FILES, *LAID_OVER], "tiny", RULES, wanted, cores, "--resources", f"gpu={cores}", *alone)


def run_stage(name: str, **given: Path | int | None) -> None:
    """Run a stage by hand with the settings of the laboratory; given: files and settings by flag, None: left out."""
    given |= {"batch_tokens": BATCH_TOKENS["tiny"]}
    words = [
        w for flag, value in given.items() if value is not None for w in (f"--{flag.replace('_', '-')}", str(value))
    ]
    words += ["--configfile", *map(str, [*FILES, *LAID_OVER])]
    subprocess.run([sys.executable, "-m", "minirec", name, *words], cwd=ROOT, check=True)


@cache
def states_of(dataset: str) -> States:
    """The whitened states of a data set."""
    top = ROOT / settings().results / dataset
    model = ROOT / "data" / "models" / model_of(dataset)
    states = States(settings(), model, top, settings().policy.prompt_history, BATCH_TOKENS["tiny"])
    return states.whitened(Whitening.read(top / "base" / model_of(dataset) / "whitening.safetensors"))


def training_order(cell: Cell, signals: Signals) -> np.ndarray:
    """Rows of the training samples, selected and ordered as in the workflow (METHOD 4.6, 4.7)."""
    method, used = settings().method(cell.method), settings().used_by(cell.method)
    chosen = {name: getattr(used.select, name) for name in method.settings}
    rows = method.pick(signals, round(cell.budget * len(signals)), np.random.default_rng(cell.seed), **chosen).rows
    if not method.reads:
        return rows
    return curriculum_order(rows, signals.mean_reward[rows], used.curriculum.group_size, used.curriculum.seed)


def run(cell: Cell) -> Path:
    """Train every number of epochs of a cell, and keep the ranks on test."""
    path = cell.file()
    if path.is_file():
        return path
    torch.set_num_threads(1)
    states, inputs = states_of(cell.dataset), cell.inputs()
    pool = states.parts["train"].sample_id
    files = [inputs.get(name) for name in ("scores", "rollouts", "embeddings", "influences")]
    signals = stored_signals.load(pool, inputs["samples"], *files)
    rows = list(trainings(cell, states, signals))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        pd.DataFrame(rows).to_parquet(partial)
    return path


def trainings(cell: Cell, states: States, signals: Signals) -> Iterator[dict[str, object]]:
    """A row for each number of epochs."""
    size, order = settings().train.batch_prompts, training_order(cell, signals)
    batches = [order[begin : begin + size] for begin in range(0, len(order), size)]
    for epochs in cell.epochs:
        started = time.perf_counter()
        head = states.trained(batches * epochs, training(cell.seed))
        seconds, rank = time.perf_counter() - started, states.ranks(head, "test")
        found = (states.ndcg(head, "valid"), float(metrics.ndcg(rank, metrics.K).mean()), len(batches) * epochs)
        names = (cell.dataset, cell.method, cell.budget, epochs, cell.seed)
        yield dict(zip(COLUMNS, (*names, *found, seconds), strict=True)) | {"rank": rank.astype(np.int32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--datasets", nargs="+", default=list(DATASETS), help="of the configuration; toys cds movielens"
    )
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="methods, variants; all")
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), help="shares; 1/8 1/4 1/16 1/2")
    parser.add_argument("--epochs", nargs="+", type=int, default=list(EPOCHS), help="1 2 4 8, as the report needs")
    parser.add_argument(
        "--seeds",
        type=int,
        default=SEEDS,
        help=f"of heads and draws, {PROXIES} proxies in turn; {SEEDS}; the report needs {PROXIES} or {SEEDS}",
    )
    parser.add_argument("--cores", type=int, default=2, help="2")
    parser.add_argument("--configfile", nargs="+", type=Path, default=[], help="laid over the configuration")
    given = parser.parse_args()
    lay_over(given.configfile)
    methods = given.methods or comparable_methods()
    if unknown := set(methods) - set(comparable_methods()):
        parser.error(f"{', '.join(sorted(unknown))} is not among {', '.join(comparable_methods())}")
    cells = grid(given.datasets, methods, given.seeds, given.budgets, given.epochs)
    make_signals(cells, given.cores)
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        states_of(dataset)  # computed once, before the processes that read it
    rows = []
    with (
        ProcessPoolExecutor(given.cores, get_context("spawn"), lay_over, (given.configfile,)) as pool,
        progress("laboratory", len(cells), "cells") as bar,
    ):
        for path in pool.map(run, cells):
            rows.append(pd.read_parquet(path, columns=list(COLUMNS)))
            bar.add(1)
    keep(pd.concat(rows), OUT, list(COLUMNS[:5]))


if __name__ == "__main__":
    main()
