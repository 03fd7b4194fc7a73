"""The whole chain with each selection method: quality and cost, against random and against all samples.

    python benchmarks/long/evidence.py --datasets toys --methods learnable random --seeds 0
    python benchmarks/long/evidence.py --selectors smollm --methods learnable_heads  # picks of another model

Runs are made in the order of the models, seeds, methods and data sets. A finished run is a row of
docs/results/evidence.csv, with a digest of its settings and the commit, and is not run again; an interrupted one goes
on where it stopped. Seconds are CPU seconds of one core, as the jobs' logs say, so that other work does not lengthen
them much. The ranks of its test samples go to docs/results/evidence_ranks.parquet, from which evidence_report.py makes
its tests.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from learning import ROOT, commit, keep, mean_of, p_of, workflow
from selection import LAID_OVER, available, lay_over, model_of

from minirec.data import splits
from minirec.evaluation.metrics import K
from minirec.evaluation.rank_tables import read_ranks
from minirec.experiment import config, paths
from minirec.experiment.job_logs import by_rule, costs_of, pieces
from minirec.storage import artefact, tables

OUT = ROOT / "docs" / "results" / "evidence.csv"
RANKS = OUT.with_name("evidence_ranks.parquet")
KEY = ["dataset", "model", "selector", "method", "budget", "seed"]
MODELS = ("tiny", "smollm")
METHODS = ("random", "learnable_heads", "full_once", "random_twice", "learnable_heads_twice")  # by worth
METHODS += ("learnable", "minirec", "product", "variance", "hardest")
SHARES = (1 / 8, 1 / 4)
PROXY = ("train_proxy", "embed_proxy", "rollout", "crossfit", "gradient")
SELECTION = (*PROXY, "score", "select", "curriculum")
RULES = ("embed_base", "embed_users", "train_proxy", "embed_proxy", "rollout", "gradient")  # that run the model
RULES += ("train", "evaluate", "evaluate_base")


def settings_of(model: str) -> tuple[list[Path], config.Config]:
    """The configuration files of a model, and what they say together."""
    layers = ["quickstart", "learning", f"learning_{model}", "evidence"]
    if model == "smollm":
        layers.append("evidence_smollm")
    files = [*(ROOT / "config" / f"{name}.yaml" for name in layers), *LAID_OVER]
    return files, config.load(ROOT / "config" / "config.yaml", *files)


def run_of(settings: config.Config, key: Mapping[str, Any]) -> paths.Run:
    """The run of a row, in which `tiny` stands for the tiny model of the data set."""
    names = (key["model"], key["selector"])
    model, selector = (model_of(key["dataset"]) if name == "tiny" else name for name in names)
    return paths.run_of(settings, model, selector, key["method"], key["budget"], key["seed"])


def row(settings: config.Config, dataset: str, run: paths.Run) -> dict[str, object]:
    """What one finished run says of itself, of the policy before it, and of what its selection cost."""
    top = ROOT / settings.results / dataset
    found = artefact.read_json(run.folder(top) / "metrics.json")
    history = tables.read("history", run.folder(top) / "history.parquet")
    spent = seconds(settings, top, run)
    after = found["metrics"]["ndcg@10"]
    return {
        **{"samples": len(tables.read("selection", run.selection(top) / "selection.parquet"))},
        **{"steps": history.num_rows, "before": mean_of(found["before"]), "after": round(after["mean"], 4)},
        **{"low": round(after["low"], 4), "high": round(after["high"], 4), "p": p_of(found["improvement"])},
        **{job: round(value, 1) for job, value in spent.items()},
        "cost": round(sum(spent.values()), 1),
    }


def seconds(settings: config.Config, top: Path, run: paths.Run) -> dict[str, float]:
    """CPU seconds of the training of a run and of each job of its selection: 0 without such a job, NaN if killed once.

    top: results of the data set. Ends the program if a log is missing.
    """
    patterns = paths.selection_logs(settings, run.selector, run.method) if run.selector != "none" else []
    jobs = costs_of(top, [pattern.format(**asdict(run)) for pattern in [*patterns, f"runs/{run}/logs/train.log"]])
    if jobs is None:
        sys.exit(f"a log of {run} or of its selection is missing below {top}; remove {top} and start again")
    spent = by_rule(jobs, "cpu_seconds")
    for log in map(Path, jobs):
        if None in pieces(top / log):  # killed, and nobody knows how long it ran
            spent[log.stem] = float("nan")
    reading = spent.pop("embed_users", 0.0)  # for heads; one file serves all seeds, and each pays for it
    return {job: spent.get(job, 0.0) + (reading if job == "crossfit" else 0.0) for job in ("train", *SELECTION)}


def ranks(settings: config.Config, dataset: str, run: paths.Run) -> pd.DataFrame:
    """A row a test sample of one finished run: its user as a number, and the target's rank, K + 1 for all below K."""
    top = ROOT / settings.results / dataset
    found = read_ranks(run.folder(top) / "ranks.parquet")
    user = splits.users(top / "samples.parquet", found.sample_id)
    rank = found.rank.clip(max=K + 1).astype("uint8")
    return pd.DataFrame({"sample_id": found.sample_id, "user": user, "rank": rank})


def digest(settings: config.Config, dataset: str, run: paths.Run) -> str:
    """12 hexadecimal digits that change with any setting on which this run may depend.

    Settings of other data sets, models, methods and variants do not count.
    """
    others = {"results", "main", "compare", "variants"}
    said = settings.used_by(run.method).model_dump(mode="json", exclude=others)
    said["datasets"] = said["datasets"][dataset]
    said["models"] = {name: said["models"][name] for name in {run.model, run.selector} - {"none"}}
    said["select"] = {name: said["select"][name] for name in ("shards", *settings.method(run.method).settings)}
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def budgets(settings: config.Config, top: Path, method: str, shares: list[float]) -> list[int | str]:
    """The shares of the training samples as budgets; `all` for a method that keeps all."""
    if settings.method(method).takes_all:
        return ["all"]
    split = tables.read("samples", top / "samples.parquet", ["split"])["split"]
    return [round(share * split.to_pylist().count("train")) for share in shares]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny"], choices=MODELS, help="that are trained; tiny")
    parser.add_argument(
        "--selectors", nargs="+", choices=MODELS, help="whose proxies or heads pick; the trained model's"
    )
    parser.add_argument("--datasets", nargs="+", default=["toys", "cds", "movielens"], help="toys cds movielens")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods or variants, by worth")
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), help="of the samples; 1/8 1/4")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="each with a proxy of its own; 0 1 2")
    parser.add_argument("--cores", type=int, default=2, help="2")
    parser.add_argument("--configfile", nargs="+", type=Path, default=[], help="laid over the configuration")
    given = parser.parse_args()
    lay_over(given.configfile)
    done = pd.read_csv(OUT, dtype={"budget": str, "settings": str}) if OUT.is_file() else pd.DataFrame(columns=KEY)
    cells = product(given.models, given.seeds, given.methods, available(given.datasets))
    for model, seed, method, dataset in cells:
        files, settings = settings_of(model)
        top = Path(settings.results) / dataset
        workflow(files, model, RULES, [top / "samples.parquet"], given.cores)
        reads = settings.method(method).reads
        for selector in (given.selectors or [model]) if reads else ["none"]:
            for budget in budgets(settings, ROOT / top, method, given.shares):
                key = dict(zip(KEY, (dataset, model, selector, method, budget, seed), strict=True))
                run = run_of(settings, key)
                key["budget"] = str(budget)
                finished = key | {"settings": digest(settings, dataset, run)}
                if len(done) and (done[list(finished)] == pd.Series(finished)).all(axis=1).any():
                    sys.stderr.write(f"{run}: {OUT.name} has its row\n")
                    continue
                finished["commit"] = commit()
                workflow(files, model, RULES, [run.folder(top) / "metrics.json"], given.cores)
                keep(ranks(settings, dataset, run).assign(**key), RANKS, [*KEY, "sample_id"])
                keep(pd.DataFrame([finished | row(settings, dataset, run)]), OUT, KEY)


if __name__ == "__main__":
    main()
