"""Table and picture of the whole chain: what each selection reaches, and what it costs.

    python benchmarks/long/evidence_report.py

Reads docs/results/evidence.csv. Writes docs/images/evidence.svg and the table of docs/evidence.md.
"""

from __future__ import annotations

import pandas as pd
from evidence import OUT
from selection import DATASETS
from selection_report import into_page, save

from minirec.report.style import LINES, MARKERS, Figure, plt

NAMES = {  # of evidence.csv: what the page calls them
    "random": "random",
    "learnable_heads": "learnable by heads",
    "learnable": "learnable by a policy",
    "minirec": "minirec",
    "random_once": "random, one epoch",
    "full_once": "all samples, one epoch",
    "full_twice": "all samples, two epochs",
}


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a data set, method and budget: mean over the seeds, their number, and CPU seconds."""
    rows = rows.assign(name=rows["method"].map(NAMES))
    kinds = {"seeds": ("seed", "count"), "ndcg": ("after", "mean"), "train": ("train", "mean")}
    kinds |= {"cost": ("cost", "mean"), "before": ("before", "mean")}
    return rows.groupby(["dataset", "name", "samples"], as_index=False).agg(**kinds)


def markdown(found: pd.DataFrame) -> str:
    """A table a data set, the cheapest first."""
    text = ""
    for dataset in DATASETS:
        part = found[found["dataset"] == dataset].sort_values("cost")
        text += f"\n**{dataset}**, {part['before'].iloc[0]:.4f} before training\n\n"
        text += (
            "| method | samples | seeds | NDCG@10 | selection, s | training, s | in sum, s |\n|---" + "|--:" * 6 + "|\n"
        )
        for row in part.itertuples():
            text += f"| {row.name} | {row.samples:,} | {row.seeds} | {row.ndcg:.4f} "
            text += f"| {row.cost - row.train:.0f} | {row.train:.0f} | {row.cost:.0f} |\n"
    return text + "\n"


def picture(rows: pd.DataFrame) -> Figure:
    """Quality against the whole cost, a panel a data set; a point is a run, a line joins the means of the budgets."""
    figure, panels = plt.subplots(1, len(DATASETS), figsize=(10, 3.6))
    found = cells(rows)
    for axes, dataset in zip(panels, DATASETS, strict=True):
        for (method, name), colour, marker in zip(NAMES.items(), [*LINES, "#000000"], [*MARKERS, "X"], strict=True):
            part = rows[(rows["dataset"] == dataset) & (rows["method"] == method)]
            if part.empty:
                continue
            mean = found[(found["dataset"] == dataset) & (found["name"] == name)].sort_values("samples")
            axes.scatter(part["cost"], part["after"], s=14, color=colour, marker=marker, alpha=0.45, linewidth=0)
            axes.plot(mean["cost"], mean["ndcg"], color=colour, marker=marker, label=name)
        axes.set(title=dataset, xlabel="CPU seconds, selection counted")
    panels[0].set_ylabel("NDCG@10 on test")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    rows = pd.read_csv(OUT)
    rows = rows[rows["method"].isin(NAMES)]
    save("evidence", picture(rows))
    into_page("chain", markdown(cells(rows)))


if __name__ == "__main__":
    main()
