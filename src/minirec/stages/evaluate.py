"""evaluate: rank the whole catalogue for every test sample with a policy (METHOD 5).

Without an adapter, the policy is the one before RL. Later stages read the ranks and need no language model.
"""

from __future__ import annotations

from pathlib import Path

import torch

from minirec.data import splits
from minirec.evaluation import ranking
from minirec.evaluation.rank_tables import TOP, write_ranks
from minirec.experiment import sections
from minirec.model import engines
from minirec.model.items import FrozenItemStates, ItemEncoder, read_table
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output


@torch.no_grad()
def run(
    *,
    policy: sections.Policy,
    sampling: sections.Sampling,
    passes: sections.Passes,
    generation: sections.Generation,
    samples: Path,
    catalogue: Path,
    model: Path,
    adapter: Path | None = None,
    item_table: Path | None = None,
    whitening: Path | None = None,
    frozen_states: Path | None = None,
    ranks: Output,
) -> None:
    """Write a policy's ranks.parquet; without an item table, compute it first."""
    engines.require(sampling)
    test = splits.load(samples, catalogue, "test", policy.prompt_history)
    loaded = Policy.load(model, policy, adapter, passes.batch_tokens)
    whiten = Whitening.read(whitening, adapter)
    if item_table is not None:
        table = read_table(item_table, catalogue)
    else:
        states = FrozenItemStates.read(frozen_states) if frozen_states else None
        table = whiten.item(ItemEncoder(loaded, splits.catalogue_texts(catalogue), states).embed(what="items"))
    writer = engines.load(loaded, sampling, generation, model, adapter)
    ranked = ranking.rank(writer, whiten, table, test, sampling.max_new_tokens, TOP, "evaluate")
    inputs = {"samples": samples, "catalogue": catalogue, "model": model} | ({"adapter": adapter} if adapter else {})
    inputs |= {name: file for name, file in (("items", item_table), ("whitening", whitening)) if file is not None}
    write_ranks(ranked, ranks, Provenance("evaluate", policy.model_dump() | sampling.model_dump(), inputs))
