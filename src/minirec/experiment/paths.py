"""The paths of an experiment's files, defined here alone for the workflow and the commands that read results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minirec.experiment.config import HEADS, Config

MODELS = Path("data/models")  # a folder for each
FOLDERS = {  # folders of the results, as patterns; the workflow refers to them as <name>/file
    "top": "{results}/{dataset}",
    "base": "{results}/{dataset}/base/{model}",
    "users": "{results}/{dataset}/base/{model}/users",  # what the base model makes of the training prompts
    "signals": "{results}/{dataset}/signals/{signal_set}/seed{seed}",  # {signal_set}: a selector, or selector@variant
    "surrogate": "{results}/{dataset}/surrogate",  # what a small recommender says of the training samples
    "selection": "{results}/{dataset}/selections/{selector}/{method}-{budget}/seed{seed}",
    "run": "{results}/{dataset}/runs/{model}/{selector}/{method}-{budget}/seed{seed}",
}
PICTURES = {  # file names below figures/, main experiment: which of its method's signals each shows
    "result": None,
    "learning": None,
    "rewards": "rewards",
    "curriculum": "rewards",
    "scores": "gradients",
}
SIGNAL_SECTIONS = {  # the settings that a file below signals/ depends on, besides those of the files before it
    "proxy/adapter": ("sampling", "reward", "proxy"),
    "items.safetensors": (),
    "rollouts.parquet": ("rollout", "crossfit"),
    "hidden.safetensors": (),
    "gradients.safetensors": ("gradient",),
    "embeddings.safetensors": (),
    "scores.parquet": ("score",),
}

SIGNAL_LOGS = {  # below signals/, the logs of the jobs that make these files
    "proxy/adapter": "proxy/logs/train_proxy.log",
    "items.safetensors": "logs/embed_proxy.log",
    "rollouts.parquet": "**/logs/rollout.log",  # of all shards
    "gradients.safetensors": "logs/gradient.log",  # and the embeddings
    "scores.parquet": "logs/score.log",
}
HEADS_LOGS = {"rollouts.parquet": "logs/crossfit.log"}  # the same with `proxy.kind: heads`; and the embeddings


def pictures(reads: Sequence[str]) -> list[str]:
    """The PICTURES of a main experiment whose method reads these signals."""
    return [name for name, shown in PICTURES.items() if shown is None or shown in reads]


def signal_set(config: Config, file: str, selector: str, method: str) -> str:
    """The folder below signals/ in which a method finds a file: `selector`, `selector@heads` or `selector@variant`.

    A variant has its own folder for the files that its changes affect: one that changes `score.mu` has its own scores,
    but shares the rollouts with every other method.
    """
    if method in config.variants:
        files = list(SIGNAL_SECTIONS)
        decisive = {section for name in files[: files.index(file) + 1] for section in SIGNAL_SECTIONS[name]}
        if decisive & set(config.variants[method].changes):
            return f"{selector}@{method}"
    return f"{selector}@{HEADS}" if config.by_heads(method) else selector


def signal_seed(config: Config, method: str | None, seed: int | str) -> int | str:
    """The seed of the signals for a run: its own, or with `proxy.seeds: shared` that of `proxy.seed`."""
    proxy = config.varied(method).proxy
    return proxy.seed if proxy.seeds == "shared" else seed


@dataclass(frozen=True)
class Run:
    """A policy trained on a selection: model, selector (`none` for methods without signals), method, budget, seed."""

    model: str
    selector: str
    method: str
    budget: int | str
    seed: int

    @classmethod
    def parse(cls, text: str) -> Run:
        """Make a run from `model/selector/method-budget/seedN`."""
        model, selector, trained_on, seed = text.split("/")
        method, budget = trained_on.rsplit("-", 1)
        return cls(model, selector, method, budget, int(seed.removeprefix("seed")))

    def __str__(self) -> str:
        return f"{self.configuration}/seed{self.seed}"

    @property
    def shared(self) -> dict[str, Any]:
        """Its fields by name, without the seed."""
        return {name: value for name, value in asdict(self).items() if name != "seed"}

    @property
    def configuration(self) -> str:
        """The run without its seed, e.g. `gemma/gemma/minirec-256`."""
        return f"{self.model}/{self.selector}/{self.method}-{self.budget}"

    def folder(self, top: Path) -> Path:
        """Folder of adapter, history, ranks and metrics; top: results of the data set."""
        return top / "runs" / str(self)

    def selection(self, top: Path) -> Path:
        """Folder of selection and curriculum; top: results of the data set."""
        return top / "selections" / self.selector / f"{self.method}-{self.budget}" / f"seed{self.seed}"


def located(folder: Path) -> tuple[Path, Run] | None:
    """The results of the data set, and the run, of a run's folder DATASET/runs/…/seedN; None if it is none."""
    plain = Path(os.path.normpath(folder))
    for where in (plain, plain.absolute()):
        if "runs" in [parent.name for parent in where.parents][3:4]:
            try:
                return where.parents[4], Run.parse("/".join(where.parts[-4:]))
            except ValueError:
                return None
    return None


def run_of(config: Config, model: str, selector: str, method: str, budget: int | str, seed: int) -> Run:
    """A run as in its paths: the budget is `all` for `full`, the selector `none` for a method without signals."""
    chosen = config.method(method)
    return Run(model, selector if chosen.reads else "none", method, "all" if chosen.takes_all else budget, seed)


def selection_logs(config: Config, selector: str, method: str) -> list[str]:
    """Patterns of the logs of all jobs that a method's selection takes, below the results of a data set.

    {seed} and {budget} stand for those of the run.
    """
    reads, logs = config.method(method).reads, _chosen(f"{selector}/{method}-{{budget}}/seed{{seed}}")
    needed = dict(HEADS_LOGS if config.by_heads(method) else SIGNAL_LOGS) if reads else {}
    if "gradients" not in reads:
        needed.pop("scores.parquet", None)
    if not {"gradients", "embeddings"} & set(reads):
        needed.pop("gradients.safetensors", None)
    seed = signal_seed(config, method, "{seed}")
    if needed and config.by_heads(method):
        logs.append(f"base/{selector}/users/logs/embed_users.log")
    if "proxy/adapter" in needed:
        logs += _chosen(f"none/random-{config.varied(method).proxy.size}/seed{seed}")
    for file, log in needed.items():
        folder = f"signals/{signal_set(config, file, selector, method)}/seed{seed}"
        logs.append(f"{folder}/{log}")
        if log == SIGNAL_LOGS["rollouts.parquet"] and config.rollout.shards > 1:
            logs.append(f"{folder}/logs/gather.log")
    if "influence" in reads:
        logs.append("surrogate/logs/influence.log")
    return logs


def _chosen(folder: str) -> list[str]:
    """Patterns of the logs of all jobs that made a selection, of its shards too; folder: below selections/."""
    return [f"selections/{folder}/**/logs/{rule}.log" for rule in ("select", "curriculum")]


def shared_signals(config: Config, runs: list[Run]) -> bool:
    """Whether runs that differ in their seed share signals (`proxy.seeds`)."""
    return any(run.selector != "none" and config.varied(run.method).proxy.seeds == "shared" for run in runs)


def main_runs(config: Config) -> list[Run]:
    """The runs of the main experiment, in results/DATASET/metrics.json: one per seed."""
    main = config.main
    return [run_of(config, main.model, main.selector, main.method, main.budget, seed) for seed in main.seeds]


def control_runs(config: Config) -> list[Run]:
    """The runs that the main experiment is compared with: `main.control` in place of its method, if it is another."""
    main = config.main
    if main.control in (None, main.method):
        return []
    return [run_of(config, main.model, main.selector, main.control, main.budget, seed) for seed in main.seeds]


def experiment_runs(config: Config) -> list[Run]:
    """The runs of the main experiment, then those of its control."""
    return [*main_runs(config), *control_runs(config)]


def compared_runs(config: Config) -> list[Run]:
    """The runs in results/DATASET/comparison.parquet: the main experiment, its control, then the grid of `compare`."""
    grid = config.compare
    cells = [
        run_of(config, model, selector, method, budget, seed)
        for model in grid.models
        for selector in grid.selectors or grid.models
        for method in grid.methods
        for budget in grid.budgets
        for seed in grid.seeds
    ]
    return list(dict.fromkeys([*experiment_runs(config), *cells]))  # random and full appear once, whatever the selector


def summary_files(top: Path, runs: list[Run]) -> list[Path]:
    """The files, besides the scores, that a data set's metrics.json is made from; runs: main, then control."""
    base = top / "base" / runs[0].model
    files = [top / name for name in ("samples.parquet", "catalogue.parquet", "prepare.json", "baselines.parquet")]
    files += [base / name for name in ("metrics.json", "ranks.parquet")]
    for run in runs:
        files += [run.folder(top) / name for name in ("metrics.json", "ranks.parquet", "history.parquet")]
        files += [run.selection(top) / name for name in ("selection.parquet", "curriculum.parquet")]
    return list(dict.fromkeys(files))


def folders(config: Config, runs: list[Run]) -> list[str]:
    """The folders, below the results of a data set, of all that was made for these runs."""
    names = []
    for run in runs:
        names.append(f"base/{run.model}")
        if "influence" in config.method(run.method).reads:
            names.append("surrogate")
        if run.selector != "none":
            names.append(f"base/{run.selector}")
            seed = signal_seed(config, run.method, run.seed)
            for file in SIGNAL_SECTIONS:
                folder = f"signals/{signal_set(config, file, run.selector, run.method)}/seed{seed}"
                names += [folder, f"{folder}/proxy", *_shards(folder, config.rollout.shards)]
            if config.by_heads(run.method):
                names.append(f"base/{run.selector}/users")
            else:
                size = config.varied(run.method).proxy.size
                names.append(str(Run("", "none", "random", size, int(seed)).selection(Path())))
        selection = str(run.selection(Path()))
        names += [selection, *_shards(selection, config.used_by(run.method).select.shards), str(run.folder(Path()))]
    return list(dict.fromkeys(names))


def _shards(folder: str, shards: int) -> list[str]:
    """The folders of all shards in one word, as a command line of thousands would be too long."""
    return [f"{folder}/shards/0-{shards - 1}"] if shards > 1 else []


def logs(top: Path, folders: list[str]) -> list[Path]:
    """The logs of the jobs that work in these folders, and of those for the whole data set but `compare`."""
    whole = [log for log in top.glob("logs/*.log") if log.stem != "compare"]  # which is for other runs, too
    return [*whole, *(log for name in folders for folder in _each(top / name) for log in folder.glob("logs/*.log"))]


def _each(folder: Path) -> list[Path]:
    """The folder, or all folders that `shards/0-N` stands for."""
    if folder.parent.name != "shards":
        return [folder]
    return [folder.with_name(str(shard)) for shard in range(int(folder.name.removeprefix("0-")) + 1)]
