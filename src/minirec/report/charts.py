"""The charts of the report as SVG within the page: colours follow its light or dark theme, and points have names."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minirec.report import figures as _style  # noqa: F401  sets the style

# Colours that stand for variables of the page's style sheet.
INK, GRID, MAIN, OTHER, THIRD = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "--ink", GRID: "--grid", MAIN: "--main", OTHER: "--other", THIRD: "--third"}
STYLE: Any = {
    **{f"{name}.color": INK for name in ("text", "xtick", "ytick")},
    **{"axes.labelcolor": INK, "axes.edgecolor": GRID, "grid.color": GRID, "grid.alpha": 1.0, "svg.fonttype": "none"},
    **{"figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "font.family": "sans-serif"},
}


def drawing(width: float = 6.4, height: float = 3.4) -> tuple[Figure, Axes]:
    """An empty chart in the style of the page."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height))
    return figure, axes


def svg(figure: Figure, label: str, names: dict[str, Sequence[str]] | None = None) -> str:
    """A chart as an SVG element.

    label: for those who cannot see it. names: of the points of each scatter, by its gid.
    """
    written = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(written, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = written.getvalue()[written.getvalue().index("<svg") :]
    for gid, titles in (names or {}).items():
        text = _named(text, gid, titles)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    prefix = re.sub(r"\W+", "", label)[:24]  # ids are unique within the page, not only within the chart
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def result(rows: dict[str, dict[str, float]], ours: str) -> Figure:
    """NDCG@10 with intervals, a line a recommender; rows: mean, low and high by name, `ours` in colour."""
    figure, axes = drawing(height=0.7 + 0.42 * len(rows))
    for place, (name, found) in enumerate(reversed(rows.items())):
        colour = MAIN if name == ours else INK
        axes.hlines(place, found["low"], found["high"], color=colour, linewidth=2)
        axes.plot(found["mean"], place, "o", color=colour)
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="NDCG@10 on test, with 95 % intervals", ylim=(-0.6, len(rows) - 0.4))
    return figure


def rewards(mean_reward: np.ndarray, picked: np.ndarray) -> Figure:
    """How many samples have which mean reward [n], on a log scale, and below which share of them was picked [n]."""
    with plt.rc_context(STYLE):
        figure, (counts, shares) = plt.subplots(2, sharex=True, figsize=(6.4, 4.2), height_ratios=[3, 2])
    edges = np.linspace(0, max(float(mean_reward.max()), 1e-3), 31)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    every = np.histogram(mean_reward, edges)[0]
    kept = np.histogram(mean_reward[picked], edges)[0]
    counts.bar(middle, every, width * 0.9, color=OTHER)
    counts.set(ylabel="samples", yscale="log", ylim=(0.7, None))
    shares.bar(middle, np.divide(kept, every, out=np.zeros(len(every)), where=every > 0), width * 0.9, color=MAIN)
    shares.set(xlabel="mean reward of the proxy's completions", ylabel="share picked", ylim=(0, 1))
    return figure


def diversity(selection: pd.DataFrame) -> Figure:
    """Diversity D~ of each pick when it was picked, by its place."""
    figure, axes = drawing(height=2.6)
    axes.plot(selection["position"] + 1, selection["diversity"], ".", color=MAIN, markersize=4)
    axes.set(xlabel="pick", ylabel="diversity when picked", ylim=(0, 1.05))
    return figure


def two_signals(shown: pd.DataFrame) -> tuple[Figure, dict[str, Sequence[str]]]:
    """Learnability against representativeness of the samples shown; the names of its points are their targets."""
    return _picked_or_not(
        shown, shown["representativeness"].to_numpy(), shown["learnability"].to_numpy(), "signals"
    ), _names(shown, "signals")


def embedding_map(shown: pd.DataFrame, plane: np.ndarray) -> tuple[Figure, dict[str, Sequence[str]]]:
    """The samples shown on the plane [n, 2] of their embeddings; the names of its points are their targets."""
    figure = _picked_or_not(shown, plane[:, 0], plane[:, 1], "map")
    figure.axes[0].set(xlabel="first principal component", ylabel="second")
    return figure, _names(shown, "map")


def learning_curves(histories: dict[str, pd.DataFrame]) -> Figure:
    """Reward, NDCG@10 on valid and item probability by step; histories: history.parquet of each run, by its name."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(6.4, 2.9))
    colours = [MAIN, OTHER, THIRD, INK]
    for number, (name, history) in enumerate(histories.items()):
        colour = colours[number % len(colours)]
        window = max(1, len(history) // 20)
        panels[0].plot(history["step"], history["reward"].rolling(window, min_periods=1).mean(), color=colour)
        valid = history.dropna(subset=["valid_ndcg"])
        panels[1].plot(valid["step"], valid["valid_ndcg"], "o-", markersize=3, color=colour, label=name)
    panels[0].set(xlabel="step", ylabel="mean reward")
    panels[1].set(xlabel="step", ylabel="NDCG@10 on valid")
    panels[1].legend(frameon=False, fontsize=8)
    return figure


def curriculum(order: pd.DataFrame) -> Figure:
    """Mean reward of each sample by its place in training."""
    figure, axes = drawing(height=2.6)
    for edge in order["position"][order["group"].diff() > 0]:
        axes.axvline(edge + 0.5, color=GRID, linewidth=1)
    axes.plot(order["position"] + 1, order["mean_reward"], ".", color=MAIN, markersize=4)
    axes.set(xlabel="place in training", ylabel="mean reward")
    return figure


def costs(seconds: dict[str, float]) -> Figure:
    """Seconds of each rule as bars."""
    figure, axes = drawing(height=0.7 + 0.26 * len(seconds))
    names = list(reversed(seconds))
    bars = axes.barh(names, [seconds[name] for name in names], color=OTHER)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, color=INK, fontsize=8)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="seconds")
    return figure


def quality_and_cost(cells: pd.DataFrame) -> Figure:
    """NDCG@10 against the seconds of selection and training; cells: from `comparison.over_seeds`."""
    figure, axes = drawing()
    markers, colours = "osD^vP*X", [MAIN, OTHER, THIRD, INK]
    for number, (method, line) in enumerate(cells.groupby("method", sort=False)):
        line = line.sort_values("total_seconds")
        colour, marker, spread = colours[number % 4], markers[number % 8], line["std"].fillna(0)
        axes.errorbar(
            line["total_seconds"], line["mean"], spread, color=colour, marker=marker, markersize=5, label=str(method)
        )
        for row in line.to_dict("records"):
            place = (row["total_seconds"], row["mean"])
            axes.annotate(row["budget"], place, (6, -10), textcoords="offset points", fontsize=8)
    axes.set(xlabel="seconds of selection and training", ylabel="NDCG@10 on test", xlim=(0, None))
    axes.margins(x=0.15, y=0.15)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _picked_or_not(shown: pd.DataFrame, x: np.ndarray, y: np.ndarray, gid: str) -> Figure:
    figure, axes = drawing()
    for chosen, colour, marker, label in ((False, OTHER, "s", "not picked"), (True, MAIN, "o", "picked")):
        rows = (shown["position"] >= 0).to_numpy() == chosen
        points = axes.scatter(x[rows], y[rows], s=16, color=colour, marker=marker, linewidths=0, label=label)
        points.set_gid(f"{gid}-{label.replace(' ', '-')}")
    axes.set(xlabel="representativeness", ylabel="learnability")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def _names(shown: pd.DataFrame, gid: str) -> dict[str, Sequence[str]]:
    picked = shown["position"] >= 0
    return {f"{gid}-picked": shown["target"][picked].to_list(), f"{gid}-not-picked": shown["target"][~picked].to_list()}


def _named(text: str, gid: str, titles: Sequence[str]) -> str:
    """The SVG with a title for every point of the group of this id, which browsers show under the pointer."""
    begin = text.index(f'<g id="{gid}">')
    end = text.index("</g>\n", text.index("<use", begin)) if "<use" in text[begin:] else begin
    names = iter(titles)
    group = re.sub(
        r"<use([^>]*)/>", lambda m: f"<use{m[1]}><title>{escape(next(names, ''))}</title></use>", text[begin:end]
    )
    return text[:begin] + group + text[end:]
