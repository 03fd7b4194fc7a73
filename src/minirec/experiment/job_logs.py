"""Time and memory of jobs, read from the JSON lines that begin and end their logs; nothing else records them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RULES = (  # in the order in which they run
    *("prepare", "baselines", "embed_base", "evaluate_base", "measure_base"),
    *("train_proxy", "embed_proxy", "rollout", "gather", "crossfit", "gradient", "score", "influence"),
    *("select", "curriculum", "train", "evaluate", "measure", "summarise", "compare"),
)


def events(log: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(start, end) of a job: the JSON lines that begin and end its log; None where a line is missing."""
    start = end = None
    if log.is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith('{"event": '):
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                start, end = (event, None) if event["event"] == "start" else (start, event)
    return start, end


def cost(log: Path) -> dict[str, float] | None:
    """Seconds, CPU seconds and peak memory (MiB) of a job that has succeeded; None for any other job."""
    _, end = events(log)
    if end is None or end["reason"] != "done":
        return None
    return {"seconds": end["seconds"], "cpu_seconds": end["cpu_seconds"], "max_rss_mib": end["peak_mib"]}


def costs(top: Path, logs: Iterable[Path]) -> dict[str, dict[str, float]]:
    """`cost` of every job that has succeeded, by its log's path below the data set's results, in the order of RULES."""
    ordered = sorted(logs, key=lambda log: (RULES.index(log.stem) if log.stem in RULES else len(RULES), log))
    return {str(log.relative_to(top)): spent for log in ordered if (spent := cost(log)) is not None}


def by_rule(cost: dict[str, dict[str, float]], what: str = "seconds") -> dict[str, float]:
    """One of the costs, e.g. seconds, summed over the jobs of each rule."""
    total: dict[str, float] = {}
    for log, spent in cost.items():
        total[Path(log).stem] = total.get(Path(log).stem, 0.0) + spent[what]
    return total
