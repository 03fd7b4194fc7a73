"""compare: every run of the configuration's grid in one table, one picture and a text for the terminal (METHOD 5)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa

from minirec.evaluation import comparison
from minirec.evaluation.metrics import K
from minirec.experiment import config
from minirec.progress import log
from minirec.report import figures
from minirec.report.summary import comparison_text
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance, atomic_write


def run(*, measure: config.Measure, results: Path, run: list[str], out: Path) -> None:
    """Write comparison.parquet, .json, .txt and figures/comparison.* of runs, those of the main experiment first."""
    metric = f"ndcg@{K}"
    rows = [row for name in run for row in comparison.run_rows(results / "runs", name)]
    configurations = comparison.over_seeds(pd.DataFrame(rows), metric)
    tests = comparison.main_against_others(results / "runs", run, measure)
    files = [f"{name}/{file}" for name in run for file in ("metrics.json", "ranks.parquet")]
    provenance = Provenance("compare", measure.model_dump(), {file: results / "runs" / file for file in files})
    tables.write("comparison", pa.Table.from_pylist(rows, tables.TABLES["comparison"].schema()), out, provenance)
    artefact.write_json(tests, results / "comparison.json", provenance)
    figures.save(results / "figures", "comparison", figures.quality_and_cost(configurations, metric))
    with atomic_write(results / "comparison.txt") as partial:
        partial.write_text(comparison_text(configurations, tests, metric, out), encoding="utf-8")
    log.info("wrote %s with %d runs", out, len(run))
