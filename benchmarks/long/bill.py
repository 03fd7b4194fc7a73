"""The whole bill of a selection: proxy, rollouts, gradients, scores, choice and training on the subset, against
training on everything. Aim: at most a quarter for an eighth of the samples.

The tiny model runs both ways through the workflow on data/cds; the CPU seconds are those that each job's log ends with.
SmolLM2 is too slow here for both: a small run measures its seconds a step, a rollout and a gradient, and the bill is
extrapolated from these. One row a job in docs/results/bill.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from minirec.experiment import config, rules
from minirec.storage import tables
from minirec.storage.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "results" / "bill.csv"
DATASET = "cds"
LAYERS = {"tiny": ["quickstart", "learning", "bill"], "smollm": ["quickstart", "learning"]}
SMALL = {"prepare": {"max_train": 96}, "train": {"proxy_size": 48, "epochs": 1, "evaluations_per_epoch": 0}}
NAMES = ("model", "job", "samples", "seconds", "share_of_everything", "how")


def run(model: str, changes: dict, budget: int, everything: bool) -> tuple[config.Config, Path, str]:
    """Let the workflow train on a selection, and on everything; returns settings, results and the run's path."""
    overlay = ROOT / "results" / "bill" / f"{model}.yaml"
    overlay.parent.mkdir(parents=True, exist_ok=True)
    overlay.write_text(yaml.safe_dump({"results": f"results/bill/{model}"} | changes), encoding="utf-8")
    files = [*[ROOT / "config" / f"{name}.yaml" for name in LAYERS[model]], overlay]
    given = config.load(ROOT / "config" / "config.yaml", *files)
    name = "bill_cds" if model == "tiny" else model
    picked = rules.run_path(given, name, name, "minirec", budget, 0)
    whole = rules.run_path(given, name, "none", "full", "all", 0)
    wanted = [f"{given.results}/{DATASET}/runs/{path}/history.parquet" for path in [picked] + [whole] * everything]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "host", "reason", "rules"]
    subprocess.run([*command, "--configfile", *map(str, files), "--", *wanted], cwd=ROOT, check=True)
    return given, ROOT / given.results, picked


def ended(results: Path, job: str) -> dict[str, Any]:
    """How a job ended, by the last line of its log: CPU seconds, which other work does not lengthen, and rates."""
    file = results / "logs" / DATASET / f"{job}.log"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        sys.exit(f"{file} is not there; remove {results} and start again")
    return json.loads([line for line in lines if line.startswith("{")][-1])


def jobs(name: str, picked: str) -> dict[str, str]:
    """The log of every job of a selection, in their order, without its suffix."""
    selection = picked.split("/", 1)[1]
    plain = {job: f"{job}/{name}" for job in ("train_proxy", "embed_proxy", "rollout", "gradient", "score")}
    chosen = {job: f"{job}/{selection}" for job in ("select", "curriculum")}
    return plain | chosen | {"train": f"train/{picked}"}


def measured(given: argparse.Namespace) -> list[dict[str, object]]:
    """The bill of the tiny model."""
    changes = {
        "prepare": {"max_train": given.samples},
        "train": {"proxy_size": given.proxy, "epochs": given.epochs},
    }
    settings, results, picked = run("tiny", changes, given.budget, everything=True)
    name = picked.split("/")[0]
    seconds = {job: ended(results, file)["cpu_seconds"] for job, file in jobs(name, picked).items()}
    whole = ended(results, f"train/{rules.run_path(settings, name, 'none', 'full', 'all', 0)}")["cpu_seconds"]
    return rows("tiny", seconds, whole, "CPU time, measured", given)


def extrapolated(given: argparse.Namespace) -> list[dict[str, object]]:
    """The bill of SmolLM2, from the rates of a small run."""
    settings, results, picked = run("smollm", SMALL, 48, everything=False)
    history = tables.read("history", results / DATASET / "runs" / picked / "history.parquet")
    step = float(np.mean(tables.numpy(history, "seconds")))
    name = picked.split("/")[0]
    known = {job: ended(results, file)["cpu_seconds"] for job, file in jobs(name, picked).items()}

    def rate(job: str, loop: str) -> float:
        return ended(results, f"{job}/{name}")["per_second"][loop]

    def training(samples: int) -> float:
        return step * given.epochs * math.ceil(samples / settings.train.batch_prompts)

    seconds = known | {
        "train_proxy": training(given.proxy),
        "rollout": given.samples / rate("rollout", "rollout samples"),
        "gradient": given.samples / rate("gradient", "gradient samples"),
        "train": training(given.budget),
    }
    how = f"clock, extrapolated: {step:.1f} s a step of {settings.train.batch_prompts} prompts"
    return rows("smollm", seconds, training(given.samples), how, given)


def rows(
    model: str, seconds: dict[str, float], whole: float, how: str, given: argparse.Namespace
) -> list[dict[str, object]]:
    """One row a job, their sum and what everything takes."""
    samples = {"train_proxy": given.proxy, "rollout": given.samples, "gradient": given.samples}
    samples |= {"score": given.samples, "select": given.budget, "curriculum": given.budget, "train": given.budget}
    lines = [(job, samples.get(job, ""), value) for job, value in seconds.items()]
    lines += [("selection, all of it", given.budget, sum(seconds.values())), ("everything", given.samples, whole)]
    return [
        dict(zip(NAMES, (model, job, count, round(value, 1), round(value / whole, 4), how), strict=True))
        for job, count, value in lines
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "smollm"], choices=["tiny", "smollm"])
    parser.add_argument("--samples", type=int, default=4_000)
    parser.add_argument("--budget", type=int, default=500)
    parser.add_argument("--proxy", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    found = [row for model in given.models for row in {"tiny": measured, "smollm": extrapolated}[model](given)]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(given.out) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, NAMES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    print("| model | job | samples | seconds | share of everything | how |")
    print("|---|---|--:|--:|--:|---|")
    for row in found:
        cells = row | {"share_of_everything": f"{row['share_of_everything']:.1%}"}
        print("| " + " | ".join(str(cells[name]) for name in NAMES) + " |")


if __name__ == "__main__":
    main()
