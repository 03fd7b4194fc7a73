"""The report: one HTML page about the experiment on a data set, which needs no network and no script to be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from minirec import __version__
from minirec.errors import InputError
from minirec.evaluation.comparison import over_seeds
from minirec.evaluation.metrics import K
from minirec.experiment.config import Config
from minirec.experiment.job_logs import by_rule
from minirec.experiment.paths import main_runs
from minirec.report import charts, picks
from minirec.storage import artefact, tables

NDCG = f"ndcg@{K}"
SHOWN = 300  # picks in the table, and as many other samples
TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class Chart:
    """A chart of the page: its SVG, and what it shows in a sentence."""

    svg: str
    caption: str


def html(config: Config, top: Path) -> str:
    """The page; top: results of the data set. Raises InputError if its experiment is not done, or is another."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    metrics = top / "metrics.json"
    if not metrics.is_file():
        raise InputError(f"{metrics} is not there; run the workflow first, minirec status {top} says what is left")
    summary = artefact.read_json(metrics)
    run, main = main_runs(config)[0], summary["main"]
    if (main["method"], str(main["budget"])) != (run.method, str(run.budget)):
        raise InputError(
            f"{metrics} is of {main['method']}-{main['budget']}, but the configuration's main experiment is "
            f"{run.method}-{run.budget}; run the workflow again, or name its --configfile"
        )
    signals = picks.signals_of(config, run, top)
    shown = picks.samples(top, run, signals, SHOWN)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        name=top.name,
        version=__version__,
        summary=summary,
        verdicts=list(verdicts(summary)),
        result=_result(summary),
        comparison=_comparison(top),
        rows=json_rows(shown),
        has_rewards="rewards" in shown,
        has_signals="learnability" in shown,
        has_diversity=bool(shown["diversity"].notna().any()),
        charts=list(_charts(top, run, signals, shown)),
        curves=_curves(config, top),
        costs=_costs(summary),
        stages=by_rule(summary["cost"]),
        picked=summary["selected"],
        without_hit=int(((shown["position"] >= 0) & (shown["hits"] == 0)).sum()) if "hits" in shown else None,
        config=yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
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


def json_rows(shown: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the table of picks: numbers as text, missing signals empty."""
    rows = []
    for row in shown.to_dict("records"):
        number = {
            name: "" if pd.isna(row.get(name, np.nan)) else f"{row[name]:.3f}"
            for name in ("mean_reward", "learnability", "representativeness", "diversity")
        }
        written = [(f"{r:.3f}", t) for r, t in zip(row.get("rewards", ()), row.get("texts", ()), strict=True)]
        rows.append({str(name): value for name, value in row.items()} | number | {"completions": written})
    return rows


def _result(summary: dict[str, Any]) -> Chart:
    main = summary["main"]
    ours = f"after RL, {main['method']}"
    rows: dict[str, dict[str, float]] = {ours: summary["metrics"][NDCG]}
    if "control" in summary:
        rows[f"after RL, {main['control']}"] = summary["control"]["metrics"][NDCG]
    rows["before RL"] = summary["before"][NDCG]
    rows.update((name.replace("_", " "), found[NDCG]) for name, found in summary["baselines"].items())
    said = "; ".join(f"{name} {found['mean']:.4f}" for name, found in rows.items())
    return Chart(charts.svg(charts.result(rows, ours), "NDCG@10 on test: " + said), "NDCG@10 on test with intervals")


def _comparison(top: Path) -> dict[str, Any] | None:
    """Quality against cost of all configurations, if the grid was run."""
    if not (top / "comparison.parquet").is_file():
        return None
    cells = over_seeds(tables.read("comparison", top / "comparison.parquet").to_pandas(), NDCG)
    chart = charts.svg(charts.quality_and_cost(cells), "NDCG@10 against seconds of selection and training, by method")
    return {"cells": cells.fillna({"std": 0.0}).to_dict("records"), "chart": chart}


def _charts(top: Path, run: Any, signals: picks.Signals, shown: pd.DataFrame) -> Iterator[Chart]:
    """Charts of the selection, as far as its method reads signals."""
    selection = tables.read("selection", run.selection(top) / "selection.parquet").to_pandas().sort_values("position")
    if (scores := picks.rewards_of(signals)) is not None:
        picked = scores["sample_id"].isin(selection["sample_id"]).to_numpy()
        label = f"Rewards of {len(scores)} samples: {(scores['hits'] == 0).mean():.0%} never get a hit"
        yield Chart(charts.svg(charts.rewards(scores["mean_reward"].to_numpy(), picked), label), label)
    if signals.scores:
        figure, names = charts.two_signals(shown)
        label = "Learnability against representativeness of picks and of as many other samples"
        yield Chart(charts.svg(figure, label, names), label)
    if signals.embeddings:
        figure, names = charts.embedding_map(shown, picks.plane(signals.embeddings, shown["sample_id"].to_numpy()))
        label = "Map of the embeddings: samples close to each other are alike"
        yield Chart(charts.svg(figure, label, names), label)
    if selection["diversity"].notna().any():
        label = "Diversity: how far each pick was from the nearest earlier one"
        yield Chart(charts.svg(charts.diversity(selection), label), label)
    order = tables.read("curriculum", run.selection(top) / "curriculum.parquet").to_pandas().sort_values("position")
    if order["mean_reward"].notna().any():
        label = f"The curriculum: {order['group'].max() + 1} groups, each from easy to hard"
        yield Chart(charts.svg(charts.curriculum(order), label), label)


def _curves(config: Config, top: Path) -> Chart:
    histories = {
        f"seed {run.seed}": tables.read("history", run.folder(top) / "history.parquet").to_pandas()
        for run in main_runs(config)
    }
    label = "Learning curves: reward of the policy's completions (smoothed), and NDCG@10 on valid"
    return Chart(charts.svg(charts.learning_curves(histories), label), label)


def _costs(summary: dict[str, Any]) -> Chart:
    label = "Seconds of each rule, all seeds together"
    return Chart(charts.svg(charts.costs(by_rule(summary["cost"])), label), label)
