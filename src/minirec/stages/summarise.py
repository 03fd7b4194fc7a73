"""summarise: the main experiment in one metrics.json, a text for the terminal and pictures.

The experiment is what `main` of the configuration names. All numbers are measured, the cost of every stage among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minirec.evaluation import significance
from minirec.evaluation.breakdown import EvaluationSet, mean_breakdown
from minirec.evaluation.cost import job_costs
from minirec.evaluation.ranks import read_baselines, read_ranks
from minirec.experiment import config, rules
from minirec.progress import log
from minirec.report import figures
from minirec.report.summary import summary_text
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance, atomic_write


def run(*, measure: config.Measure, results: Path, main: str, run: list[str], job: list[str], out: Path) -> None:
    """Write metrics.json, summary.txt and figures/ of a data set's main experiment."""
    experiment = config.parse(config.Main, main, "--main")
    inputs = rules.summary_inputs(run, str(results.parent), results.name)
    files = {name: Path(file) for name, file in inputs.items() if isinstance(file, str)}
    seeds = {name: [Path(file) for file in paths] for name, paths in inputs.items() if isinstance(paths, list)}
    scores = tables.read("scores", files["scores"]) if "scores" in files else None
    selection = tables.read("selection", seeds["selection"][0])
    summary = {
        "main": experiment.model_dump(),
        **_counts(files),
        "selected": selection.num_rows,
        **_metrics(files, seeds, experiment, measure),
        "cost": job_costs(results.parent / "benchmarks" / results.name, job),
        "prepare": artefact.read_json(files["prepare"]),
    }
    if scores is not None:
        summary["zero_hit_share"] = float((tables.numpy(scores, "hits") == 0).mean())
    provenance = Provenance("summarise", measure.model_dump(), files | {p.parent.name: p for p in seeds["metrics"]})
    curriculum = tables.read("curriculum", seeds["curriculum"][0]).sort_by("position")
    pictures = figures.draw(results / "figures", scores, selection, curriculum)
    with atomic_write(results / "summary.txt") as partial:
        partial.write_text(summary_text(summary, results, pictures), encoding="utf-8")
    artefact.write_json(summary, out, provenance)
    log.info("wrote %s, %s and %d pictures", out, results / "summary.txt", len(pictures))


def _counts(files: Mapping[str, Path]) -> dict[str, Any]:
    """Number of samples by split, and of items."""
    splits = tables.read("samples", files["samples"], ["split"])["split"].value_counts().to_pylist()
    return {
        "samples": {split["values"]: split["counts"] for split in splits},
        "catalogue": tables.read("catalogue", files["catalogue"], ["row"]).num_rows,
    }


def _metrics(
    files: Mapping[str, Path], seeds: Mapping[str, list[Path]], experiment: config.Main, settings: config.Measure
) -> dict[str, Any]:
    """Metrics and paired tests of the mean over the seeds, the metrics of each seed, and the breakdowns."""
    test = EvaluationSet.load(files["samples"], files["catalogue"])
    ranks = [read_ranks(path, test.sample_id) for path in seeds["ranks"]]
    baselines = read_baselines(files["baselines"], test.sample_id)
    measured = [artefact.read_json(path) for path in seeds["metrics"]]
    return {
        **significance.measure(ranks, read_ranks(files["base_ranks"], test.sample_id), baselines, settings),
        "breakdown": {
            "before": artefact.read_json(files["base"])["breakdown"],
            "after": mean_breakdown([seed["breakdown"] for seed in measured]),
            **{name: test.breakdown(baseline) for name, baseline in baselines.items()},
        },
        "runs": {
            f"seed{seed}": {name: metrics[name] for name in ("metrics", "metrics_without_reasoning")}
            for seed, metrics in zip(experiment.seeds, measured, strict=True)
        },
    }
