"""Time and memory of jobs, read from the JSON lines that begin and end their logs; nothing else records them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RULES = (  # in the order in which they run
    *("prepare", "baselines", "embed_base", "evaluate_base", "measure_base"),
    *("train_proxy", "embed_proxy", "rollout", "gather", "embed_users", "crossfit"),
    *("gradient", "score", "influence"),
    *("select", "curriculum", "train", "evaluate", "measure", "summarise", "compare"),
)
Event = dict[str, Any]


def attempts(log: Path) -> list[tuple[Event | None, Event | None]]:
    """(start, end) of each attempt at a job in its log: the JSON lines that begin and end it, None if missing."""
    found: list[tuple[Event | None, Event | None]] = []
    if log.is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith('{"event": '):
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if event["event"] == "start":
                    found.append((event, None))
                else:
                    found.append((found.pop()[0] if found else None, event))
    return found


def events(log: Path) -> tuple[Event | None, Event | None]:
    """(start, end) of the last attempt at a job."""
    return next(reversed(attempts(log)), (None, None))


def pieces(log: Path) -> list[Event | None]:
    """Last lines of the last attempt at a job and of those that it went on with, the last first; None: killed."""
    found = []
    for _, end in reversed(attempts(log)):
        found.append(end)
        if end is not None and not end.get("resumed"):
            break
    return found


def cost(log: Path) -> dict[str, float] | None:
    """Seconds, CPU seconds and peak memory (MiB) of a job that has succeeded; None for any other job.

    A job that went on where an earlier attempt had stopped has cost what both took. Nothing is known of an attempt that
    was killed without a last line.
    """
    _, end = events(log)
    if end is None or end["reason"] != "done":
        return None
    known = [piece for piece in pieces(log) if piece is not None]
    return {
        "seconds": sum(piece["seconds"] for piece in known),
        "cpu_seconds": sum(piece["cpu_seconds"] for piece in known),
        "max_rss_mib": max(piece["peak_mib"] for piece in known),
    }


def costs(top: Path, logs: Iterable[Path]) -> dict[str, dict[str, float]]:
    """`cost` of every job that has succeeded, by its log's path below the data set's results, in the order of RULES."""
    ordered = sorted(logs, key=lambda log: (RULES.index(log.stem) if log.stem in RULES else len(RULES), log))
    return {str(log.relative_to(top)): spent for log in ordered if (spent := cost(log)) is not None}


def costs_of(top: Path, patterns: Iterable[str]) -> dict[str, dict[str, float]] | None:
    """`costs` of the jobs whose logs fit patterns below the data set's results; None if one fits no finished job."""
    found = [[*top.glob(pattern)] for pattern in patterns]
    known = costs(top, {log for logs in found for log in logs})
    complete = all(any(str(log.relative_to(top)) in known for log in logs) for logs in found)
    return known if complete else None


def by_rule(cost: dict[str, dict[str, float]], what: str = "seconds") -> dict[str, float]:
    """One of the costs, e.g. seconds, summed over the jobs of each rule."""
    total: dict[str, float] = {}
    for log, spent in cost.items():
        total[Path(log).stem] = total.get(Path(log).stem, 0.0) + spent[what]
    return total
