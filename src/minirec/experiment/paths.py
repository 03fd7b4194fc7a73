"""Where every file of an experiment lies: spelled here, read by the workflow, plan, status, summarise and compare."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minirec.experiment.config import Config

FOLDERS = {  # of the results, as patterns; the workflow writes <name>/file
    "top": "{results}/{dataset}",
    "base": "{results}/{dataset}/base/{model}",
    "signals": "{results}/{dataset}/signals/{signal_set}",  # {signal_set}: a selector, or selector@variant
    "selection": "{results}/{dataset}/selections/{selector}/{method}-{budget}/seed{seed}",
    "run": "{results}/{dataset}/runs/{model}/{selector}/{method}-{budget}/seed{seed}",
}
PICTURES = ("rewards", "scores", "curriculum")  # of the main experiment, below figures/
SIGNAL_SECTIONS = {  # what a file below signals/ depends on, besides what its predecessors do
    "proxy/adapter": ("sampling", "reward", "proxy"),
    "items.safetensors": (),
    "rollouts.parquet": ("rollout",),
    "hidden.safetensors": (),
    "gradients.safetensors": ("gradient",),
    "embeddings.safetensors": (),
    "scores.parquet": ("score",),
}


def signal_set(config: Config, file: str, selector: str, method: str) -> str:
    """The folder below signals/ of a file as a method reads it: `selector`, or `selector@variant`.

    It is the variant's own where the variant changes how the file is made. So an ablation of `score.mu` has scores of
    its own, from the same rollouts as every other method.
    """
    if method not in config.variants:
        return selector
    files = list(SIGNAL_SECTIONS)
    decisive = {section for name in files[: files.index(file) + 1] for section in SIGNAL_SECTIONS[name]}
    return f"{selector}@{method}" if decisive & set(config.variants[method].changes) else selector


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
        """From `model/selector/method-budget/seedN`."""
        model, selector, trained_on, seed = text.split("/")
        method, budget = trained_on.rsplit("-", 1)
        return cls(model, selector, method, budget, int(seed.removeprefix("seed")))

    def __str__(self) -> str:
        return f"{self.configuration}/seed{self.seed}"

    @property
    def shared(self) -> dict[str, Any]:
        """What its seeds share, by name."""
        return {name: value for name, value in asdict(self).items() if name != "seed"}

    @property
    def configuration(self) -> str:
        """What its seeds share, e.g. `gemma/gemma/minirec-256`."""
        return f"{self.model}/{self.selector}/{self.method}-{self.budget}"

    def folder(self, top: Path) -> Path:
        """Adapter, history, ranks and metrics, below the results of a data set."""
        return top / "runs" / str(self)

    def selection(self, top: Path) -> Path:
        """Selection and curriculum, below the results of a data set."""
        return top / "selections" / self.selector / f"{self.method}-{self.budget}" / f"seed{self.seed}"


def run_of(config: Config, model: str, selector: str, method: str, budget: int | str, seed: int) -> Run:
    """A run as its paths have it: `full` has the budget `all`, a method without signals the selector `none`."""
    chosen = config.method(method)
    return Run(model, selector if chosen.reads else "none", method, "all" if chosen.takes_all else budget, seed)


def main_runs(config: Config) -> list[Run]:
    """The runs behind results/DATASET/metrics.json, one a seed."""
    main = config.main
    return [run_of(config, main.model, main.selector, main.method, main.budget, seed) for seed in main.seeds]


def compared_runs(config: Config) -> list[Run]:
    """The runs behind results/DATASET/comparison.parquet: the main experiment, then the grid of `compare`."""
    grid = config.compare
    cells = [
        run_of(config, model, selector, method, budget, seed)
        for model in grid.models
        for selector in grid.selectors or grid.models
        for method in grid.methods
        for budget in grid.budgets
        for seed in grid.seeds
    ]
    return list(dict.fromkeys([*main_runs(config), *cells]))  # random and full appear once, whatever the selector


def summary_files(top: Path, runs: list[Run]) -> list[Path]:
    """The files behind the metrics.json of a data set, besides the scores: of the runs of its main experiment."""
    base = top / "base" / runs[0].model
    files = [top / name for name in ("samples.parquet", "catalogue.parquet", "prepare.json", "baselines.parquet")]
    files += [base / name for name in ("metrics.json", "ranks.parquet")]
    for run in runs:
        files += [run.folder(top) / name for name in ("metrics.json", "ranks.parquet", "history.parquet")]
        files += [run.selection(top) / name for name in ("selection.parquet", "curriculum.parquet")]
    return list(dict.fromkeys(files))


def folders(config: Config, runs: list[Run]) -> list[str]:
    """The folders, below the results of a data set, of everything that was made for some runs and their selections."""
    found = []
    for run in runs:
        found.append(f"base/{run.model}")
        if run.selector != "none":
            found += [f"signals/{signal_set(config, file, run.selector, run.method)}" for file in SIGNAL_SECTIONS]
            proxy = config.varied(run.method).proxy
            found.append(str(Run("", "none", "random", proxy.size, proxy.seed).selection(Path())))
        found += [str(run.selection(Path())), str(run.folder(Path()))]
    return list(dict.fromkeys(found))


def logs(top: Path, folders: list[str]) -> list[Path]:
    """The logs of the jobs that have started in these folders, and of those for the whole data set but `compare`."""
    whole = [log for log in top.glob("logs/*.log") if log.stem != "compare"]  # which is for other runs, too
    return [*whole, *(log for folder in folders for log in (top / folder).rglob("logs/*.log"))]
