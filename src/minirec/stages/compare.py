"""compare: put all runs of the grid into one table, a picture and a text for the terminal (METHOD 5)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa

from minirec.evaluation.comparison import over_seeds, ranks_of, run_rows, tests_of, with_intervals
from minirec.evaluation.metrics import K
from minirec.experiment.paths import Run
from minirec.experiment.sections import Measure
from minirec.progress import log
from minirec.report.summary import comparison_text
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output, atomic_write


def run(
    *,
    measure: Measure,
    runs: list[str],
    samples: Path,
    selection_logs: list[str],
    shared_signals: bool = False,
    comparison: Output,
    tests: Output,
    text: Output,
) -> None:
    """Write the comparison of `runs`, paths as `Run.parse` reads them, those of the main experiment first.

    selection_logs: of the jobs that a selection takes, as SELECTOR/METHOD:PATTERN:PATTERN… with {seed} and {budget}.
    shared_signals: one proxy made the signals of all seeds, so that the choice of the proxy is not covered.
    """
    from minirec.report import figures  # takes longer to import than all the rest

    top, metric, compared = comparison.parent, f"ndcg@{K}", [Run.parse(name) for name in runs]
    patterns = {name: globs for name, *globs in (entry.split(":") for entry in selection_logs)}
    rows = [row for one in compared for row in run_rows(top, one, patterns[f"{one.selector}/{one.method}"])]
    configurations = over_seeds(pd.DataFrame(rows), metric)
    ranks, users = ranks_of(top, compared, samples)
    paired_tests = tests_of(compared, ranks, users, measure)
    paired_tests["signals"] = "shared" if shared_signals else "own"
    inputs = {f"{one}/{file}": one.folder(top) / file for one in compared for file in ("metrics.json", "ranks.parquet")}
    provenance = Provenance("compare", measure.model_dump(), inputs)
    schema = tables.TABLES["comparison"].schema()
    tables.write("comparison", pa.Table.from_pylist(rows, schema), comparison, provenance)
    artefact.write_json(paired_tests, tests, provenance)
    drawn = figures.quality_and_cost(with_intervals(configurations, ranks, users, measure), metric)
    figures.save(top / "figures", "comparison", drawn)
    with atomic_write(text) as partial:
        partial.write_text(comparison_text(configurations, paired_tests, metric, comparison), encoding="utf-8")
    log.info("wrote %s with %d runs", comparison, len(runs))
