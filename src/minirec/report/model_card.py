"""The model card of an exported recommender: data, method, metrics, limits, and a recipe without minirec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minirec.experiment.paths import Run
from minirec.report.html import TEMPLATES, filled

RECIPE = "model_recipe.py.txt"
SHOWN = ("ndcg@10", "hr@10")


def card(dataset: str, run: Run, metrics: Mapping[str, Any], items: int, dtype: str, source: Mapping[str, Any]) -> str:
    """Markdown about the model of a run.

    metrics: its metrics.json. items: number of items in the catalogue. dtype: of the merged weights. source: of the
    base model, as its record has it; empty if it has none.
    """
    names = [name for name in SHOWN if name in metrics["metrics"]]
    rows = [("after RL", metrics["metrics"]), ("before RL", metrics["before"])]
    rows += sorted(metrics["baselines"].items())
    return filled(
        "model_card.md.j2",
        escape=False,
        name=f"{dataset}, {run.method} {run.budget}, {run.model}",
        dataset=dataset,
        run=run,
        metrics=metrics,
        names=[name.replace("ndcg", "NDCG").replace("hr", "HR") for name in names],
        rows=[(label.replace("_", " "), [_interval(metrics[name]) for name in names]) for label, metrics in rows],
        items=f"{items:,}",
        dtype=dtype,
        hub=source if source.get("source") == "hub" else None,
        recipe=(TEMPLATES / RECIPE).read_text(encoding="utf-8"),
    )


def _interval(metric: Mapping[str, float]) -> str:
    return f"{metric['mean']:.4f} [{metric['low']:.4f}, {metric['high']:.4f}]"
