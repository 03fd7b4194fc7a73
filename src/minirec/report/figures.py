"""Pictures of an experiment, each written as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa

from minirec.experiment.paths import PICTURES
from minirec.storage.files import atomic_write
from minirec.storage.tables import numpy

mpl.use("Agg")
mpl.rcParams |= {
    "figure.figsize": (6.4, 4.0),
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "svg.hashsalt": "minirec",  # else ids are random, and so are the bytes
    "font.size": 10,
}
from matplotlib import pyplot as plt  # noqa: E402  after the backend is chosen
from matplotlib.figure import Figure  # noqa: E402

ALL, PICKED, POINTS = "#b8c4d0", "#d1495b", "#2b4c6f"  # colours
# file types, with metadata left out so that the same picture has the same bytes
KINDS: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None}}


def draw(
    folder: Path, summary: Mapping[str, Any], scored: pa.Table | None, selection: pa.Table, curriculum: pa.Table
) -> list[Path]:
    """Write the pictures of the main experiment; returns the PNG files.

    summary: the content of metrics.json. scored: the samples' rewards, and their scores if the method reads gradients;
    None if it reads neither. Pictures of an earlier run that do not fit are removed.
    """
    drawn = [result(summary)]
    if scored is not None:
        picked = np.isin(numpy(scored, "sample_id"), numpy(selection, "sample_id"))
        drawn += [mean_rewards(scored, picked), training_order(curriculum)]
        drawn += [signals(scored, picked)] if "learnability" in scored.column_names else []
    for name in PICTURES[len(drawn) :]:
        for kind in KINDS:
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return [save(folder, name, figure) for name, figure in zip(PICTURES, drawn, strict=False)]


def result(summary: Mapping[str, Any]) -> Figure:
    """NDCG@10 on test, with intervals, of the policy, its control, the policy before RL and the baselines."""
    main = summary["main"]
    rows = {name.replace("_", " "): found for name, found in summary["baselines"].items()}
    rows["before RL"] = summary["before"]
    if "control" in summary:
        rows[f"after RL, {main['control']} picks"] = summary["control"]["metrics"]
    rows[f"after RL, {main['method']}"] = summary["metrics"]
    figure, axes = plt.subplots(figsize=(6.4, 0.6 + 0.42 * len(rows)))
    for place, found in enumerate(rows.values()):
        value = found["ndcg@10"]
        colour = PICKED if place == len(rows) - 1 else POINTS
        axes.hlines(place, value["low"], value["high"], color=colour, linewidth=2)
        axes.plot(value["mean"], place, "o", color=colour)
        axes.annotate(f"{value['mean']:.4f}", (value["mean"], place), (0, 5), textcoords="offset points", fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel="NDCG@10 on test, with 95 % intervals", ylim=(-0.5, len(rows) - 0.3))
    axes.grid(visible=False, axis="y")
    axes.set_title(f"{summary['selected']} of {summary['samples']['train']} training samples", loc="left", fontsize=10)
    return figure


def save(folder: Path, name: str, figure: Figure) -> Path:
    """Write a picture as PNG and SVG; returns the PNG file."""
    for kind, metadata in KINDS.items():
        with atomic_write(folder / f"{name}.{kind}") as partial:
            figure.savefig(partial, format=kind, dpi=150, metadata=metadata)
    plt.close(figure)
    return folder / f"{name}.png"


def mean_rewards(scores: pa.Table, picked: np.ndarray) -> Figure:
    """How many samples have which mean reward, and below which share of them was picked; picked [n] says which were."""
    values = numpy(scores, "mean_reward")
    figure, (counts, shares) = plt.subplots(2, sharex=True, height_ratios=[3, 2])
    edges = np.linspace(0, max(values.max(), 1e-3), 31)
    every, kept = np.histogram(values, edges)[0], np.histogram(values[picked], edges)[0]
    middle, width = (edges[1:] + edges[:-1]) / 2, 0.9 * (edges[1] - edges[0])
    counts.bar(middle, every, width, color=ALL)
    counts.set(ylabel="samples", yscale="log", ylim=(0.7, None))
    shares.bar(middle, np.divide(kept, every, out=np.zeros(len(every)), where=every > 0), width, color=PICKED)
    shares.set(xlabel="mean reward of the proxy's completions", ylabel="share picked", ylim=(0, 1))
    without_hit = float((numpy(scores, "hits") == 0).mean())
    counts.set_title(f"{len(values)} samples, {without_hit:.0%} never get a hit", loc="left", fontsize=10)
    return figure


def signals(scores: pa.Table, picked: np.ndarray) -> Figure:
    """Learnability against representativeness of every sample; picked [n] says which the selection holds."""
    x, y = numpy(scores, "representativeness"), numpy(scores, "learnability")
    figure, axes = plt.subplots()
    axes.scatter(x[~picked], y[~picked], s=10, color=ALL, linewidths=0, label="not picked")
    axes.scatter(x[picked], y[picked], s=14, color=PICKED, linewidths=0, label="picked")
    axes.set(xlabel="representativeness", ylabel="learnability", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title("Signals of the picked samples", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return figure


def training_order(curriculum: pa.Table) -> Figure:
    """Mean reward of each sample by its position in training: easy to hard within each group of the curriculum."""
    position, group = numpy(curriculum, "position"), numpy(curriculum, "group")
    reward = numpy(curriculum, "mean_reward")
    figure, axes = plt.subplots()
    for edge in position[1:][np.diff(group) != 0]:
        axes.axvline(edge - 0.5, color=ALL, linewidth=1)
    axes.scatter(position, reward, s=9, color=POINTS, linewidths=0)
    axes.set(xlabel="position in training", ylabel="mean reward")
    axes.set_title(f"The curriculum: {group.max() + 1} groups, each from easy to hard", loc="left", fontsize=10)
    return figure


def quality_and_cost(configurations: pd.DataFrame, metric: str) -> Figure:
    """A metric against all seconds, selection and training, with one line per method through its budgets.

    configurations: from `comparison.over_seeds`. The error bars are one standard deviation over the seeds; the tick to
    the left of a point is the training alone.
    """
    figure, axes = plt.subplots()
    parts = [part for part in ("model", "selector", "method") if configurations[part].nunique() > 1] or ["method"]
    for name, line in configurations.groupby(["model", "selector", "method"], sort=False):
        line = line.sort_values("total_seconds")
        said = dict(zip(("model", "selector", "method"), map(str, name), strict=True))
        label = " ".join(said[part] for part in parts if said[part] != "none")
        drawn = axes.errorbar(line["total_seconds"], line["mean"], line["std"].fillna(0), marker="o", ms=4, label=label)
        colour = drawn.lines[0].get_color()
        axes.hlines(line["mean"], line["seconds"], line["total_seconds"], color=colour, linewidth=0.8, linestyle=":")
        axes.plot(line["seconds"], line["mean"], "|", color=colour, markersize=8)
        for row in line.to_dict("records"):
            axes.annotate(f" {row['budget']}", (row["total_seconds"], row["mean"]), fontsize=8)
    axes.set(xlabel="seconds of selection and training (tick: training alone)", ylabel=metric.upper(), xscale="log")
    axes.set_title("Quality against cost, by budget", loc="left", fontsize=10)
    axes.legend(frameon=False)
    return figure
