"""What `minirec pick` prints: what was read, and how the picks differ from all prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minirec.data.logged.rollouts import RolloutLog
from minirec.data.logged.signals import kinds
from minirec.selection.signals import Signals

BINS = 10
BAR = 40  # characters of the longest bar


def read(log: RolloutLog, note: str) -> list[str]:
    """Sentences on what was read; note: on how rewards were mapped."""
    counts = np.diff(np.asarray(log.rewards.offsets))
    columns = f"prompt {log.columns.prompt}, reward {' + '.join(log.columns.rewards)}"
    several = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    sentences = [
        f"{len(log.files):,} file{'s' if len(log.files) > 1 else ''}, read as {log.columns.kind}: {columns}",
        f"{len(log):,} prompts with {several} completions each" + (f"; {note}" if note else ""),
    ]
    if counts.max() == 1:
        sentences.append("one completion a prompt says little about what can be learned; several are better")
    return sentences


def screen(
    sentences: list[str],
    signals: Signals,
    rows: np.ndarray,
    method: str,
    out: Path,
    control: tuple[str, np.ndarray, Path] | None,
) -> str:
    """What was read and picked. control: its method, its rows and its file."""
    n, mean = len(signals), signals.mean_reward
    picked = np.zeros(n, dtype=bool)
    picked[rows] = True
    lines = [*sentences, "", f"  {'':<24}{'prompts':>10}{'picked':>10}"]
    for name, there in kinds(signals).items():
        lines.append(f"  {name:<24}{there.sum():>10,}{(there & picked).sum():>10,}")
    lines += ["", "  mean reward   prompts    picked"]
    place = np.minimum((mean * BINS).astype(int), BINS - 1)
    all_of, picks_of = (np.bincount(place[kept], minlength=BINS) for kept in (np.ones(n, bool), picked))
    for number in range(BINS):
        bar = "█" * round(BAR * picks_of[number] / max(all_of.max(), 1))
        bar += "░" * round(BAR * (all_of[number] - picks_of[number]) / max(all_of.max(), 1))
        label = f"{number / BINS:.1f} to {(number + 1) / BINS:.1f}"
        lines.append(f"  {label:<12}{all_of[number]:>9,}{picks_of[number]:>10,}  {bar}")
    rewarded = f"mean reward {mean[rows].mean():.3f} (all: {mean.mean():.3f})"
    lines += ["", f"{out}: {len(rows):,} prompts picked by {method}, {rewarded}"]
    if control is not None:
        name, others, file = control
        shared = len(np.intersect1d(rows, others))
        lines.append(f"{file}: as many by {name}, mean reward {mean[others].mean():.3f}; {shared:,} are in both")
    return "\n".join(lines) + "\n"
