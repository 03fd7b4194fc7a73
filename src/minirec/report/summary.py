"""The texts that the terminal shows at the end, about the main experiment and about the comparison."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from minirec.evaluation.significance import Interval, PairedTest
from minirec.experiment.job_logs import by_rule

WIDTH = 100  # columns of the summary


def summary_text(summary: Mapping[str, Any], results: Path, pictures: Sequence[Path]) -> str:
    """The main experiment's metrics.json as text: metrics, effect of RL, recommended items, costs and files."""
    main = summary["main"]
    lines = [
        "",
        f"{results}: {main['method']} kept {summary['selected']} of {summary['samples']['train']} training samples;",
        f"  {summary['samples']['test']} test samples, {summary['catalogue']} items, seeds {main['seeds']}; "
        f"{summary['forced_share']:.0%} of completions in training lacked the marker",
        "",
        *_metrics_table(summary),
        "",
    ]
    lines += [covered(main["seeds"], main["signals"]), ""]
    lines += [_effect(what, test) for what, test in effects(summary).items()]
    lines += [*_recommended(summary["breakdown"]), ""]
    lines.append(_wrap("seconds by rule", (f"{s} {v:.0f}" for s, v in by_rule(summary["cost"]).items())))
    lines.append(_wrap("files", [f"{results}/metrics.json", f"{results}/runs/…/ranks.parquet"]))
    if pictures:
        lines.append(_wrap("pictures", map(str, pictures)))
    return "\n".join([*lines, "  look into any file with: minirec show FILE", "", ""])


def _metrics_table(summary: Mapping[str, Any]) -> list[str]:
    """A line for the policy before and after RL and for each baseline; last column: NDCG@10 after RL minus its."""
    tests = {"before RL": summary["improvement"], **summary["paired_tests"]}
    rows = {
        "before RL": summary["before"],
        "after RL": summary["metrics"],
        "after RL, no reasoning": summary["metrics_without_reasoning"],
        **summary["baselines"],
    }
    if "control" in summary:
        name = f"after RL, {summary['main']['control']} picks"
        rows[name], tests[name] = summary["control"]["metrics"], summary["control"]["difference"]
    lines = [f"  {'':<24}{'NDCG@10':<26}{'HR@10':<26}after minus this (p)"]
    for name, metrics in rows.items():
        ndcg, hr = (_interval(metrics[metric]) for metric in ("ndcg@10", "hr@10"))
        gain = f"{tests[name]['mean']:+.4f} (p = {tests[name]['p_holm']:.3g})" if name in tests else ""
        lines.append(f"  {name.replace('_', ' '):<24}{ndcg:<26}{hr:<26}{gain}".rstrip())
    return lines


def _interval(value: Interval) -> str:
    return f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def effects(summary: Mapping[str, Any]) -> dict[str, PairedTest]:
    """The differences of NDCG@10 that the experiment asks for: from its control, if it has one, and from before RL."""
    main, control = summary["main"], summary.get("control")
    tests = {f"{main['method']} minus {main['control']}": control["difference"]} if control else {}
    return tests | {"after RL minus before": summary["improvement"]}


def _effect(what: str, test: PairedTest) -> str:
    """A difference of NDCG@10, and whether it is significant."""
    verdict = "significant" if test["significant"] else "not significant"
    change = f"{test['mean']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}]"
    return f"  NDCG@10 {what}: {change}, p = {test['p_holm']:.3g} by Holm: {verdict}"


def _recommended(breakdown: Mapping[str, Any]) -> list[str]:
    """Coverage and popularity of the recommended items before and after RL."""
    before, after = (breakdown[when]["recommended"] for when in ("before", "after"))
    return [
        f"  top 10 before -> after: {before['coverage@10']:.0%} -> {after['coverage@10']:.0%} of the catalogue;",
        f"    an item has {before['popularity@10']:.1f} -> {after['popularity@10']:.1f} training interactions"
        f" (targets {after['popularity_of_targets']:.1f})",
    ]


def covered(seeds: Sequence[int], signals: str) -> str:
    """One sentence on what intervals and tests cover."""
    if len(seeds) == 1:
        return "  Intervals and tests (p by Holm) cover test users; with one seed, not the difference between seeds."
    shared = "; one proxy for all seeds, so not its choice" if signals == "shared" else ""
    return f"  After RL is the mean over the seeds. Intervals and tests (p by Holm) cover users and seeds{shared}."


def _wrap(label: str, items: Iterable[str]) -> str:
    """A label and a list, on lines of at most WIDTH columns that break between the items."""
    unbroken = ", ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in items)
    lines = textwrap.fill(
        f"{label}: {unbroken}",
        WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines.replace("\N{NO-BREAK SPACE}", " ")


def comparison_text(configurations: pd.DataFrame, tests: Mapping[str, Any], metric: str, table: Path) -> str:
    """A metric of every configuration, how far it is from random samples and from all, and the main one from it.

    configurations: from `comparison.over_seeds`. tests: from `comparison.tests_of`.
    """
    labels = [f"{row.model}/{row.selector}/{row.method}-{row.budget}" for row in configurations.itertuples()]
    width = max(len("run"), *map(len, labels))
    lines = [
        "",
        f"{table}: {metric.upper()} by run, mean and standard deviation over the seeds",
        "",
        f"  {'run':<{width}}{'seeds':>7}  {metric:<18}{'train s':>8}{'all s':>8}"
        f"{'minus random (p)':>20}{'minus full (p)':>20}{'main minus this (p)':>21}",
    ]
    for label, row in zip(labels, configurations.to_dict("records"), strict=True):
        quality = f"{row['mean']:.4f}" + ("" if pd.isna(row["std"]) else f" ± {row['std']:.4f}")
        random, full, main = (
            f"{test['mean']:+.4f} ({test['p_holm']:.2g})" if (test := tests[name].get(label)) else ""
            for name in ("minus_random", "minus_full", "paired_tests")
        )
        total = "unknown" if pd.isna(row["total_seconds"]) else f"{row['total_seconds']:.0f}"
        lines.append(
            f"  {label:<{width}}{row['seeds']:>7}  {quality:<18}{row['seconds']:>8.0f}{total:>8}"
            f"{random:>20}{full:>20}{main:>21}".rstrip()
        )
    shared = "; one proxy for all seeds, so not its choice" if tests["signals"] == "shared" else ""
    lines += [
        "",
        f"  main: {tests['main']}. random: as many random samples. full: all samples.",
        f"  Tests cover test users and, from two seeds on, seeds{shared}. p by Holm; intervals are in the JSON file.",
        "  All seconds: training and selection.",
    ]
    return "\n".join([*lines, "", ""])
