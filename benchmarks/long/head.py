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
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from learning import BATCH_TOKENS, ROOT, settings_of
from torch import Tensor

from minirec.data import splits
from minirec.data.splits import Split
from minirec.evaluation import baselines, metrics
from minirec.experiment import config
from minirec.model import scoring
from minirec.model.generate import user_states
from minirec.model.items import ItemEncoder
from minirec.model.policy import Policy
from minirec.model.whitening import Head, Whitening
from minirec.storage import tensors
from minirec.storage.artefact import Provenance
from minirec.training import losses

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


class States:
    """Pooled states of the items, and of the users of both splits, with what to predict."""

    def __init__(self, settings: config.Config, name: str, top: Path, history: int, batch_tokens: int) -> None:
        files = [top / f"{part}.parquet" for part in ("samples", "catalogue")]
        self.parts: dict[str, Split] = {part: splits.load(*files, part, history) for part in ("train", "valid")}
        model = ROOT / "data" / "models" / name
        provenance = Provenance(
            "states", settings.policy.model_dump(), {"samples": files[0], "catalogue": files[1], "model": model}
        )
        kept = top / "states" / f"{name}-{history}-{sha256(provenance.json().encode()).hexdigest()[:12]}.safetensors"
        if not kept.is_file():
            policy = Policy.load(model, settings.policy, batch_tokens=batch_tokens)
            items = ItemEncoder(policy, splits.catalogue_texts(files[1]))
            with torch.no_grad():
                found = {part: user_states(policy, of.bodies).numpy() for part, of in self.parts.items()}
                found["items"] = items.embed(what="items").numpy()
            tensors.write(found, kept, provenance)
        self.states = {part: torch.from_numpy(values) for part, values in tensors.read(kept).items()}

    def ndcg(self, head: Whitening | Head) -> float:
        """NDCG@10 on valid."""
        with torch.no_grad():
            scores = scoring.scores(head.user(self.states["valid"]), head.item(self.states["items"]), 1.0)
        valid = self.parts["valid"]
        rank = scoring.ranks(scores, torch.from_numpy(valid.target), torch.from_numpy(valid.history))
        return float(metrics.ndcg(rank.numpy(), metrics.K).mean())


def learnt(states: States, whitening: Whitening, trial: argparse.Namespace) -> Head:
    """A head trained with the item loss, A = 1, on the first samples of a seeded draw."""
    torch.manual_seed(0)
    head, split = Head(whitening, 0, trial.kind), states.parts["train"]
    optimiser = torch.optim.AdamW(head.parameters(), trial.rate, weight_decay=0.0)
    chosen = torch.randperm(len(split))[: trial.samples]
    steps = trial.epochs * -(-len(chosen) // trial.batch)
    factor = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1, (step + 1) / 16) * (1 - step / steps))
    for _ in range(trial.epochs):
        for rows in chosen[torch.randperm(len(chosen))].split(trial.batch):
            loss = batch_loss(states, head, split.take(rows.tolist()), states.states["train"][rows], trial)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimiser.step()
            factor.step()
    return head


def batch_loss(states: States, head: Head, batch: Split, users: Tensor, trial: argparse.Namespace) -> Tensor:
    """The mean item loss of a batch."""
    target, history = torch.from_numpy(batch.target), torch.from_numpy(batch.history)
    rows = losses.batch_items(target, len(states.states["items"]), trial.negatives, torch.default_generator)
    column = torch.searchsorted(rows[: len(target.unique())], target)
    masked = (rows[None, :, None] == history[:, None, :]).any(-1)
    items, one = head.item(states.states["items"][rows]), torch.ones(len(target))
    log_pi = losses.item_log_pi(head.user(users), items, column, masked, trial.tau)
    return losses.item_loss(log_pi, log_pi.detach(), one, 0.2, 0.28) / len(target)


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
    for baseline, ranks in baselines.rank_split(*tables, splits.load(*tables, "valid", 1)):
        sys.stdout.write(f"{dataset} {baseline}: {metrics.ndcg(ranks.rank, metrics.K).mean():.4f}\n")
    for values in itertools.product(*given.values()):
        trial, started = argparse.Namespace(**dict(zip(given, values, strict=True))), time.monotonic()
        states = States(settings, name, top, trial.history, BATCH_TOKENS[model])
        users = states.states["train"]
        spread = np.linspace(0, len(users) - 1, min(1000, len(users))).round().astype(int)
        items = states.states["items"].numpy()
        whitening = Whitening.fit(users[spread].numpy(), items, trial.dimensions, trial.power)
        after = states.ndcg(learnt(states, whitening, trial))
        said = " ".join(f"{key} {value}" for key, value in vars(trial).items())
        seconds = time.monotonic() - started
        sys.stdout.write(f"{dataset} {model} {said}: {states.ndcg(whitening):.4f} to {after:.4f}, {seconds:.0f} s\n")


if __name__ == "__main__":
    main()
