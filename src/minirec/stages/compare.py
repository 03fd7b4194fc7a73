"""compare: every run of the configuration's grid in one table, one picture and a text for the terminal (METHOD 5).

Reads metrics, ranks and histories of the runs. A cell of the grid is a model, a selector, a method and a budget; its
seeds are its runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from minirec.evaluation import comparison
from minirec.experiment import config
from minirec.progress import log
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance
from minirec.storage.files import atomic_write

CELL = ["model", "selector", "method", "budget"]


def rows(folder: Path, run: str) -> list[dict[str, Any]]:
    """The metrics of a run, one row a metric; `run` is model/selector/method-budget/seedN below `folder`."""
    model, selector, trained_on, seed = run.split("/")
    method, budget = trained_on.rsplit("-", 1)
    metrics = artefact.read_json(folder / run / "metrics.json")["metrics"]
    seconds = float(tables.numpy(tables.read("history", folder / run / "history.parquet"), "seconds").sum())
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


def against_first(folder: Path, run: Sequence[str], settings: config.Evaluate) -> dict[str, Any]:
    """What the cell of the first run, the main experiment, gains over every other: NDCG@10, interval and paired test.

    Averaged over the seeds of each cell, sample by sample; raises InputError where runs have other test samples.
    """
    sample_id = tables.numpy(tables.read("ranks", folder / run[0] / "ranks.parquet"), "sample_id")
    ranks: dict[str, list[np.ndarray]] = {}
    for name in run:
        found = comparison.policy(folder / name / "ranks.parquet", sample_id)
        ranks.setdefault(name.rsplit("/", 1)[0], []).append(found)
    cells = {cell: np.stack(several) for cell, several in ranks.items()}
    main = next(iter(cells))
    own = cells.pop(main)
    return {"main": main, "against": comparison.each(cells, own, settings)}


def text(cells: pd.DataFrame, gains: dict[str, Any], metric: str, out: Path) -> str:
    """What the terminal shows at the end."""
    lines = ["", f"{out}: {metric.upper()} by run, mean and standard deviation over the seeds", ""]
    lines.append(
        f"  {'model':<12}{'selector':<12}{'method':<20}{'budget':>8}{'seeds':>7}  {metric:<20}{'train s':>9}"
        f"  {gains['main']} minus this"
    )
    for cell in cells.to_dict("records"):
        quality = f"{cell['mean']:.4f}" + ("" if pd.isna(cell["std"]) else f" ± {cell['std']:.4f}")
        gain = gains["against"].get(f"{cell['model']}/{cell['selector']}/{cell['method']}-{cell['budget']}")
        lines.append(
            f"  {cell['model']:<12}{cell['selector']:<12}{cell['method']:<20}{cell['budget']:>8}{cell['seeds']:>7}  "
            f"{quality:<20}{cell['seconds']:>9.0f}"
            + (f"  {gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}], p = {gain['p']:.3g}" if gain else "")
        )
    lines += ["", "  Intervals and paired permutation tests are over the test samples."]
    return "\n".join([*lines, "", ""])


def run(*, evaluate: config.Evaluate, results: Path, run: list[str], out: Path) -> None:
    """Write comparison.parquet, .json, .txt and figures/comparison.* of runs, those of the main experiment first."""
    records = [row for name in run for row in rows(results / "runs", name)]
    metric = "ndcg@10"
    cells = over_seeds(pd.DataFrame(records), metric)
    gains = against_first(results / "runs", run, evaluate)
    files = [f"{name}/{file}" for name in run for file in ("metrics.json", "ranks.parquet")]
    made = Provenance("compare", evaluate.model_dump(), {file: results / "runs" / file for file in files})
    table = pa.Table.from_pylist(records, tables.TABLES["comparison"].schema())
    tables.write("comparison", table, out, made)
    artefact.write_json(gains, results / "comparison.json", made)
    from minirec.report import figures

    figures.save(results / "figures", "comparison", figures.quality_and_cost(cells, metric))
    with atomic_write(results / "comparison.txt") as partial:
        partial.write_text(text(cells, gains, metric, out), encoding="utf-8")
    log.info("wrote %s with %d runs", out, len(run))
