"""The pictures of an experiment: its result, its training, its samples and its costs, for files and for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from minirec.experiment.paths import PICTURES, Run, pictures
from minirec.report.style import ALL, INK, KINDS, LINES, MARKERS, PICKED, POINTS, Figure, plt, save
from minirec.report.summary import effects
from minirec.storage import tables
from minirec.storage.tables import numpy

WIDTH = 4.6  # of a picture, inches
BINS = 30  # of a histogram of rewards
PARTS = ["model", "selector", "method"]  # what a line through several budgets is of


def draw(
    folder: Path,
    summary: Mapping[str, Any],
    histories: Mapping[str, Sequence[pa.Table]],
    scored: pa.Table | None,
    selection: pa.Table,
    curriculum: pa.Table,
) -> list[Path]:
    """Write the pictures of the main experiment; returns the PNG files.

    summary: the content of metrics.json. histories: as `histories_of` reads them. scored: the samples' rewards, and
    their scores if the method reads gradients; None if it reads neither. Pictures of an earlier run that do not fit
    are removed.
    """
    drawn = {"result": result(summary), "learning": learning(histories)}
    reads: tuple[str, ...] = ()
    if scored is not None:
        values, picked = (
            numpy(scored, "mean_reward"),
            np.isin(numpy(scored, "sample_id"), numpy(selection, "sample_id")),
        )
        drawn |= {"rewards": mean_rewards(values, picked), "curriculum": training_order(curriculum)}
        reads = ("rewards",)
        if "learnability" in scored.column_names:
            drawn["scores"] = signals(values, numpy(scored, "representativeness"), picked)
            reads = ("rewards", "gradients")
    for name in PICTURES.keys() - {*pictures(reads)}:
        for kind in KINDS:
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return [save(folder, name, drawn[name]) for name in pictures(reads)]


def result(summary: Mapping[str, Any]) -> Figure:
    """NDCG@10 on test of every recommender, and below it the paired differences that matter, both with intervals."""
    rows, differences = recommenders(summary), effects(summary)
    heights = [len(rows) + 0.2, 1.4 * len(differences)]
    figure, (axes, lower) = plt.subplots(2, figsize=(WIDTH, 1.5 + 0.38 * sum(heights)), height_ratios=heights)
    for place, (name, metrics) in enumerate(rows.items()):
        value, ours = metrics["ndcg@10"], place == 0
        style: dict[str, Any] = {"color": PICKED if ours else INK, "label": name}
        axes.plot([value["low"], value["high"]], [place, place], linewidth=2, **style)
        axes.plot(value["mean"], place, "D" if ours else "o", **style)
        axes.annotate(f"{value['mean']:.4f}", (value["mean"], place), (0, 5), textcoords="offset points", fontsize=9)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel="NDCG@10 on test, with intervals", ylim=(len(rows) - 0.5, -0.7))
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    for place, test in enumerate(differences.values()):
        lower.plot([0, 0], [place - 0.05, place + 0.3], color=ALL, linewidth=1.5)  # short, so that it crosses no words
        lower.plot([test["low"], test["high"]], [place, place], color=POINTS, linewidth=2)
        lower.plot(test["mean"], place, "o", color=POINTS)
        words = f"{test['mean']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}], p = {test['p_holm']:.2g}"
        across = lower.get_yaxis_transform()
        lower.annotate(words, (0.5, place), (0, 6), across, "offset points", ha="center", fontsize=9)
    lower.set_yticks(range(len(differences)), [name.replace(" minus ", "\nminus ") for name in differences])
    lower.set(xlabel="difference of NDCG@10; p by Holm", ylim=(len(differences) - 0.6, -0.8))
    lower.margins(x=0.1)
    lower.xaxis.set_major_locator(MaxNLocator(4))
    lower.grid(visible=False)
    return figure


def recommenders(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The metrics of every recommender by its name, as people read it: the trained policy first."""
    main = summary["main"]
    rows = {f"after RL, {main['method']}": summary["metrics"]}
    if "control" in summary:
        rows[f"after RL, {main['control']} picks"] = summary["control"]["metrics"]
    rows["before RL"] = summary["before"]
    return rows | {name.replace("_", " "): found for name, found in summary["baselines"].items()}


def histories_of(top: Path, runs: Sequence[Run]) -> dict[str, list[pa.Table]]:
    """The training histories of runs, by what tells their lines apart: the method if they have several, else the seed.

    top: results of the data set.
    """
    several = len({run.method for run in runs}) > 1
    histories: dict[str, list[pa.Table]] = {}
    for run in runs:
        history = tables.read("history", run.folder(top) / "history.parquet")
        histories.setdefault(run.method if several else f"seed {run.seed}", []).append(history)
    return histories


def learning(histories: Mapping[str, Sequence[pa.Table]]) -> Figure:
    """Reward and item NLL of every training step, smoothed, and NDCG@10 on valid; one line per training.

    histories: as `histories_of` reads them; those under one name have one style. The panel of the item NLL is left out
    if no training had an item loss.
    """
    smooth = {"reward": "mean reward", "item_nll": "item NLL, nats"}
    trainings = [(n, name, one) for n, (name, group) in enumerate(histories.items()) for one in group]
    if all(history["item_nll"].null_count == len(history) for *_, history in trainings):
        del smooth["item_nll"]
    figure, panels = plt.subplots(len(smooth) + 1, 1, sharex=True, figsize=(WIDTH, 2.1 * (len(smooth) + 1)))
    for number, name, history in trainings:
        style = line_style(number)
        steps = history.select(["step", "reward", "item_nll", "valid_ndcg"]).sort_by("step").to_pandas()
        for axes, column in zip(panels, smooth, strict=False):
            means = steps[column].rolling(max(1, len(steps) // 20), min_periods=1).mean()
            axes.plot(steps["step"], means, color=style["color"])
        valid = steps.dropna(subset=["valid_ndcg"])
        panels[-1].plot(valid["step"], valid["valid_ndcg"], markersize=4, label=name, **style)
    for axes, label in zip(panels, [*smooth.values(), "NDCG@10 on valid"], strict=True):
        axes.set(ylabel=label)
    panels[-1].set(xlabel="training step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    if len(histories) > 1:
        named = dict(zip(*reversed(panels[-1].get_legend_handles_labels()), strict=True))
        figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=4)
    return figure


def mean_rewards(values: np.ndarray, picked: np.ndarray) -> Figure:
    """How many samples have which mean reward [n], on a log scale, and below which share of them was picked [n]."""
    figure, (counts, shares) = plt.subplots(2, sharex=True, figsize=(WIDTH, 4.2), height_ratios=(3, 2))
    edges = np.linspace(0, max(values.max(), 1e-3), BINS + 1)
    every, kept = np.histogram(values, edges)[0], np.histogram(values[picked], edges)[0]
    middle, width = (edges[1:] + edges[:-1]) / 2, 0.9 * edges[1]
    counts.bar(middle, every, width, color=ALL)
    counts.set(ylabel="training samples", yscale="log", ylim=(0.7, None))
    counts.yaxis.set_major_formatter("{x:,.0f}")
    counts.yaxis.set_minor_formatter(NullFormatter())
    shares.bar(middle, np.divide(kept, every, out=np.zeros(BINS), where=every > 0), width, color=PICKED)
    shares.set(xlabel="mean reward by the proxy", ylabel="share picked", ylim=(0, 1.02))
    return figure


def signals(
    mean_reward: np.ndarray, representativeness: np.ndarray, picked: np.ndarray, links: Sequence[str | None] = ()
) -> Figure:
    """Mean reward [n], which decides learnability, against representativeness [n]; picked [n]: the selected samples.

    Learnability itself would be 0 for most samples, one above the other. links [n]: where a click on a sample leads.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 4.0))
    points(axes, np.column_stack([mean_reward, representativeness]), picked, links)
    axes.set_xscale("function", functions=(lambda value: np.sqrt(np.maximum(value, 0)), np.square))
    axes.set(xlabel="mean reward (square root scale)", ylabel="representativeness", ylim=(-0.03, 1.03))
    axes.set_xlim(0, max(mean_reward.max(), 1e-3) * 1.05)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def embedding_map(plane: np.ndarray, shares: np.ndarray, picked: np.ndarray, links: Sequence[str | None]) -> Figure:
    """The samples' embeddings on a plane [n, 2]; shares [2]: of the variance, by axis. picked, links: see `signals`."""
    figure, axes = plt.subplots(figsize=(WIDTH, 4.4))
    points(axes, plane, picked, links)
    for axis, number, share in zip((axes.xaxis, axes.yaxis), ("first", "second"), shares, strict=True):
        axis.set_label_text(f"{number} component, {share:.0%} of the variance")
        axis.set_ticklabels([])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def points(axes: Axes, places: np.ndarray, picked: np.ndarray, links: Sequence[str | None]) -> None:
    """Draw samples at places [n, 2], the picked ones as diamonds above the others; picked, links: as in `signals`."""
    for chosen, colour, marker, size, name in (
        (~picked, ALL, "o", 9, "not picked"),
        (picked, PICKED, "D", 14, "picked"),
    ):
        drawn = axes.scatter(
            places[chosen, 0],
            places[chosen, 1],
            size,
            color=colour,
            marker=marker,
            linewidths=0,
            label=name,
            clip_on=False,
        )
        if len(links):
            drawn.set_urls([links[row] for row in np.flatnonzero(chosen).tolist()])


def diversity(selection: pd.DataFrame) -> Figure:
    """Diversity D~ of each pick when it was picked, by its place; 0: a copy of an earlier pick."""
    figure, axes = plt.subplots(figsize=(WIDTH, 2.8))
    axes.plot(selection["position"] + 1, selection["diversity"], "D", color=PICKED, markersize=3)
    axes.set(xlabel="order of picking", ylabel="diversity when picked", ylim=(-0.03, 1.05))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def training_order(curriculum: pa.Table) -> Figure:
    """Mean reward of each sample by its place in training: easy to hard within each group of the curriculum."""
    order = curriculum.sort_by("position")
    place, group = numpy(order, "position") + 1, numpy(order, "group")
    figure, axes = plt.subplots(figsize=(WIDTH, 2.8))
    for edge in place[1:][np.diff(group) != 0]:
        axes.axvline(edge - 0.5, color=ALL, linewidth=1)
    axes.plot(place, numpy(order, "mean_reward"), "D", color=PICKED, markersize=3)
    axes.set(xlabel="place in training; lines end groups", ylabel="mean reward")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def quality_and_cost(configurations: pd.DataFrame, metric: str) -> Figure:
    """A metric against all seconds, selection and training, with one line per method through its budgets.

    configurations: from `comparison.over_seeds`, with the ends of intervals, low and high. The tick to the left of a
    point is the training alone.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 4.0))
    named = [part for part in PARTS if configurations.loc[configurations[part] != "none", part].nunique() > 1]
    for number, (name, line) in enumerate(configurations.groupby(PARTS, sort=False)):
        line, style = line.sort_values("total_seconds"), line_style(number)
        parts = dict(zip(PARTS, map(str, name), strict=True))
        label = " ".join(parts[part] for part in named or ["method"] if parts[part] != "none")
        ends = np.abs(line[["low", "high"]].to_numpy().T - line["mean"].to_numpy())
        axes.errorbar(line["total_seconds"], line["mean"], ends, ms=6, elinewidth=1, capsize=2, label=label, **style)
        axes.hlines(line["mean"], line["seconds"], line["total_seconds"], color=style["color"], lw=0.8, linestyle=":")
        axes.plot(line["seconds"], line["mean"], "|", color=style["color"], markersize=8)
        for row in line.to_dict("records"):
            place = (row["total_seconds"], row["mean"])
            axes.annotate(str(row["budget"]), place, (5, 4), textcoords="offset points", fontsize=9)
    axes.set(xlabel="seconds of selection and training (tick: training alone)", ylabel=f"{metric.upper()} on test")
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def line_style(number: int) -> dict[str, Any]:
    """Colour and marker of the line of this number; together they repeat after 36 lines."""
    turn = number // len(LINES)
    return {"color": LINES[number % len(LINES)], "marker": MARKERS[(number + turn) % len(MARKERS)]}


def seconds_by_rule(seconds: Mapping[str, float]) -> Figure:
    """Seconds of the jobs of each rule, the first at the top."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.7 + 0.26 * max(len(seconds), 1)))
    bars = axes.barh(list(seconds), list(seconds.values()), color=POINTS)
    axes.bar_label(bars, [f"{value:,.0f}" for value in seconds.values()], padding=3, fontsize=9)
    axes.set(xlabel="seconds")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return figure
