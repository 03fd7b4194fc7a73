"""The page of `minirec pick`: rewards of all prompts and of the picks, the control, and the picks to search."""

from __future__ import annotations

from typing import Any

import numpy as np

from minirec.data.logged.signals import kinds
from minirec.report.html import chart, render
from minirec.report.style import ALL, PICKED, POINTS, Figure, plt
from minirec.selection.methods import registry
from minirec.selection.signals import Signals

SHOWN = 1000  # picks in the table, so that the page stays below 5 MB
TEXT = 500  # characters of a prompt that are shown
REWARDS = 32  # rewards of its completions that are shown
BINS = 20  # of the histogram of mean rewards


def html(
    sentences: list[str],
    signals: Signals,
    method: str,
    rows: np.ndarray,
    texts: list[str],
    rewards: list[list[float]],
    control: tuple[str, np.ndarray] | None = None,
) -> str:
    """The page about picks at these rows of the signals, in the order of training.

    sentences: on what was read. texts, rewards: of the first SHOWN picks, as logged. control: another method and
    its picks.
    """
    others = None if control is None else control[1]
    sets = {"all prompts": np.arange(len(signals)), method: rows} | (
        {} if control is None else {control[0]: control[1]}
    )
    caption = "Prompts by their mean reward, on a log scale, and the share of them that was picked"
    return render(
        "pick.html.j2",
        sentences=sentences,
        method=method,
        sentence=registry.find(method).sentence,
        control=None if control is None else control[0],
        shared=None if others is None else len(np.intersect1d(rows, others)),
        picked=len(rows),
        prompts=len(signals),
        sets=[_about(name, signals, at) for name, at in sets.items()],
        kinds=list(kinds(signals)),
        chart=chart("rewards", _figure(signals.mean_reward, rows, others, control and control[0]), caption),
        rows=_rows(signals, rows, texts, rewards, others),
    )


def _about(name: str, signals: Signals, rows: np.ndarray) -> dict[str, Any]:
    """Number of prompts, mean reward, spread within a prompt and counts by kind, of some rows."""
    counts = {kind: int(there[rows].sum()) for kind, there in kinds(signals).items()}
    spread = float(signals.reward_std[rows].mean())
    return {"name": name, "prompts": len(rows), "mean": float(signals.mean_reward[rows].mean()), "std": spread} | counts


def _rows(
    signals: Signals, rows: np.ndarray, texts: list[str], rewards: list[list[float]], others: np.ndarray | None
) -> list[dict[str, Any]]:
    both = set() if others is None else set(others.tolist())
    shown = []
    for place, (row, text, earned) in enumerate(zip(rows.tolist(), texts, rewards, strict=False), 1):
        cut = text if len(text) <= TEXT else text[: TEXT - 1] + "…"
        listed = ", ".join(f"{reward:.3g}" for reward in earned[:REWARDS]) + (", …" if len(earned) > REWARDS else "")
        cells = {"place": place, "text": cut, "rewards": listed, "shared": row in both}
        shown.append(cells | {"mean": f"{signals.mean_reward[row]:.3f}", "std": f"{signals.reward_std[row]:.3f}"})
    return shown


def _figure(mean: np.ndarray, rows: np.ndarray, others: np.ndarray | None, control: str | None) -> Figure:
    """How many prompts, and how many picks, have which mean reward, and the share picked; the control as a line."""
    figure, (counts, shares) = plt.subplots(2, sharex=True, figsize=(4.6, 4.4), height_ratios=(3, 2))
    edges = np.linspace(0, 1, BINS + 1)
    middle, width = (edges[1:] + edges[:-1]) / 2, 0.9 / BINS

    def histogram(at: np.ndarray) -> np.ndarray:
        return np.histogram(mean[at], edges)[0]

    every, kept = histogram(np.arange(len(mean))), histogram(rows)

    def share(of: np.ndarray) -> np.ndarray:
        return np.divide(of, every, out=np.zeros(BINS), where=every > 0)

    counts.bar(middle, every, width, color=ALL, label="all")
    counts.bar(middle, kept, width, color=PICKED, label="picked")
    shares.bar(middle, share(kept), width, color=PICKED)
    if others is not None:
        of_control = histogram(others)
        style: dict[str, Any] = {"color": POINTS, "where": "mid", "linewidth": 1.5}
        counts.step(middle, of_control, label=f"control, {control}", **style)
        shares.step(middle, share(of_control), **style)
    counts.set(ylabel="prompts", yscale="log", ylim=(0.7, None))
    shares.set(xlabel="mean reward", ylabel="share picked", ylim=(0, 1.02))
    figure.legend(*counts.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure
