"""summarise: the main experiment in one metrics.json, a text for the terminal and pictures.

What it reads is what the configuration's `main` names; what it says is measured, with the cost of every stage.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minirec.evaluation import comparison, metrics
from minirec.experiment import config, rules
from minirec.progress import log
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance
from minirec.storage.files import atomic_write


def costs(benchmarks: Path, jobs: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds and peak memory (MiB) of those of the jobs that have run, from their benchmark files under a folder."""
    found = {}
    for job in jobs:
        if not (file := benchmarks / f"{job}.tsv").is_file():
            continue
        with file.open(encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["s"] not in ("", "NA")]
        if rows:
            memory = [float(row["max_rss"]) for row in rows if row["max_rss"] not in ("", "-", "NA")]
            found[job] = {
                "seconds": float(rows[-1]["s"]),
                "max_rss_mib": max(memory, default=0.0),
            }
    return found


def mean_of(runs: Sequence[Any]) -> Any:
    """Numbers of the same place in every run's nest of dictionaries, averaged where they differ."""
    if isinstance(runs[0], dict):
        return {key: mean_of([run[key] for run in runs]) for key in runs[0]}
    return runs[0] if all(run == runs[0] for run in runs) else float(np.mean(runs))


def by_stage(cost: dict[str, dict[str, float]]) -> dict[str, float]:
    """Seconds of all jobs of a stage."""
    total: dict[str, float] = {}
    for job, spent in cost.items():
        stage = job.split("/")[0]
        total[stage] = total.get(stage, 0.0) + spent["seconds"]
    return total


def text(summary: dict[str, Any], top: Path, pictures: Sequence[Path]) -> str:
    """What the terminal shows at the end."""
    main, change = summary["main"], summary["improvement"]
    lines = [
        "",
        f"{top}: {main['method']} kept {summary['selected']} of {summary['samples']['train']} training samples; "
        f"{summary['samples']['test']} test samples, {summary['catalogue']} items, seeds {main['seeds']}",
        "",
        f"  {'':<28}{'NDCG@10':<26}HR@10",
    ]
    rows = [
        ("before RL", summary["before"]),
        ("after RL", summary["metrics"]),
        ("after RL, no reasoning", summary["metrics_without_reasoning"]),
        *[(name.replace("_", " "), values) for name, values in summary["references"].items()],
    ]
    for name, values in rows:
        cells = [f"{v['mean']:.4f} [{v['low']:.4f}, {v['high']:.4f}]" for v in (values["ndcg@10"], values["hr@10"])]
        lines.append(f"  {name:<28}{cells[0]:<26}{cells[1]}")
    if len(main["seeds"]) > 1:
        lines += ["", "  after RL: mean over the seeds; intervals and tests are over the test samples"]
    lists = {when: summary["breakdown"][when]["recommended"] for when in ("before", "after")}
    verdict = "significant" if change["significant"] else "not significant"
    lines += [
        "",
        f"  RL changes NDCG@10 by {change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}], "
        f"paired permutation test p = {change['p']:.3g}: {verdict}",
        "  after RL against "
        + ", ".join(
            f"{name.replace('_', ' ')} {found['mean']:+.4f} (p = {found['p']:.3g})"
            for name, found in summary["against"].items()
        ),
        "  top 10 before -> after: "
        + " -> ".join(f"{values['coverage@10']:.0%}" for values in lists.values())
        + " of the catalogue, an item has "
        + " -> ".join(f"{values['popularity@10']:.1f}" for values in lists.values())
        + f" training interactions (targets {lists['after']['popularity_of_targets']:.1f})",
        "",
        "  seconds by stage: "
        + ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in by_stage(summary["cost"]).items()),
        f"  files: {top}/metrics.json, {top}/runs/…/ranks.parquet; look into any with: minirec show FILE",
    ]
    if pictures:
        lines.append(f"  pictures: {', '.join(str(path) for path in pictures)}")
    return "\n".join([*lines, "", ""])


def run(*, evaluate: config.Evaluate, results: Path, main: str, run: list[str], job: list[str], out: Path) -> None:
    """Write metrics.json, summary.txt and figures/ of a data set's main experiment."""
    given = config.parse(config.Main, main, "--main")
    files = rules.summary_inputs(run, str(results.parent), results.name)
    several = {name: [Path(f) for f in value] for name, value in files.items() if isinstance(value, list)}
    one = {name: Path(value) for name, value in files.items() if isinstance(value, str)}
    runs = [artefact.read_json(path) for path in several["metrics"]]
    base = artefact.read_json(one["base"])
    references = artefact.read_json(one["references"])
    scores = tables.read("scores", one["scores"]) if "scores" in one else None
    selection = tables.read("selection", several["selection"][0])
    split = tables.read("samples", one["samples"], ["split"])["split"].value_counts().to_pylist()
    sample_id = tables.numpy(tables.read("ranks", several["ranks"][0]), "sample_id")
    after, without = (
        np.stack([comparison.policy(path, sample_id, column) for path in several["ranks"]])
        for column in ("rank", "rank_without_reasoning")
    )
    summary: dict[str, Any] = {
        "main": given.model_dump(),
        "samples": {entry["values"]: entry["counts"] for entry in split},
        "catalogue": tables.read("catalogue", one["catalogue"], ["row"]).num_rows,
        "selected": selection.num_rows,
        "metrics": metrics.summary(after, evaluate),
        "metrics_without_reasoning": metrics.summary(without, evaluate),
        "before": base["metrics"],
        "before_without_reasoning": base["metrics_without_reasoning"],
        "improvement": comparison.improvement(comparison.policy(one["base_ranks"], sample_id), after, evaluate),
        "references": references["references"],
        "against": comparison.each(comparison.references(one["reference_ranks"], sample_id), after, evaluate),
        "breakdown": {
            "before": base["breakdown"],
            "after": mean_of([found["breakdown"] for found in runs]),
            **references["breakdown"],
        },
        "runs": {
            f"seed{seed}": {name: found[name] for name in ("metrics", "metrics_without_reasoning")}
            for seed, found in zip(given.seeds, runs, strict=True)
        },
        "cost": costs(results.parent / "benchmarks" / results.name, job),
        "prepare": artefact.read_json(one["prepare"]),
    }
    if scores is not None:
        summary["zero_hit_share"] = float((tables.numpy(scores, "hits") == 0).mean())
    made = Provenance("summarise", evaluate.model_dump(), one | {p.parent.name: p for p in several["metrics"]})
    from minirec.report import figures

    curriculum = tables.read("curriculum", several["curriculum"][0]).sort_by("position")
    pictures = figures.draw(results / "figures", scores, selection, curriculum)
    with atomic_write(results / "summary.txt") as partial:
        partial.write_text(text(summary, results, pictures), encoding="utf-8")
    artefact.write_json(summary, out, made)
    log.info("wrote %s, %s and %d pictures", out, results / "summary.txt", len(pictures))
