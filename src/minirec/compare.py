"""compare: every run of the configuration's grid in one table, one picture and a text for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from minirec import artefact, config, schemas
from minirec.artefact import Made, replacing
from minirec.progress import log

CELL = ["model", "selector", "method", "budget"]


def rows(folder: Path, run: str) -> list[dict[str, Any]]:
    """The metrics of a run, one row a metric; `run` is model/selector/method-budget/seedN below `folder`."""
    model, selector, trained_on, seed = run.split("/")
    method, budget = trained_on.rsplit("-", 1)
    metrics = artefact.read_json(folder / run / "metrics.json")["metrics"]
    seconds = float(schemas.numpy(schemas.read("history", folder / run / "history.parquet"), "seconds").sum())
    place = {
        "model": model,
        "selector": selector,
        "method": method,
        "budget": budget,
        "seed": int(seed.removeprefix("seed")),
    }
    return [
        place | {"metric": name, "value": v["mean"], "low": v["low"], "high": v["high"], "train_seconds": seconds}
        for name, v in metrics.items()
    ]


def over_seeds(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a cell of the grid: mean and standard deviation over the seeds of a metric, mean seconds of training."""
    chosen = table[table["metric"] == metric]
    return (
        chosen.groupby(CELL, sort=False)
        .agg(seeds=("seed", "size"), mean=("value", "mean"), std=("value", "std"), seconds=("train_seconds", "mean"))
        .reset_index()
    )


def text(cells: pd.DataFrame, metric: str, out: Path) -> str:
    """What the terminal shows at the end."""
    lines = ["", f"{out}: {metric.upper()} by run, mean and standard deviation over the seeds", ""]
    lines.append(f"  {'model':<12}{'selector':<12}{'method':<20}{'budget':>8}{'seeds':>7}  {metric:<20}{'train s':>9}")
    for cell in cells.to_dict("records"):
        quality = f"{cell['mean']:.4f}" + ("" if pd.isna(cell["std"]) else f" ± {cell['std']:.4f}")
        lines.append(
            f"  {cell['model']:<12}{cell['selector']:<12}{cell['method']:<20}{cell['budget']:>8}{cell['seeds']:>7}  "
            f"{quality:<20}{cell['seconds']:>9.0f}"
        )
    return "\n".join([*lines, "", ""])


def run(*, evaluate: config.Evaluate, results: Path, run: list[str], out: Path) -> None:
    """Write comparison.parquet, comparison.txt and figures/comparison.* of a data set."""
    records = [row for name in run for row in rows(results / "runs", name)]
    metric = "ndcg@10"
    cells = over_seeds(pd.DataFrame(records), metric)
    inputs = {name: results / "runs" / name / "metrics.json" for name in run}
    table = pa.Table.from_pylist(records, schemas.TABLES["comparison"].schema())
    schemas.write("comparison", table, out, Made("compare", evaluate.model_dump(), inputs))
    from minirec import figures

    figures.save(results / "figures", "comparison", figures.quality_and_cost(cells, metric))
    with replacing(results / "comparison.txt") as partial:
        partial.write_text(text(cells, metric, out), encoding="utf-8")
    log.info("wrote %s with %d runs", out, len(run))
