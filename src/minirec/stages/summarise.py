"""summarise: put the main experiment into one metrics.json, a text for the terminal and pictures.

The costs come from the logs of the jobs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from minirec.data.stored_signals import rewards
from minirec.evaluation import significance
from minirec.evaluation.breakdown import EvaluationSet, mean_breakdown
from minirec.evaluation.rank_tables import read_baselines, read_ranks
from minirec.experiment.job_logs import costs
from minirec.experiment.paths import Run, logs
from minirec.experiment.sections import Measure
from minirec.progress import log
from minirec.report.summary import summary_text
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output, atomic_write


def run(
    *,
    measure: Measure,
    runs: list[str],
    folders: list[str],
    shared_signals: bool = False,
    scores: Path | None = None,
    rollouts: Path | None = None,
    metrics: Output,
    summary: Output,
) -> None:
    """Write metrics.json, summary.txt and figures/.

    scores, rollouts: the signals of the first run, if its method reads any; scores have those of rollouts and more.
    runs: of several seeds, then those of the control, if there is one. folders: whose jobs are the cost.
    shared_signals: one proxy made the signals of all seeds, so that the choice of the proxy is not covered.
    """
    from minirec.report import figures  # takes longer to import than all the rest

    top, every = metrics.parent, [Run.parse(name) for name in runs]
    seeds = [one for one in every if one.configuration == every[0].configuration]
    control = every[len(seeds) :]
    signals = tables.read("scores", scores) if scores else rewards(rollouts) if rollouts else None
    selection = tables.read("selection", seeds[0].selection(top) / "selection.parquet")
    forced = [
        tables.numpy(tables.read("history", one.folder(top) / "history.parquet"), "forced_share") for one in seeds
    ]
    gathered = {
        "main": {
            **seeds[0].shared,
            "seeds": [one.seed for one in seeds],
            "signals": "shared" if shared_signals else "own",
            "control": control[0].method if control else None,
        },
        **_counts(top),
        "selected": selection.num_rows,
        "forced_share": float(np.mean([share.mean() for share in forced])),
        **_metrics(top, seeds, control, measure),
        "cost": costs(top, logs(top, folders)),
        "prepare": artefact.read_json(top / "prepare.json"),
    }
    if signals is not None:
        gathered["zero_hit_share"] = float((tables.numpy(signals, "hits") == 0).mean())
    curriculum = tables.read("curriculum", seeds[0].selection(top) / "curriculum.parquet").sort_by("position")
    histories = figures.histories_of(top, every)
    pictures = figures.draw(top / "figures", gathered, histories, signals, selection, curriculum)
    with atomic_write(summary) as partial:
        partial.write_text(summary_text(gathered, top, pictures), encoding="utf-8")
    inputs = {str(one): one.folder(top) / "metrics.json" for one in every}
    artefact.write_json(gathered, metrics, Provenance("summarise", measure.model_dump(), inputs))
    log.info("wrote %s, %s and %d pictures", metrics, summary, len(pictures))


def _counts(top: Path) -> dict[str, Any]:
    """Number of samples by split, and of items."""
    splits = tables.read("samples", top / "samples.parquet", ["split"])["split"].value_counts().to_pylist()
    return {
        "samples": {split["values"]: split["counts"] for split in splits},
        "catalogue": tables.read("catalogue", top / "catalogue.parquet", ["row"]).num_rows,
    }


def _metrics(top: Path, seeds: list[Run], control: list[Run], settings: Measure) -> dict[str, Any]:
    """Metrics and paired tests averaged over the seeds, the breakdowns, and the metrics of each seed."""
    test = EvaluationSet.load(top / "samples.parquet", top / "catalogue.parquet")
    base = top / "base" / seeds[0].model
    ranks, of_control = (
        [read_ranks(one.folder(top) / "ranks.parquet", test.sample_id) for one in some] for some in (seeds, control)
    )
    baselines = read_baselines(top / "baselines.parquet", test.sample_id)
    measured = [artefact.read_json(one.folder(top) / "metrics.json") for one in seeds]
    before = read_ranks(base / "ranks.parquet", test.sample_id)
    return {
        **significance.measure(ranks, before, baselines, test.user, settings, of_control),
        "breakdown": {
            "before": artefact.read_json(base / "metrics.json")["breakdown"],
            "after": mean_breakdown([seed["breakdown"] for seed in measured]),
            **{name: test.breakdown(baseline) for name, baseline in baselines.items()},
        },
        "runs": {
            f"seed{one.seed}": {name: of_seed[name] for name in ("metrics", "metrics_without_reasoning")}
            for one, of_seed in zip(seeds, measured, strict=True)
        },
    }
