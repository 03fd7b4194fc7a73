"""embed: the catalogue as vectors, and the whitening of both sides (METHOD 2).

From the base model the whitening is fitted and the frozen_states kept; with an adapter both are read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from minirec.data import splits
from minirec.experiment import config
from minirec.model import generate
from minirec.model.items import FrozenItemStates, ItemEncoder
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.progress import progress
from minirec.storage import memory, tensors
from minirec.storage.artefact import Provenance


def user_states(policy: Policy, bodies: list[str]) -> torch.Tensor:
    """States [n, d] of users after an empty completion, not whitened."""
    prompts = policy.user_bodies(bodies)
    out = torch.zeros(len(prompts), policy.width)
    with progress("users", len(prompts), "prompts") as bar:
        for rows in policy.length_batches(prompts, extra=len(policy.marker_ids)):
            written = generate.generate(policy, [prompts[row] for row in rows], limits=[0])
            out[rows] = written.hidden[:, 0].cpu()
            bar.add(len(rows))
    return out


@torch.no_grad()
def run(
    *,
    policy: config.Policy,
    embed: config.Embed,
    samples: Path,
    catalogue: Path,
    model: Path,
    adapter: Path | None,
    whitening: Path,
    frozen_states: Path,
    out: Path,
) -> None:
    """Write the item table, whitened where whitening is on; without an adapter also whitening and frozen states."""
    loaded = Policy.load(model, policy, adapter)
    inputs = {"catalogue": catalogue, "model": model} | ({"adapter": adapter} if adapter else {})
    made = Provenance("embed", policy.model_dump() | embed.model_dump(), inputs)
    goods = ItemEncoder(
        loaded, splits.catalogue_texts(catalogue), FrozenItemStates.read(frozen_states) if adapter else None
    )
    memory.require(
        2 * goods.table_bytes(frozen_states=adapter is None and embed.keep_frozen_states),  # read once and written once
        f"the catalogue of {len(goods)} items ({catalogue})",
        "set datasets.NAME.filter to keep fewer, embed.keep_frozen_states to false, or take a larger machine",
    )
    dim = None if adapter else policy.whiten_dim
    train = splits.load(samples, catalogue, "train", policy.prompt_history) if dim else None
    if adapter is None:
        FrozenItemStates.write(goods.make_frozen_states() if embed.keep_frozen_states else None, frozen_states, made)
    raw = goods.embed(what="items").cpu()
    if adapter is not None:
        whiten = Whitening.read(whitening, adapter)
    elif dim is None or train is None:
        whiten = Whitening.identity()
        whiten.write(whitening, made)
    else:
        count = min(embed.whiten_prompts or len(train), len(train))
        rows = np.linspace(0, len(train) - 1, count).round().astype(int)  # spread over time
        users = user_states(loaded, list(train.take(list(rows)).bodies))
        whiten = Whitening.fit(users.numpy(), raw.numpy(), dim, policy.whiten_power)
        whiten.write(whitening, made)
    tensors.write({"items": whiten.item(raw).numpy(), "row": np.arange(len(raw), dtype=np.int64)}, out, made)
