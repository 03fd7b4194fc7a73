"""The whole bill of a selection: proxy, rollouts, gradients, scores, choice and training on the subset, against
training on everything. Aim: at most a quarter for an eighth of the samples.

The tiny model runs both ways through the workflow on data/cds; the CPU seconds are those that each job's log ends with.
SmolLM2 is too slow here for both: a small run measures its seconds a step, a rollout and a gradient, and the bill is
extrapolated from these. One row a job in docs/results/bill.csv.
"""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from minirec.experiment import config, paths
from minirec.experiment.job_logs import by_rule, cost, costs, events
from minirec.experiment.paths import Run
from minirec.storage import tables
from minirec.storage.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "results" / "bill.csv"
DATASET = "cds"
LAYERS = {"tiny": ["quickstart", "learning", "bill"], "smollm": ["quickstart", "learning"]}
SHORT = {"epochs": 1, "evaluation_steps": 0}
SMALL = {"prepare": {"max_train": 96}, "train": SHORT, "proxy": SHORT | {"size": 48}}
JOBS = ("train_proxy", "embed_proxy", "rollout", "gradient", "score", "select", "curriculum", "train")
NAMES = ("model", "job", "samples", "seconds", "share_of_everything", "how")


def run(model: str, changes: dict, budget: int, everything: bool) -> tuple[config.Config, Run, Run]:
    """Let the workflow train on a selection, and on everything; returns the settings and the two runs."""
    overlay = ROOT / "results" / "bill" / f"{model}.yaml"
    overlay.parent.mkdir(parents=True, exist_ok=True)
    overlay.write_text(yaml.safe_dump({"results": f"results/bill/{model}"} | changes), encoding="utf-8")
    files = [*[ROOT / "config" / f"{name}.yaml" for name in LAYERS[model]], overlay]
    settings = config.load(ROOT / "config" / "config.yaml", *files)
    name, top = "bill_cds" if model == "tiny" else model, Path(settings.results) / DATASET
    picked = paths.run_of(settings, name, name, "minirec", budget, 0)
    whole = paths.run_of(settings, name, "none", "full", "all", 0)
    wanted = [f"{one.folder(top)}/history.parquet" for one in [picked] + [whole] * everything]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "host", "reason", "rules"]
    subprocess.run([*command, "--configfile", *map(str, files), "--", *wanted], cwd=ROOT, check=True)
    return settings, picked, whole


def spent(settings: config.Config, top: Path, picked: Run) -> dict[str, float]:
    """CPU seconds of the jobs of a selection by rule, the proxy's included; other work does not lengthen them."""
    known = by_rule(costs(top, paths.logs(top, paths.folders(settings, [picked]))), "cpu_seconds")
    if missing := set(JOBS) - set(known):
        sys.exit(f"no log says what {', '.join(missing)} took; remove {top} and start again")
    return {job: known[job] for job in JOBS}


def measured(given: argparse.Namespace) -> list[dict[str, object]]:
    """The bill of the tiny model."""
    changes = {
        "prepare": {"max_train": given.samples},
        "train": {"epochs": given.epochs},
        "proxy": {"epochs": given.epochs, "size": given.proxy},
    }
    settings, picked, whole = run("tiny", changes, given.budget, everything=True)
    top = ROOT / settings.results / DATASET
    everything = cost(whole.folder(top) / "logs" / "train.log")
    if everything is None:
        sys.exit(f"no log says what {whole} took; remove {top} and start again")
    return rows("tiny", spent(settings, top, picked), everything["cpu_seconds"], "CPU time, measured", given)


def extrapolated(given: argparse.Namespace) -> list[dict[str, object]]:
    """The bill of SmolLM2, from the rates of a small run."""
    settings, picked, _ = run("smollm", SMALL, 48, everything=False)
    top = ROOT / settings.results / DATASET
    history = tables.read("history", picked.folder(top) / "history.parquet")
    step = float(np.mean(tables.numpy(history, "seconds")))

    def rate(job: str) -> float:
        """Samples a second of a job."""
        _, end = events(top / "signals" / picked.selector / f"seed{picked.seed}" / "logs" / f"{job}.log")
        assert end is not None
        return end["per_second"][f"{job} samples"]

    def training(samples: int) -> float:
        return step * given.epochs * math.ceil(samples / settings.train.batch_prompts)

    seconds = spent(settings, top, picked) | {
        "train_proxy": training(given.proxy),
        "rollout": given.samples / rate("rollout"),
        "gradient": given.samples / rate("gradient"),
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
