"""Training of a head alone, on the frozen states of a model after an empty completion: seconds instead of minutes."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from minirec.data import splits
from minirec.data.splits import Split
from minirec.evaluation import metrics
from minirec.experiment import config
from minirec.experiment.sections import HeadKind
from minirec.model import scoring
from minirec.model.generate import user_states
from minirec.model.items import ItemEncoder
from minirec.model.policy import Policy
from minirec.model.whitening import Head, Whitening
from minirec.storage import tensors
from minirec.storage.artefact import Provenance
from minirec.training import crossfit

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Training:
    """How a head is trained; the learning rate warms up for 16 steps and decays to 0."""

    kind: HeadKind = "separate"  # train.head
    rate: float = 3e-3  # train.head_learning_rate
    tau: float = 0.1  # policy.tau
    negatives: int = 24  # sampled items beside the targets
    seed: int = 0  # of the sampled items


def digest(provenance: Provenance) -> str:
    """12 hexadecimal digits for the name of a file or folder, which change with all that makes it."""
    return sha256(provenance.json().encode()).hexdigest()[:12]


class States:
    """Pooled states of the items [m, d], and of the users [n, d] of each split, with what to predict."""

    def __init__(self, settings: config.Config, model: Path, top: Path, history: int, batch_tokens: int) -> None:
        """model: its folder. top: results of the data set, where the states are kept. history: items in the prompt."""
        files = [top / f"{part}.parquet" for part in ("samples", "catalogue")]
        self.parts: dict[str, Split] = {part: splits.load(*files, part, history) for part in PARTS}
        provenance = Provenance(
            "states", settings.policy.model_dump(), {"samples": files[0], "catalogue": files[1], "model": model}
        )
        kept = top / "states" / f"{model.name}-{history}-{digest(provenance)}.safetensors"
        if not kept.is_file():
            policy = Policy.load(model, settings.policy, batch_tokens=batch_tokens)
            items = ItemEncoder(policy, splits.catalogue_texts(files[1]))
            with torch.no_grad():
                found = {part: user_states(policy, of.bodies).numpy() for part, of in self.parts.items()}
                found["items"] = items.embed(what="items").numpy()
            tensors.write(found, kept, provenance)
        self.states = {part: torch.from_numpy(values) for part, values in tensors.read(kept).items()}

    def ranks(self, head: Head, part: str) -> np.ndarray:
        """Rank [n] of each target of a split in the whole catalogue, its history masked."""
        with torch.no_grad():
            scores = scoring.scores(head.user(self.states[part]), head.item(self.states["items"]), 1.0)
        of = self.parts[part]
        return scoring.ranks(scores, torch.from_numpy(of.target), torch.from_numpy(of.history)).numpy()

    def ndcg(self, head: Head, part: str = "valid") -> float:
        """NDCG@10 on a split."""
        return float(metrics.ndcg(self.ranks(head, part), metrics.K).mean())

    def whitened(self, whitening: Whitening) -> States:
        """The same states after a whitening."""
        out = copy(self)
        out.states = {
            part: (whitening.item if part == "items" else whitening.user)(x) for part, x in self.states.items()
        }
        return out

    def trained(self, batches: Sequence[np.ndarray], training: Training) -> Head:
        """A head trained on these whitened states with the item loss, A = 1; batches: rows of train, one step each."""
        return crossfit.fit(
            self.states["train"],
            self.states["items"],
            self.parts["train"],
            batches,
            kind=training.kind,
            rate=training.rate,
            schedule=lambda optimiser: LambdaLR(optimiser, lambda k: min(1, (k + 1) / 16) * (1 - k / len(batches))),
            negatives=training.negatives,
            tau=training.tau,
            max_grad_norm=1.0,
            generator=torch.Generator().manual_seed(training.seed),
        )
