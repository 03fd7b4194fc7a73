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

from minirec.cli.pick_screen import read, screen
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
    embeddings: Path | None = None,
    gradients: Path | None = None,
    order: str = "curriculum",
    group_size: int = 64,
    seed: int = 0,
    report: Path | None = None,
    **settings: Any,
) -> None:
    """Write the picked prompts in the order of training, and print what was found and picked."""
    chosen, other = registry.find(method), registry.find(control) if control else None
    if group_size < 1:
        raise InputError(f"--group-size is {group_size}; it must be at least 1")
    if out.suffix not in OUTPUTS or (out.suffix == ".txt" and not id):
        raise InputError(f"{out} must end in .jsonl, .parquet or, with --id, .txt")
    if embeddings is not None and diversity != "none":
        raise InputError("--embeddings and --diversity both give vectors; take one of them")
    if report is not None and report.suffix != ".html":
        raise InputError(f"--report is {report}; it must end in .html")
    with connect(MEMORY, out.parent) as engine:
        log = RolloutLog(engine, rollouts, prompt, reward or (), which)  # type: ignore[arg-type]
        if id is not None and id not in log.kept:
            raise InputError(f"--id is {id}, which is no column of the prompts; those are {', '.join(log.kept)}")
        if not 0 < budget <= len(log):
            raise InputError(f"the budget is {budget:,}, but there are {len(log):,} prompts; it must be 1 to as many")
        have = {"rewards": True, "embeddings": embeddings or diversity != "none", "gradients": gradients}
        for one in filter(None, (chosen, other)):
            _require(one, {name for name, there in have.items() if there})
        given = {name: value for name, value in settings.items() if value is not None}
        checked: Any = parse("select", given, {})["select"]
        signals, note = signals_of(
            log,
            vectors(log, embeddings, id) if embeddings else vectors_of(log, diversity),
            vectors(log, gradients, id) if gradients else None,
            checked.mu if "mu" in given else Score().mu,
        )
        if "gradients" in chosen.needs:
            given.pop("mu", None)  # it is in their learnability
        count = len(log) if chosen.takes_all else budget
        rows = ordered(
            _picked(chosen, signals, count, seed, {name: getattr(checked, name) for name in given}),
            signals,
            order,
            group_size,
            seed,
        )
        others = _picked(other, signals, count, seed, {}) if other else None
        _write(log, rows, signals, out, id, group_size)
        if others is not None:
            _write(log, others, signals, control_file(out), id, group_size)
        said = read(log, note)
        beside = (control, others, control_file(out)) if control and others is not None else None
        if report is not None:
            _write_report(report, log, signals, said, method, rows, beside)
        sys.stdout.write(screen(said, signals, rows, method, out, beside))
        if report is not None:
            sys.stdout.write(f"{report}: the same as a page to look at and search\n")


def control_file(out: Path) -> Path:
    """Where the control goes: beside the picks."""
    return out.with_name(f"{out.stem}.control{out.suffix}")


def _require(method: registry.Method, have: set[str]) -> None:
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
    from minirec.model.sentence_encoder import encode, spoken  # loads torch

    return encode(Path(diversity), [spoken(text) for text in log.texts()])


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


def _write_report(
    path: Path,
    log: RolloutLog,
    signals: Signals,
    said: list[str],
    method: str,
    rows: np.ndarray,
    control: tuple[str, np.ndarray, Path] | None,
) -> None:
    from minirec.report import pick_page  # takes a second to import

    first = rows[: pick_page.SHOWN]
    texts, rewards = log.texts(first), log.rewards.take(pa.array(first)).to_pylist()
    other = control[:2] if control else None
    page = pick_page.html(said, signals, method, rows, texts, rewards, other)
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8")
