"""Tables and picture of the whole chain: what each selection reaches, what it costs, and whether it beats random.

    python benchmarks/long/evidence_report.py

Reads the rows of docs/results/evidence.csv that have the commit of most, and the ranks of these runs where they lie in
results/evidence. Each method is compared with as many random samples and with all samples for one epoch: NDCG@10 on
test over the seeds that both have, with intervals over users and seeds and paired tests, which Holm's correction covers
within a data set and budget (METHOD 5).
Writes docs/results/evidence_tests.csv, docs/images/evidence.svg and the tables of docs/evidence.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from evidence import OUT, settings_of
from selection import DATASETS, ROOT, keep
from selection_report import into_page, save

from minirec.data import splits
from minirec.evaluation.rank_tables import read_ranks
from minirec.evaluation.significance import holm, paired_tests
from minirec.experiment import paths
from minirec.experiment.config import Config
from minirec.report.style import LINES, MARKERS, Figure, plt

TESTS = ROOT / "docs" / "results" / "evidence_tests.csv"
TESTED = ["dataset", "model", "method", "budget", "against"]
NAMES = {  # of evidence.csv: what the page calls them
    "random": "random",
    "learnable_heads": "learnable by heads",
    "learnable": "learnable by a policy",
    "minirec": "minirec",
    "product": "product",
    "variance": "variance",
    "hardest": "hardest",
    "random_once": "random, one epoch",
    "full_once": "all samples, one epoch",
    "full_twice": "all samples, two epochs",
}
DRAWN = tuple(name for name in NAMES if name not in ("product", "variance", "full_twice"))  # in the picture
AGAINST = {"random": "as many random samples", "full_once": "all samples, one epoch"}


def folder(settings: Config, name: str, row: pd.Series) -> Path:
    """The folder of a row's run, below the results of its data set; name: of the model."""
    run = paths.run_of(settings, name, name, row["method"], row["budget"], row["seed"])
    return run.folder(ROOT / settings.results / row["dataset"])


def tested(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a method, budget and comparison, of the runs whose ranks are there."""
    found = []
    for (model, dataset), of_set in rows.groupby(["model", "dataset"]):
        _, settings, name = settings_of(model, dataset)
        files = [folder(settings, name, row) / "ranks.parquet" for _, row in of_set.iterrows()]
        of_set = of_set.assign(file=files)[[file.is_file() for file in files]]
        for against in AGAINST:
            for budget in sorted(set(of_set["budget"]) - {"all"}):
                others = of_set[(of_set["method"] == against) & of_set["budget"].isin([budget, "all"])]
                compared = of_set[(of_set["budget"] == budget) & (of_set["method"] != against)]
                tests = [
                    {**dict(zip(TESTED, (dataset, model, method, budget, against), strict=True)), **test}
                    for method, ours in compared.groupby("method")
                    if (test := difference(ours, others, settings))
                ]
                corrected = holm([test["p"] for test in tests])
                found += [test | {"p_holm": p_holm} for test, p_holm in zip(tests, corrected, strict=True)]
    return pd.DataFrame(found)


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, settings: Config) -> dict[str, object]:
    """NDCG@10 of ours minus theirs on the seeds of both, with interval and p; empty if they have none in common."""
    both = ours.merge(theirs, on="seed").sort_values("seed")
    if both.empty:
        return {}
    samples = ROOT / settings.results / ours["dataset"].iloc[0] / "samples.parquet"
    sample_id = read_ranks(both["file_x"].iloc[0]).sample_id
    a, b = (np.stack([read_ranks(file, sample_id).rank for file in both[side]]) for side in ("file_x", "file_y"))
    test = paired_tests({"theirs": b}, a, splits.users(samples, sample_id), settings.measure)["theirs"]
    return {"seeds": len(both), "difference": test["mean"], **{name: test[name] for name in ("low", "high", "p")}}


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a data set, method and budget: mean over the seeds, their number, and CPU seconds."""
    kinds = {"seeds": ("seed", "count"), "ndcg": ("after", "mean"), "train": ("train", "mean")}
    kinds |= {"cost": ("cost", "mean"), "before": ("before", "mean")}
    return rows.groupby(["dataset", "method", "budget", "samples"], as_index=False).agg(**kinds)


def markdown(found: pd.DataFrame, tests: pd.DataFrame) -> str:
    """A table a data set, the cheapest first."""
    text, heads = "", ("selection, s", "training, s", "in sum, s", "minus random", "p (Holm)")
    against = tests[tests["against"] == "random"].set_index(["dataset", "method", "budget"])
    for dataset in DATASETS:
        part = found[found["dataset"] == dataset].sort_values("cost")
        text += f"\n**{dataset}**, {part['before'].iloc[0]:.4f} before training\n\n"
        text += f"| method | samples | seeds | NDCG@10 | {' | '.join(heads)} |\n|---" + "|--:" * 8 + "|\n"
        for row in part.itertuples():
            text += f"| {NAMES[row.method]} | {row.samples:,} | {row.seeds} | {row.ndcg:.4f} "
            text += f"| {row.cost - row.train:.0f} | {row.train:.0f} | {row.cost:.0f} "
            key = (dataset, row.method, row.budget)
            if key in against.index and against.loc[key, "seeds"] > 1:
                test = against.loc[key]
                text += (
                    f"| {test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}] | {test['p_holm']:.2g} |\n"
                )
            else:
                text += "| | |\n"
    return text + "\n"


def picture(rows: pd.DataFrame) -> Figure:
    """Quality against the whole cost, a panel a data set; a point is a run, a line joins the means of the budgets."""
    figure, panels = plt.subplots(1, len(DATASETS), figsize=(10, 3.6))
    found = cells(rows)
    for axes, dataset in zip(panels, DATASETS, strict=True):
        for method, colour, marker in zip(DRAWN, [*LINES, "#000000", "#7F7F7F"], [*MARKERS, "X", "P"], strict=False):
            part = rows[(rows["dataset"] == dataset) & (rows["method"] == method)]
            if part.empty:
                continue
            mean = found[(found["dataset"] == dataset) & (found["method"] == method)].sort_values("samples")
            axes.scatter(part["cost"], part["after"], s=14, color=colour, marker=marker, alpha=0.45, linewidth=0)
            axes.plot(mean["cost"], mean["ndcg"], color=colour, marker=marker, label=NAMES[method])
        axes.set(title=dataset, xlabel="CPU seconds, selection counted")
    panels[0].set_ylabel("NDCG@10 on test")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    rows = pd.read_csv(OUT, dtype={"budget": str})
    rows = rows[rows["method"].isin(NAMES)]
    rows = rows[rows["commit"] == rows["commit"].mode()[0]]  # others were measured on another tree
    made = tested(rows)
    if not made.empty:
        keep(made, TESTS, TESTED)
    tests = pd.read_csv(TESTS, dtype={"budget": str})
    tiny = rows[rows["model"] == "tiny"]
    save("evidence", picture(tiny))
    into_page("chain", markdown(cells(tiny), tests[tests["model"] == "tiny"]))


if __name__ == "__main__":
    main()
