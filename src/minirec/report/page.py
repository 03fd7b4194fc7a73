"""The report: one HTML page about the experiment on a data set, which needs no network and no script to be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from minirec.errors import InputError
from minirec.evaluation.comparison import over_seeds, ranks_of, run_rows, with_intervals
from minirec.evaluation.metrics import K
from minirec.experiment.config import Config
from minirec.experiment.job_logs import by_rule
from minirec.experiment.paths import Run, control_runs, main_runs, selection_logs
from minirec.experiment.sections import Measure
from minirec.report import figures, picks
from minirec.report.html import Chart, chart, render
from minirec.report.summary import covered
from minirec.storage import artefact, tables

NDCG = f"ndcg@{K}"
SHOWN = 300  # picks in the table, and as many other samples
EXAMPLES = 5  # picks shown with prompt and completions, and as many other samples
CURVES = "Reward of the policy's completions and item NLL of the targets (smoothed), and NDCG@10 on valid, by step"
QUALITY = "NDCG@10 on test against seconds of selection and training, by method; a number is a budget"
RESULT = "NDCG@10 on test of every recommender, and paired differences on the same samples, with intervals"
DRAWN = 2000  # most picks in a picture, besides those of the table, and most others, so that the page stays small


def html(config: Config, top: Path) -> str:
    """The page; top: results of the data set. Raises InputError if its experiment is not done, or is another."""
    metrics = top / "metrics.json"
    if not metrics.is_file():
        raise InputError(f"{metrics} is not there; run the workflow first, minirec status {top} says what is left")
    summary = artefact.read_json(metrics)
    runs, main = main_runs(config), summary["main"]
    made = "{model}/{selector}/{method}-{budget}".format(**main)
    if made != runs[0].configuration:
        raise InputError(
            f"{metrics} is of {made}, but the configuration's main experiment is {runs[0].configuration}; "
            "run the workflow again, or name its --configfile"
        )
    control = _finished_control(config, top, main["control"])
    method, signals = config.method(runs[0].method), picks.signals_of(config, runs[0], top)
    shown = picks.samples(config, top, runs[0], signals, SHOWN)
    return render(
        "page.html.j2",
        name=top.name,
        summary=summary,
        ndcg=summary["metrics"][NDCG],
        verdicts=list(verdicts(summary)),
        covered=covered(main["seeds"], main["signals"]).strip(),
        sentence=method.sentence,
        result=chart("result", figures.result(summary), RESULT),
        recommenders=figures.recommenders(summary),
        comparison=_grid(top, Measure(**summary["provenance"]["settings"]))
        or _against_control(config, top, summary, runs, control),
        rows=table_rows(shown),
        examples=list(_examples(config, top, shown)),
        has_rewards="rewards" in shown,
        has_signals="learnability" in shown,
        has_texts="texts" in shown and bool(shown["texts"].map(any).any()),
        has_diversity=bool(shown.loc[shown["position"] >= 0, "diversity"].notna().any()),
        has_value=bool(shown["value"].notna().any()),
        adds=method.name == "minirec",
        charts=list(_charts(top, runs[0], signals, shown)),
        curves=chart("learning", figures.learning(figures.histories_of(top, [*runs, *control])), CURVES),
        costs=chart(
            "cost", figures.seconds_by_rule(by_rule(summary["cost"])), "Seconds of each rule, all seeds together"
        ),
        stages=stages(summary["cost"]),
        without_hit=int(((shown["position"] >= 0) & (shown["hits"] == 0)).sum()) if "hits" in shown else None,
        config=yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
        libraries=summary["provenance"].get("libraries", {}),
        command=f"snakemake --cores 8 --configfile {top / 'config.yaml'} -- {metrics}",
    )


def verdicts(summary: dict[str, Any]) -> Iterator[str]:
    """What the experiment says, a sentence for each comparison that matters; most important first."""
    main = summary["main"]
    if "control" in summary:
        what = f"{main['method']} against as many samples picked by {main['control']}"
        yield _verdict(what, summary["control"]["difference"])
    yield _verdict("the trained policy against the same policy before RL", summary["improvement"])
    best = max(summary["baselines"], key=lambda name: summary["baselines"][name][NDCG]["mean"])
    name = best.replace("_", " ")
    yield _verdict(f"the trained policy against {name}, the best baseline", summary["paired_tests"][best])


def _verdict(what: str, test: dict[str, Any]) -> str:
    word = "no significant difference"
    if test["significant"]:
        word = "significantly better" if test["mean"] > 0 else "significantly worse"
    change = f"{test['mean']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}]"
    return f"{what[0].upper()}{what[1:]}: {word}, {change}, p = {test['p_holm']:.2g} by Holm."


def table_rows(shown: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the table of picks: numbers as text, missing signals empty."""
    rows = []
    for row in shown.to_dict("records"):
        number = {
            name: "" if pd.isna(row.get(name, np.nan)) else f"{row[name]:.3f}"
            for name in ("mean_reward", "learnability", "representativeness", "value", "diversity")
        }
        columns = (row.get(name, ()) for name in ("rewards", "ranks", "texts"))
        written = [(f"{reward:.3f}", rank, text) for reward, rank, text in zip(*columns, strict=True)]
        rows.append({str(name): value for name, value in row.items()} | number | {"completions": written})
    return rows


def stages(cost: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Jobs, seconds, CPU seconds and largest memory (MiB) by rule; cost: of metrics.json, by log."""
    table = pd.DataFrame([{"rule": Path(log).stem, **spent} for log, spent in cost.items()])
    if table.empty:
        return []
    kinds = {"seconds": "sum", "cpu_seconds": "sum", "max_rss_mib": "max"}
    rules = table.assign(jobs=1).groupby("rule", sort=False).agg({"jobs": "sum", **kinds})
    return [{str(name): value for name, value in row.items()} for row in rules.reset_index().to_dict("records")]


def _examples(config: Config, top: Path, shown: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Some picks and some other samples, with their prompts; the last of these picks has no hit, if any has."""
    picked, others = (shown[shown["position"] >= 0], shown[shown["position"] < 0].head(EXAMPLES))
    few = picked.head(EXAMPLES)
    if "hits" in picked and (few["hits"] > 0).all() and (picked["hits"] == 0).any():
        few = pd.concat([few.head(EXAMPLES - 1), picked[picked["hits"] == 0].head(1)])
    both = pd.concat([few, others])
    prompts = picks.prompts(config, top, both["sample_id"].to_numpy())
    for row, prompt in zip(table_rows(both), prompts, strict=True):
        yield row | {"prompt": prompt}


def _finished_control(config: Config, top: Path, method: str | None) -> list[Run]:
    """The control's runs; none if the summary has another control, or a file of theirs was not copied."""
    runs = [run for run in control_runs(config) if run.method == method]
    files = [run.folder(top) / name for run in runs for name in ("metrics.json", "history.parquet")]
    return runs if all(file.is_file() for file in files) else []


def _grid(top: Path, settings: Measure) -> dict[str, Any] | None:
    """Quality against cost of all configurations, if the grid was run."""
    if not (top / "comparison.parquet").is_file():
        return None
    table = tables.read("comparison", top / "comparison.parquet").to_pandas()
    names = ["model", "selector", "method", "budget", "seed"]
    runs = [Run(*run) for run in table[names].drop_duplicates().itertuples(index=False, name=None)]
    cells = with_intervals(over_seeds(table, NDCG), *ranks_of(top, runs, top / "samples.parquet"), settings)
    tests = artefact.read_json(top / "comparison.json")
    places = [f"{row['model']}/{row['selector']}/{row['method']}-{row['budget']}" for row in cells.to_dict("records")]
    for name in ("paired_tests", "minus_random", "minus_full"):
        cells[name] = [tests[name].get(place) for place in places]
    return _quality(cells, tests["main"], grid=True)


def _against_control(
    config: Config, top: Path, summary: Mapping[str, Any], runs: list[Run], control: list[Run]
) -> dict[str, Any] | None:
    """Quality against cost of the main experiment and of its control, if there is one."""
    if not control:
        return None
    logs = {run.method: selection_logs(config, run.selector, run.method) for run in (runs[0], control[0])}
    rows = [row for run in (*runs, *control) for row in run_rows(top, run, logs[run.method])]
    metrics = [found["metrics"][NDCG] for found in (summary, summary["control"])]
    ends = {end: [one[end] for one in metrics] for end in ("low", "high")}
    cells = over_seeds(pd.DataFrame(rows), NDCG).assign(**ends)
    cells["paired_tests"] = pd.Series([None, summary["control"]["difference"]], dtype=object)
    return _quality(cells, runs[0].configuration, grid=False)


def _quality(cells: pd.DataFrame, main: str, grid: bool) -> dict[str, Any]:
    """What the page says of quality against cost; cells: of `over_seeds`, with low, high and tests."""
    drawn = chart("quality", figures.quality_and_cost(cells, NDCG), QUALITY)
    return {"cells": cells.to_dict("records"), "chart": drawn, "main": main, "grid": grid}


def _charts(top: Path, run: Run, signals: picks.SignalFiles, shown: pd.DataFrame) -> Iterator[Chart]:
    """Charts of the selection, as far as its method reads signals."""
    selection = tables.read("selection", run.selection(top) / "selection.parquet").to_pandas().sort_values("position")
    if (scores := picks.rewards_of(signals)) is not None:
        picked = scores["sample_id"].isin(selection["sample_id"]).to_numpy()
        label = f"Rewards of {len(scores):,} samples: {(scores['hits'] == 0).mean():.0%} never get a hit"
        yield chart("rewards", figures.mean_rewards(scores["mean_reward"].to_numpy(), picked), label)
        rows = _drawn(picked, scores["sample_id"].isin(shown["sample_id"]).to_numpy())
        ids, drawn = scores["sample_id"].to_numpy()[rows], picked[rows]
        tips = {f"#sample-{row['sample_id']}": _tip(row) for row in shown.to_dict("records")}
        links = [link if (link := f"#sample-{sample}") in tips else None for sample in ids]
        note = "" if len(rows) == len(scores) else f"; of {len(scores):,} samples, {len(rows):,} are drawn"
        if signals.scores:
            reward, alike = (scores[name].to_numpy()[rows] for name in ("mean_reward", "representativeness"))
            label = f"Mean reward, which decides learnability, and representativeness{note}"
            yield chart("signals", figures.signals(reward, alike, drawn, links), label, tips)
        if signals.embeddings and len(rows) > 1:
            places, shares = picks.plane(signals.embeddings, ids)
            label = f"Map of the embeddings: samples close to each other are alike{note}"
            yield chart("map", figures.embedding_map(places, shares, drawn, links), label, tips)
    if selection["diversity"].notna().any():
        label = "Diversity: how far each pick was from the nearest earlier one"
        yield chart("diversity", figures.diversity(selection), label)
    order = tables.read("curriculum", run.selection(top) / "curriculum.parquet")
    if not order["mean_reward"].null_count:
        label = f"The curriculum: {max(order['group'].to_pylist()) + 1} groups, each from easy to hard"
        yield chart("curriculum", figures.training_order(order), label)


def _drawn(picked: np.ndarray, in_table: np.ndarray) -> np.ndarray:
    """Rows, ascending, of the samples [n] in the table, and of at most DRAWN other picks and DRAWN that are none."""
    rows, generator = [np.flatnonzero(in_table)], np.random.default_rng(0)
    for group in (picked & ~in_table, ~picked & ~in_table):
        some = np.flatnonzero(group)
        rows.append(generator.choice(some, DRAWN, replace=False) if len(some) > DRAWN else some)
    return np.sort(np.concatenate(rows))


def _tip(row: Mapping[Any, Any]) -> str:
    """What the pointer shows over a sample."""
    return (f"pick {row['position'] + 1}: " if row["position"] >= 0 else "not picked: ") + row["target"]
