"""pick: choose the prompts to train on from rollouts that another library logged."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from minirec.cli.pick_screen import read, screen
from minirec.data.logged.export import require_writable, verl, with_column, write
from minirec.data.logged.originals import Originals
from minirec.data.logged.rollouts import RolloutLog
from minirec.data.logged.signals import signals_of, word_vectors
from minirec.data.logged.vectors import vectors
from minirec.errors import InputError
from minirec.experiment.commands import parse
from minirec.experiment.sections import Score
from minirec.selection.curriculum import curriculum_order, groups
from minirec.selection.methods import registry
from minirec.selection.signals import Signals
from minirec.storage.database import connect
from minirec.storage.files import atomic_write

MEMORY = "700MB"  # of DuckDB; larger data spills to disk


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
    embeddings: Path | None = None,
    gradients: Path | None = None,
    order: str = "curriculum",
    group_size: int = 64,
    seed: int = 0,
    report: Path | None = None,
    dataset: Path | None = None,
    on: str | None = None,
    layout: str = "logged",
    answer: str | None = None,
    data_source: str | None = None,
    **settings: Any,
) -> None:
    """Write the picked prompts in the order of training, and print what was found and picked."""
    chosen, other = registry.find(method), registry.find(control) if control else None
    files = [out, control_file(out)] if control else [out]
    for file in files:
        require_writable(file, id, layout)
    _require_consistent_flags(out, group_size, dataset, on, embeddings, diversity, report)
    with connect(MEMORY, out.parent) as engine:
        log = RolloutLog(engine, rollouts, prompt, reward or (), which)  # type: ignore[arg-type]
        _require_prompts(log, id, budget)
        have = {"rewards": True, "embeddings": embeddings or diversity != "none", "gradients": gradients}
        for one in filter(None, (chosen, other)):
            _require_signals(one, {name for name, there in have.items() if there})
        originals = Originals(log, dataset, on) if dataset else None
        given = {name: value for name, value in settings.items() if value is not None}
        select: Any = parse("select", given, {})["select"]
        signals, note = signals_of(
            log,
            vectors(log, embeddings, id) if embeddings else vectors_of(log, diversity),
            vectors(log, gradients, id) if gradients else None,
            select.mu if "mu" in given else Score().mu,
        )
        if "gradients" in chosen.needs:
            given.pop("mu", None)  # it is in their learnability

        def pick(method: registry.Method, settings: Mapping[str, Any]) -> np.ndarray:
            rows = _picked(method, signals, len(log) if chosen.takes_all else budget, seed, settings)
            return ordered(rows, signals, order, group_size, seed)

        picks = [pick(chosen, {name: getattr(select, name) for name in given})]
        if other:  # in the same order, so that a comparison of both is one of the selection alone
            picks.append(pick(other, {}))
        tables, found = _tables(log, originals, signals, picks, group_size)
        if layout == "verl":
            column = originals.prompt if originals else log.columns.prompt
            tables = [
                verl(table, column, answer, data_source, rows.tolist())
                for table, rows in zip(tables, picks, strict=True)
            ]
        for table, file in zip(tables, files, strict=True):  # all were made before the first is written
            write(table, file, id)
        sentences = read(log, note) + found
        beside = (control, picks[1], files[1]) if control else None
        if report is not None:
            _write_report(report, log, signals, sentences, method, picks[0], beside)
        sys.stdout.write(screen(sentences, signals, picks[0], method, out, beside))
        if report is not None:
            sys.stdout.write(f"{report}: the same as a page to look at and search\n")


def control_file(out: Path) -> Path:
    """Where the control goes: beside the picks."""
    return out.with_name(f"{out.stem}.control{out.suffix}" if out.suffix else f"{out.name}-control")


def _require_consistent_flags(
    out: Path,
    group_size: int,
    dataset: Path | None,
    on: str | None,
    embeddings: Path | None,
    diversity: str,
    report: Path | None,
) -> None:
    """Raise InputError if flags do not fit each other, or one has no possible value."""
    if group_size < 1:
        raise InputError(f"--group-size is {group_size}; it must be at least 1")
    if on is not None and dataset is None:
        raise InputError("--on says how rows of --dataset are found; name the data set, too")
    if dataset is not None and out.suffix == ".txt":
        raise InputError(f"--dataset gives rows, but {out} holds ids alone; let --out end in .jsonl or .parquet")
    if embeddings is not None and diversity != "none":
        raise InputError("--embeddings and --diversity both give vectors; take one of them")
    if report is not None and report.suffix != ".html":
        raise InputError(f"--report is {report}; it must end in .html")


def _require_prompts(log: RolloutLog, id: str | None, budget: int) -> None:
    """Raise InputError if the prompts have no column `id`, or are fewer than the budget."""
    if id is not None and id not in log.kept:
        raise InputError(f"--id is {id}, which is no column of the prompts; those are {', '.join(log.kept)}")
    if not 0 < budget <= len(log):
        raise InputError(f"the budget is {budget:,}, but there are {len(log):,} prompts; it must be 1 to as many")


def _require_signals(method: registry.Method, have: set[str]) -> None:
    """Raise InputError if a method needs what neither the rollouts nor a file gives."""
    missing = method.lacks(have)
    if missing:
        hints = {"embeddings": "--diversity tfidf", "gradients": "--gradients FILE"}
        raise InputError(
            f"the method {method.name} needs {' and '.join(missing)}, which rollouts do not have; "
            f"add {' and '.join(hints[need] for need in missing)}, or take another"
        )


def vectors_of(log: RolloutLog, diversity: str) -> np.ndarray | None:
    """Vectors [n, d] of the prompts: none, tfidf of their words, or those of the encoder in a folder."""
    if diversity == "none":
        return None
    if diversity == "tfidf":
        return word_vectors(log.texts())
    if not Path(diversity).is_dir():
        raise InputError(f"--diversity is {diversity}, but must be none, tfidf or the folder of a sentence encoder")
    from minirec.model.sentence_encoder import encode, message_text  # loads torch

    return encode(Path(diversity), [message_text(text) for text in log.texts()])


def _picked(
    method: registry.Method, signals: Signals, count: int, seed: int, settings: Mapping[str, Any]
) -> np.ndarray:
    generator = np.random.default_rng(seed)
    drawn = generator.permutation(len(signals))  # so that of prompts with equal rewards not the first of the file win
    return np.asarray(drawn[method.pick(signals.take(drawn), count, generator, **settings).rows], dtype=np.int64)


def ordered(rows: np.ndarray, signals: Signals, order: str, group_size: int, seed: int) -> np.ndarray:
    """The picks in the order of training: from easy to hard within random groups, or as they were picked."""
    if order == "picks":
        return rows
    return curriculum_order(rows, signals.mean_reward[rows], group_size, seed)


def _tables(
    log: RolloutLog, originals: Originals | None, signals: Signals, picks: list[np.ndarray], group_size: int
) -> tuple[list[pa.Table], list[str]]:
    """A table for each of the picks: their rows in the log or in the data set, with what was known of them.

    Also returns a sentence on how the rows of the first were found, if a data set has them.
    """
    if originals is None:
        return [_with_signals(log.rows(rows), signals, rows, group_size) for rows in picks], []
    found = [originals.rows(rows) for rows in picks]
    several = found[0][1]
    more = f"; {several:,} stand there more than once, and the first row is taken" if several else ""
    tables = [_with_signals(table, signals, rows, group_size) for (table, _), rows in zip(found, picks, strict=True)]
    return tables, [f"the picks are rows of {originals.path}, found by {originals.on}{more}"]


def _with_signals(rows: pa.Table, signals: Signals, places: np.ndarray, group_size: int) -> pa.Table:
    """Rows of prompts with a column `minirec`: place, mean reward, its spread and group."""
    columns = {"position": np.arange(len(places)), "mean_reward": signals.mean_reward[places]}
    columns |= {"reward_std": signals.reward_std[places], "group": groups(len(places), group_size)}
    column = pa.StructArray.from_arrays([pa.array(values) for values in columns.values()], list(columns))
    return with_column(rows, "minirec", column)


def _write_report(
    path: Path,
    log: RolloutLog,
    signals: Signals,
    sentences: list[str],
    method: str,
    rows: np.ndarray,
    control: tuple[str, np.ndarray, Path] | None,
) -> None:
    from minirec.report import pick_page  # takes a second to import

    first = rows[: pick_page.SHOWN]
    texts, rewards = log.texts(first), log.rewards.take(pa.array(first)).to_pylist()
    other = control[:2] if control else None
    page = pick_page.html(sentences, signals, method, rows, texts, rewards, other)
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8")
