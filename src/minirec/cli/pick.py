"""pick: choose the prompts to train on from rollouts that another library logged."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from minirec.data.rollout_logs import RolloutLog
from minirec.errors import InputError
from minirec.experiment.commands import parse
from minirec.selection.curriculum import curriculum_order, groups
from minirec.selection.methods import registry
from minirec.selection.signals import NOT_THERE, Signals
from minirec.storage.database import connect
from minirec.storage.files import atomic_write

MEMORY = "700MB"  # of DuckDB; larger data spills to disk
DIMENSIONS = 64  # of the vectors of prompts that diversity compares
BINS = 10
BAR = 40  # characters of the longest bar
OUTPUTS = (".jsonl", ".parquet", ".txt")


def run(
    *,
    rollouts: list[Path],
    budget: int,
    out: Path,
    method: str = "learnable",
    control: str | None = None,
    prompt: str | None = None,
    reward: list[str] | None = None,
    id: str | None = None,
    which: str = "all",
    diversity: str = "none",
    order: str = "curriculum",
    group_size: int = 64,
    seed: int = 0,
    **settings: Any,
) -> None:
    """Write the picked prompts in the order of training, and print what was found and picked."""
    chosen, other = registry.find(method), registry.find(control) if control else None
    if group_size < 1:
        raise InputError(f"--group-size is {group_size}; it must be at least 1")
    if out.suffix not in OUTPUTS or (out.suffix == ".txt" and not id):
        raise InputError(f"{out} must end in .jsonl, .parquet or, with --id, .txt")
    with connect(MEMORY, out.parent) as engine:
        log = RolloutLog(engine, rollouts, prompt, reward or (), which)  # type: ignore[arg-type]
        if id is not None and id not in log.kept:
            raise InputError(f"--id is {id}, which is no column of the prompts; those are {', '.join(log.kept)}")
        signals, note = signals_of(log, diversity)
        there = {"rewards"} | ({"embeddings"} if signals.embeddings is not None else set())
        for one in filter(None, (chosen, other)):
            if missing := one.lacks(there):
                raise InputError(
                    f"the method {one.name} needs {' and '.join(missing)}, which rollouts do not have; "
                    "add --diversity tfidf, or take another"
                )
        if not 0 < budget <= len(log):
            raise InputError(f"the budget is {budget:,}, but there are {len(log):,} prompts; it must be 1 to as many")
        count = len(log) if chosen.takes_all else budget
        rows = _picked(chosen, signals, count, seed, settings)
        others = _picked(other, signals, count, seed, {}) if other else None
        _write(log, ordered(rows, signals, order, group_size, seed), signals, out, id, group_size)
        if others is not None:
            _write(log, others, signals, control_file(out), id, group_size)
        sys.stdout.write(screen(log, signals, rows, note, method, out, others, control))


def control_file(out: Path) -> Path:
    """Where the control goes: beside the picks."""
    return out.with_name(f"{out.stem}.control{out.suffix}")


def signals_of(log: RolloutLog, diversity: str) -> tuple[Signals, str]:
    """The signals of all prompts, and a sentence on how rewards were mapped to 0..1; empty if they lie there."""
    offsets = np.asarray(log.rewards.offsets)
    counts, values = np.diff(offsets), np.asarray(log.rewards.flatten(), dtype=np.float64)
    low, high, note = float(values.min()), float(values.max()), ""
    if low == high:
        raise InputError(f"all {len(values):,} rewards are {low:g}, so there is nothing to choose by")
    if low < 0 or high > 1:
        note = f"rewards lie in {low:g} to {high:g} and are mapped to 0 to 1"
        values = (values - low) / (high - low)
    starts = offsets[:-1] - offsets[0]
    mean = np.add.reduceat(values, starts) / counts
    squares = np.add.reduceat((values - np.repeat(mean, counts)) ** 2, starts)
    std = np.sqrt(squares / np.maximum(counts - 1, 1))
    hits = np.add.reduceat(values > 0, starts, dtype=np.int64)
    vectors = NOT_THERE if diversity == "none" else embedded(log.texts())
    return Signals(np.arange(len(counts)), mean_reward=mean, reward_std=std, hits=hits, embeddings=vectors), note


def embedded(texts: list[str]) -> np.ndarray:
    """Vectors [n, d] of texts: TF-IDF of their words, reduced to at most DIMENSIONS by a truncated SVD."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        words = TfidfVectorizer(sublinear_tf=True, max_features=2**16, dtype=np.float32).fit_transform(texts)
    except ValueError as error:
        raise InputError(f"the prompts hold no words, so their diversity is not known ({error})") from error
    width = min(DIMENSIONS, words.shape[1] - 1, words.shape[0] - 1)
    if width < 2:
        return np.asarray(words.todense())
    return np.asarray(TruncatedSVD(width, random_state=0).fit_transform(words), dtype=np.float32)


def _picked(
    method: registry.Method, signals: Signals, count: int, seed: int, settings: Mapping[str, Any]
) -> np.ndarray:
    words = {name: value for name, value in settings.items() if value is not None}
    checked = parse("select", words, {})["select"]
    given = {name: getattr(checked, name) for name in words}
    generator = np.random.default_rng(seed)
    drawn = generator.permutation(len(signals))  # so that of prompts with equal rewards not the first of the file win
    return np.asarray(drawn[method.pick(signals.take(drawn), count, generator, **given).rows], dtype=np.int64)


def ordered(rows: np.ndarray, signals: Signals, order: str, group_size: int, seed: int) -> np.ndarray:
    """The picks in the order of training: from easy to hard within random groups, or as they were picked."""
    if order == "picks":
        return rows
    return curriculum_order(rows, signals.mean_reward[rows], group_size, seed)


def _write(log: RolloutLog, rows: np.ndarray, signals: Signals, out: Path, id: str | None, group_size: int) -> None:
    """Write these prompts with all their columns, and a column `minirec` with their mean reward and place."""
    table = log.rows(rows)
    with atomic_write(out) as partial:
        if out.suffix == ".txt":
            partial.write_text("".join(f"{value}\n" for value in table[id].to_pylist()), encoding="utf-8")
            return
        facts = {"position": np.arange(len(rows)), "mean_reward": signals.mean_reward[rows]}
        facts |= {"reward_std": signals.reward_std[rows], "group": groups(len(rows), group_size)}
        said = pa.StructArray.from_arrays([pa.array(values) for values in facts.values()], list(facts))
        table = table.append_column("minirec", said)
        if out.suffix == ".parquet":
            pq.write_table(table, partial)
            return
        with partial.open("w", encoding="utf-8") as stream:
            for row in table.to_pylist():
                stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def screen(
    log: RolloutLog,
    signals: Signals,
    rows: np.ndarray,
    note: str,
    method: str,
    out: Path,
    others: np.ndarray | None,
    control: str | None,
) -> str:
    """What was read and picked, on one screen."""
    n, counts, mean, std = len(log), np.diff(np.asarray(log.rewards.offsets)), signals.mean_reward, signals.reward_std
    picked = np.zeros(n, dtype=bool)
    picked[rows] = True
    columns = f"prompt {log.columns.prompt}, reward {' + '.join(log.columns.rewards)}"
    several = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    lines = [
        f"{len(log.files):,} file{'s' if len(log.files) > 1 else ''}, read as {log.columns.kind}: {columns}",
        f"{n:,} prompts with {several} completions each" + (f"; {note}" if note else ""),
    ]
    if counts.max() == 1:
        lines.append("one completion a prompt says little about what can be learned; several are better")
    always = (mean == mean.max()) & (std == 0) & (mean > 0)
    shares = {"never rewarded": signals.hits == 0, "always the best reward": always, "all rewards alike": std == 0}
    lines += ["", f"  {'':<24}{'prompts':>10}{'picked':>10}"]
    for name, there in shares.items():
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
    if others is not None:
        shared = len(np.intersect1d(rows, others))
        lines.append(
            f"{control_file(out)}: as many by {control}, mean reward {mean[others].mean():.3f}; {shared:,} are in both"
        )
    return "\n".join(lines) + "\n"
