"""The main experiment in numbers: metrics over its seeds, baselines, control and costs (METHOD 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from minirec.evaluation import significance
from minirec.evaluation.breakdown import EvaluationSet, mean_breakdown
from minirec.evaluation.rank_tables import read_baselines, read_ranks
from minirec.experiment.job_logs import costs
from minirec.experiment.paths import Run, logs
from minirec.experiment.sections import Measure
from minirec.storage import artefact, tables


def summarise(
    top: Path,
    runs: Sequence[Run],
    folders: list[str],
    selection: pa.Table,
    signals: pa.Table | None,
    shared_signals: bool,
    settings: Measure,
) -> dict[str, Any]:
    """What metrics.json of a data set holds, except its provenance; top: results of the data set.

    runs: of several seeds, then those of the control, if there is one. folders: whose jobs are the cost. selection,
    signals: of the first run; None if its method reads no signals. shared_signals: one proxy made those of all seeds.
    """
    seeds = [run for run in runs if run.configuration == runs[0].configuration]
    control = runs[len(seeds) :]
    histories = [tables.read("history", run.folder(top) / "history.parquet") for run in seeds]
    summary = {
        "main": {
            **seeds[0].shared,
            "seeds": [run.seed for run in seeds],
            "signals": "shared" if shared_signals else "own",
            "control": control[0].method if control else None,
        },
        **_counts(top),
        "selected": selection.num_rows,
        "forced_share": float(np.mean([tables.numpy(table, "forced_share").mean() for table in histories])),
        **_metrics(top, seeds, control, settings),
        "cost": costs(top, logs(top, folders)),
        "prepare": artefact.read_json(top / "prepare.json"),
    }
    if signals is not None:
        summary["zero_hit_share"] = float((tables.numpy(signals, "hits") == 0).mean())
    return summary


def _counts(top: Path) -> dict[str, Any]:
    """Number of samples by split, and of items."""
    splits = tables.read("samples", top / "samples.parquet", ["split"])["split"].value_counts().to_pylist()
    return {
        "samples": {split["values"]: split["counts"] for split in splits},
        "catalogue": tables.read("catalogue", top / "catalogue.parquet", ["row"]).num_rows,
    }


def _metrics(top: Path, seeds: Sequence[Run], control: Sequence[Run], settings: Measure) -> dict[str, Any]:
    """Metrics and paired tests averaged over the seeds, the breakdowns, and the metrics of each seed."""
    test = EvaluationSet.load(top / "samples.parquet", top / "catalogue.parquet")
    base = top / "base" / seeds[0].model
    ranks, of_control = (
        [read_ranks(run.folder(top) / "ranks.parquet", test.sample_id) for run in some] for some in (seeds, control)
    )
    baselines = read_baselines(top / "baselines.parquet", test.sample_id)
    measured = [artefact.read_json(run.folder(top) / "metrics.json") for run in seeds]
    before = read_ranks(base / "ranks.parquet", test.sample_id)
    return {
        **significance.measure(ranks, before, baselines, test.user, settings, of_control),
        "breakdown": {
            "before": artefact.read_json(base / "metrics.json")["breakdown"],
            "after": mean_breakdown([seed["breakdown"] for seed in measured]),
            **{name: test.breakdown(baseline) for name, baseline in baselines.items()},
        },
        "runs": {
            f"seed{run.seed}": {name: of_seed[name] for name in ("metrics", "metrics_without_reasoning")}
            for run, of_seed in zip(seeds, measured, strict=True)
        },
    }
