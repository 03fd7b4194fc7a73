"""embed: compute the vectors of the catalogue's items, and the whitening of users and items (METHOD 2).

With the base model alone, the whitening is fitted and the frozen states are kept; with an adapter, both are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from minirec.data import splits
from minirec.errors import InputError
from minirec.experiment import limits, sections
from minirec.model.generate import user_states
from minirec.model.items import FrozenItemStates, ItemEncoder
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.storage import memory, tensors
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output


@torch.no_grad()
def run(
    *,
    policy: sections.Policy,
    embed: sections.Embed,
    passes: sections.Passes,
    samples: Path,
    catalogue: Path,
    model: Path,
    adapter: Path | None = None,
    least_samples: int = 0,
    whitening: Output | None = None,
    frozen_states: Path,
    item_table: Output,
) -> None:
    """Write the item table, whitened if whitening is on; without an adapter, also the whitening and the frozen states.

    With an adapter, `frozen_states` is read, and the whitening is the one in the adapter's folder.
    """
    if adapter is None and whitening is None:
        raise InputError("without --adapter the whitening is fitted; name the file to write it to with --whitening")
    if least_samples:
        limits.require_at_least(least_samples, splits.count(samples, "train"))
    loaded = Policy.load(model, policy, adapter, passes.batch_tokens)
    inputs = {"catalogue": catalogue, "model": model} | ({"adapter": adapter} if adapter else {})
    if adapter is None and policy.whiten_dim:
        inputs["samples"] = samples  # the whitening is fitted to their prompts
    provenance = Provenance("embed", policy.model_dump() | embed.model_dump(), inputs)
    texts = splits.catalogue_texts(catalogue)
    items = ItemEncoder(loaded, texts, FrozenItemStates.read(frozen_states) if adapter else None)
    keep_frozen_states = adapter is None and embed.keep_frozen_states
    memory.require(
        2 * items.table_bytes(keep_frozen_states),  # read once and written once
        f"the catalogue of {len(items)} items ({catalogue})",
        "set datasets.NAME.filter to keep fewer, embed.keep_frozen_states to false, or take a larger machine",
    )
    dim = None if adapter else policy.whiten_dim
    train = splits.load(samples, catalogue, "train", policy.prompt_history) if dim else None
    if adapter is None:
        FrozenItemStates.write(items.make_frozen_states() if keep_frozen_states else None, frozen_states, provenance)
    states = items.embed(what="items").cpu()
    if whitening is None:
        whiten = Whitening.read(None, adapter)
    else:
        whiten = Whitening.identity()
        if dim and train:
            users = user_states(loaded, train.bodies, embed.whiten_prompts)
            whiten = Whitening.fit(users.numpy(), states.numpy(), dim, policy.whiten_power)
        whiten.write(whitening, provenance)
    rows = np.arange(len(states), dtype=np.int64)
    tensors.write({"items": whiten.item(states).numpy(), "row": rows}, item_table, provenance)
