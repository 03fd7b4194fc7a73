"""The model card of an exported recommender: data, method, metrics, limits, and a recipe without minirec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minirec import __version__
from minirec.report.html import TEMPLATES

RECIPE = "model_recipe.py.txt"
SHOWN = ("ndcg@10", "hr@10")


def card(run: Path, settings: Mapping[str, Any], metrics: Mapping[str, Any], base: str, items: int) -> str:
    """Markdown. run: .../DATASET/runs/MODEL/SELECTOR/METHOD-BUDGET/seedN; metrics: its metrics.json."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    method, _, budget = run.parent.name.rpartition("-")
    names = [name for name in SHOWN if name in metrics["metrics"]]
    rows = [("after RL", metrics["metrics"]), ("before RL", metrics["before"])]
    rows += sorted(metrics["baselines"].items())
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("model_card.md.j2").render(
        name=f"{run.parents[4].name}, {method} {budget}, {base}",
        dataset=run.parents[4].name,
        base=base,
        version=__version__,
        samples=budget,
        method=method,
        seed=settings["seed"],
        metrics=metrics,
        names=[name.replace("ndcg", "NDCG").replace("hr", "HR") for name in names],
        rows=[(label.replace("_", " "), [_interval(found[name]) for name in names]) for label, found in rows],
        items=f"{items:,}",
        recipe=(TEMPLATES / RECIPE).read_text(encoding="utf-8"),
    )


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
