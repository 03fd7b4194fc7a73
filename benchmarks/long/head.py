"""What a head alone learns on the frozen states of a model after an empty completion: seconds a trial, on valid.

    python benchmarks/long/head.py --model tiny --dataset toys --epochs 1 2 --history 1 2 5

Tries every combination of the values given, after the baselines of METHOD 5. The states are computed once and kept
below the results of bench-learning. For more samples: a --configfile with `prepare: {max_train: null}` and `results:`
of its own.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time

import numpy as np
import torch
from frozen import States, Training
from learning import BATCH_TOKENS, ROOT, settings_of

from minirec.data import splits
from minirec.evaluation import baselines, metrics
from minirec.model.whitening import Whitening

TRIED = {  # name: type, default, meaning
    "kind": (str, "separate", "shared or separate"),
    "samples": (int, 8000, "training samples"),
    "history": (int, 2, "items in the prompt"),
    "dimensions": (int, 500, "of the whitening"),
    "power": (float, 0.5, "policy.whiten_power"),
    "tau": (float, 0.1, "policy.tau"),
    "rate": (float, 3e-3, "train.head_learning_rate, with a linear decay after 16 steps"),
    "epochs": (int, 1, "passes over the samples"),
    "batch": (int, 24, "samples a step"),
    "negatives": (int, 24, "sampled items beside the targets"),
}


def batches(trial: argparse.Namespace, available: int) -> list[np.ndarray]:
    """Rows of the first samples of a seeded draw, in batches; each epoch in another order."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(available, generator=generator)[: trial.samples]
    epochs = [chosen[torch.randperm(len(chosen), generator=generator)] for _ in range(trial.epochs)]
    return [rows.numpy() for epoch in epochs for rows in epoch.split(trial.batch)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", choices=["tiny", "smollm"])
    parser.add_argument("--dataset", default="movielens", choices=["movielens", "cds", "toys"])
    parser.add_argument("--configfile", nargs="+", default=[], help="files laid over the settings of bench-learning")
    for name, (kind, default, meaning) in TRIED.items():
        parser.add_argument(f"--{name}", type=kind, nargs="+", default=[default], help=f"{meaning}; {default}")
    given = vars(parser.parse_args())
    model, dataset, more = (given.pop(name) for name in ("model", "dataset", "configfile"))
    files, settings, name = settings_of(model, dataset, *more)
    top = ROOT / settings.results / dataset
    wanted = [f"{settings.results}/{dataset}/samples.parquet", f"data/models/{name}"]
    command = ["snakemake", "--cores", "1", "--quiet", "all", "--configfile", *map(str, files), "--", *wanted]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    tables = top / "samples.parquet", top / "catalogue.parquet"
    for baseline, ranks in baselines.rank_split(*tables, splits.load(*tables, "valid", 1), settings.sasrec):
        sys.stdout.write(f"{dataset} {baseline}: {metrics.ndcg(ranks.rank, metrics.K).mean():.4f}\n")
    for values in itertools.product(*given.values()):
        trial, started = argparse.Namespace(**dict(zip(given, values, strict=True))), time.monotonic()
        states = States(settings, ROOT / "data" / "models" / name, top, trial.history, BATCH_TOKENS[model])
        users = states.states["train"]
        spread = np.linspace(0, len(users) - 1, min(1000, len(users))).round().astype(int)
        items = states.states["items"].numpy()
        whitened = states.whitened(Whitening.fit(users[spread].numpy(), items, trial.dimensions, trial.power))
        training = Training(trial.kind, trial.rate, trial.tau, trial.negatives)
        before, after = (whitened.ndcg(whitened.trained(b, training)) for b in ([], batches(trial, len(users))))
        said = " ".join(f"{key} {value}" for key, value in vars(trial).items())
        seconds = time.monotonic() - started
        sys.stdout.write(f"{dataset} {model} {said}: {before:.4f} to {after:.4f}, {seconds:.0f} s\n")


if __name__ == "__main__":
    main()
