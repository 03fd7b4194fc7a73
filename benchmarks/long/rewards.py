"""The paper's Fig. 1 on our data: rewards of all training samples before training, and after one epoch of them.

    python benchmarks/long/rewards.py

After evidence.py, whose run of `full_once` with seed 0 it reads. Each training sample gets as many completions as in a
rollout (METHOD 3). Writes docs/results/rewards.csv, docs/images/rewards.svg and a table of docs/learning.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from learning import ROOT, into_page, keep
from selection import DATASETS, available, lay_over, model_of, run_stage, settings
from selection_report import known_first, save

from minirec.experiment import paths
from minirec.report.style import ALL, PICKED, Figure, plt
from minirec.storage import tables

OUT = ROOT / "docs" / "results" / "rewards.csv"
SHOWN = ("mean reward before", "mean reward after", "share without a hit before", "share without a hit after")
SHOWN += ("share without a hit before and after", "share with equal rewards before")
BINS = np.linspace(0, 1, 21)


def newer(file: Path, source: Path) -> bool:
    """Whether a file is there, and was made after its source."""
    return file.is_file() and file.stat().st_mtime > source.stat().st_mtime


def rolled_out(dataset: str) -> dict[str, pd.DataFrame]:
    """The rollouts before and after training, with a row a completion, ordered alike."""
    top, name = ROOT / settings().results / dataset, model_of(dataset)
    shared = {"samples": top / "samples.parquet", "catalogue": top / "catalogue.parquet"}
    shared |= {"model": ROOT / "data" / "models" / name}
    run = paths.run_of(settings(), name, name, "full_once", "all", 0).folder(top)
    base, trained, folder = top / "base" / name, run / "adapter", run / "rewards"
    items = folder / "items.safetensors"
    folder.mkdir(exist_ok=True)
    if not newer(items, trained):
        frozen = {"frozen_states": base / "frozen_states.safetensors", "item_table": items}
        run_stage("embed", **shared, **frozen, adapter=trained)
    ways = {
        "before": {"item_table": base / "items.safetensors", "whitening": base / "whitening.safetensors"},
        "after": {"item_table": items, "adapter": trained},
    }
    found = {}
    for when, files in ways.items():
        out = {"rollouts": folder / when / "rollouts.parquet", "hidden": folder / when / "hidden.safetensors"}
        if not newer(out["rollouts"], trained):
            out["rollouts"].parent.mkdir(exist_ok=True)
            run_stage("rollout", **shared, **files, **out)
        columns = ["sample_id", "completion", "reward", "hit"]
        found[when] = tables.read("rollouts", out["rollouts"], columns).to_pandas().sort_values(columns[:2])
    return found


def answers(found: dict[str, pd.DataFrame]) -> dict[str, float]:
    """What a table says of a data set; a sample is solved if one of its completions is a hit."""
    by_sample = {when: rows.groupby("sample_id") for when, rows in found.items()}
    solved = {when: rows["hit"].any() for when, rows in by_sample.items()}
    return {
        "samples": len(solved["before"]),
        **{f"mean reward {when}": rows["reward"].mean().mean() for when, rows in by_sample.items()},
        **{f"share without a hit {when}": 1 - hits.mean() for when, hits in solved.items()},
        "share without a hit before and after": float((~solved["before"] & ~solved["after"]).mean()),
        "share with equal rewards before": (by_sample["before"]["reward"].std() < 1e-3).mean(),
    }


def markdown(values: pd.DataFrame) -> str:
    """A row an answer, a column a data set."""
    table = values.pivot(index="what", columns="dataset", values="value")
    there = known_first(table)
    text = f"\n| of all training samples | {' | '.join(there)} |\n|---" + "|--:" * len(there) + "|\n"
    for what in SHOWN:
        shown = [
            f"{table.loc[what, dataset]:.0%}" if "share" in what else f"{table.loc[what, dataset]:.2f}"
            for dataset in there
        ]
        text += f"| {what} | {' | '.join(shown)} |\n"
    return text + "\n"


def picture(found: dict[str, dict[str, pd.DataFrame]]) -> Figure:
    """Histograms of a sample's mean reward, a panel a data set."""
    figure, panels = plt.subplots(1, len(found), figsize=(10, 3.2))
    for axes, (dataset, rollouts) in zip(np.atleast_1d(panels), found.items(), strict=True):
        for (when, rows), colour in zip(rollouts.items(), (ALL, PICKED), strict=True):
            mean = rows.groupby("sample_id")["reward"].mean()
            axes.hist(mean, BINS, weights=np.full(len(mean), 1 / len(mean)), histtype="step", color=colour, label=when)
        axes.set(title=dataset, xlabel="mean reward of a training sample", yscale="log")
    np.atleast_1d(panels)[0].set_ylabel("share of the samples")
    np.atleast_1d(panels)[0].legend(title="training")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), help="toys cds movielens")
    parser.add_argument("--configfile", nargs="+", type=Path, default=[], help="as of evidence.py")
    given = parser.parse_args()
    lay_over(given.configfile)
    found = {dataset: rolled_out(dataset) for dataset in available(given.datasets)}
    rows = [(dataset, what, value) for dataset, one in found.items() for what, value in answers(one).items()]
    keep(pd.DataFrame(rows, columns=["dataset", "what", "value"]), OUT, ["dataset", "what"])
    save("rewards", picture(found))
    into_page(ROOT / "docs" / "learning.md", "rewards", markdown(pd.read_csv(OUT)))


if __name__ == "__main__":
    main()
