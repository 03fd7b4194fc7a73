"""evaluate: rank the whole catalogue for every test sample with a policy (METHOD 5).

Without an adapter this is the policy before RL. No later stage runs the language model over the test samples.
"""

from __future__ import annotations

from pathlib import Path

import torch

from minirec.data import splits
from minirec.evaluation import ranking
from minirec.evaluation.metrics import K
from minirec.evaluation.ranks import write_ranks
from minirec.experiment import config
from minirec.model.items import FrozenItemStates, Items, read_table
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.storage.artefact import Provenance


@torch.no_grad()
def run(
    *,
    policy: config.Policy,
    sampling: config.Sampling,
    samples: Path,
    catalogue: Path,
    items: Path | None,
    whitening: Path,
    frozen_states: Path | None,
    model: Path,
    adapter: Path | None,
    out: Path,
) -> None:
    """Write ranks.parquet of a policy; the item table is computed where none is given."""
    test = splits.load(samples, catalogue, "test", policy.prompt_history)
    loaded = Policy.load(model, policy, adapter)
    whiten = Whitening.read(whitening, adapter)
    if items is not None:
        table = read_table(items, catalogue)
    else:
        states = FrozenItemStates.read(frozen_states) if frozen_states else None
        table = whiten.item(Items(loaded, splits.catalogue_texts(catalogue), states).embed(what="items"))
    ranks = ranking.rank(loaded, whiten, table, test, sampling.max_new_tokens, K, "evaluate")
    inputs = {"samples": samples, "catalogue": catalogue, "model": model} | ({"adapter": adapter} if adapter else {})
    write_ranks(ranks, out, Provenance("evaluate", policy.model_dump() | sampling.model_dump(), inputs))
