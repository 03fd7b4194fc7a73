"""Item encoder: the language model reads an item's text and gives its vector (METHOD 2, item side).

What the frozen layers compute for an item never changes; it can be computed once and kept as frozen states.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minirec.errors import InputError
from minirec.model import distributed
from minirec.model.cache import PROMPT, LayerSlice, pad
from minirec.model.one_pass import OnePass
from minirec.model.policy import Policy
from minirec.progress import progress
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance


@dataclass(frozen=True)
class FrozenItemStates:
    """States of the item prompts that enter the first trainable layer: no lower layer need run again."""

    prefix: Tensor  # [p, d], of the start that all item prompts share
    states: Sequence[Tensor]  # m tensors [t, d], by catalogue row: the rest of each prompt

    @classmethod
    def read(cls, path: Path) -> FrozenItemStates | None:
        """Read frozen_states.safetensors; None if embed kept none."""
        stored = {name: torch.from_numpy(array) for name, array in tensors.read(path).items()}
        if not len(stored["lengths"]):
            return None
        return cls(stored["prefix"], stored["states"].split(stored["lengths"].tolist()))

    @staticmethod
    def write(frozen_states: FrozenItemStates | None, path: Path, provenance: Provenance) -> None:
        """Write frozen_states.safetensors; for None, a file without states."""
        prefix = frozen_states.prefix if frozen_states else torch.zeros(0, 1)
        states = torch.cat(list(frozen_states.states)) if frozen_states else torch.zeros(0, 1)
        lengths = np.array([len(s) for s in frozen_states.states] if frozen_states else [], dtype=np.int64)
        tensors.write({"prefix": prefix.numpy(), "states": states.numpy(), "lengths": lengths}, path, provenance)


def read_table(path: Path, catalogue: Path) -> Tensor:
    """Read the item table [m, d'] from items.safetensors; raises InputError if the catalogue has not m items."""
    table = torch.from_numpy(tensors.read(path, "items")["items"])
    count = tables.read("catalogue", catalogue, ["row"]).num_rows
    if len(table) != count:
        raise InputError(f"{path} has {len(table)} items, but {catalogue} has {count}; run embed again")
    return table


class ItemEncoder:
    """Computes the vectors of a catalogue's items, from their texts, or faster from their frozen states."""

    def __init__(self, policy: Policy, texts: Sequence[str], frozen_states: FrozenItemStates | None = None) -> None:
        self.policy = policy
        self.bodies = [policy.item_prompts.encode(text) for text in texts]
        longest = max(map(len, self.bodies), default=0)
        policy.require_context(len(policy.item_prompts.prefix) + longest, "policy.max_item_tokens")
        self.frozen_states = frozen_states
        if frozen_states is not None and [len(s) for s in frozen_states.states] != [len(body) for body in self.bodies]:
            raise InputError("the frozen states were made from another catalogue or tokenizer; run embed again")

    def __len__(self) -> int:
        return len(self.bodies)

    def table_bytes(self, frozen_states: bool) -> int:
        """Bytes of memory for all item vectors in float32; with `frozen_states`, also for these."""
        tokens = sum(map(len, self.bodies)) if frozen_states and self.policy.frozen_layers else 0
        return 4 * self.policy.width * (len(self) + tokens)

    def length_batches(self, rows: Sequence[int]) -> list[list[int]]:
        """Batches of items of similar length that fit into one pass, as positions in the catalogue rows `rows`."""
        return list(self.policy.length_batches([self.bodies[row] for row in rows]))

    def embed(self, rows: Sequence[int] | None = None, what: str | None = None) -> Tensor:
        """Vectors [k, d] of the catalogue rows [k], all by default; float32, not whitened, differentiable.

        With the pooling `last`, the state at the marker's last token; else the mean over what follows the instruction.
        what: label of a progress bar; None: no bar.
        """
        rows = range(len(self)) if rows is None else rows
        places, vectors = [], [torch.zeros(0, self.policy.width, device=self.policy.device)]  # there may be no rows
        with progress(what, len(rows), "items") if what else nullcontext() as bar:
            for batch in distributed.same_number(self.length_batches(rows)):
                if batch is None:  # other processes share the layers and need them
                    self._read([0])
                    continue
                hidden, valid = self._read([rows[place] for place in batch])
                if self.policy.settings.pooling != "last":
                    vectors.append((hidden * valid[..., None]).sum(1) / valid.sum(1, keepdim=True))
                else:
                    vectors.append(hidden[torch.arange(len(batch), device=hidden.device), valid.sum(1) - 1])
                places += batch
                if bar:
                    bar.add(len(batch))
        return torch.cat(vectors)[torch.argsort(torch.tensor(places)).to(self.policy.device)]

    @torch.no_grad()
    def make_frozen_states(self) -> FrozenItemStates | None:
        """Compute the frozen states, and use them from now on; None if no layer is known to be frozen."""
        depth = self.policy.frozen_layers
        if depth == 0:
            return None
        frozen = LayerSlice(self.policy.decoder, slice(0, depth))
        states: list[Tensor] = [torch.empty(0)] * len(self)
        prefix = torch.zeros(0, self.policy.width)
        with progress("frozen states", len(self), "items") as bar:
            for batch in self.length_batches(range(len(self))):
                cache, hidden, valid = self._extend(frozen, self.policy.item_prompts.prefix, batch)
                prefix = cache.prefix_states[0].float().cpu()
                for row, state, count in zip(batch, hidden, valid.sum(1).tolist(), strict=True):
                    states[row] = state[:count].float().cpu()
                bar.add(len(batch))
        self.frozen_states = FrozenItemStates(prefix, states)
        return self.frozen_states

    def _read(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States [k, t, d] of the items' tokens after the last layer, and which are not padding [k, t]."""
        if self.frozen_states is None:
            _, hidden, valid = self._extend(self.policy.decoder, self.policy.item_prompts.prefix, rows)
            return hidden.float(), valid
        dtype = next(self.policy.decoder.parameters()).dtype
        trainable = LayerSlice(self.policy.decoder, slice(self.policy.frozen_layers, None))
        prefix = self.frozen_states.prefix.to(self.policy.device, dtype)
        _, hidden, valid = self._extend(trainable, prefix, rows)
        return hidden.float(), valid

    def _extend(
        self, decoder: object, prefix: Sequence[int] | Tensor, rows: Sequence[int]
    ) -> tuple[OnePass, Tensor, Tensor]:
        cache = OnePass(decoder, prefix, len(rows))
        if isinstance(prefix, Tensor):
            assert self.frozen_states is not None
            tokens, valid = pad([self.frozen_states.states[row].to(prefix.dtype) for row in rows], cache.device)
        else:
            tokens, valid = pad([self.bodies[row] for row in rows], cache.device)
        branch = torch.full_like(valid, PROMPT, dtype=torch.long)
        positions = (len(prefix) + torch.arange(tokens.shape[1], device=cache.device)).expand_as(branch)
        return cache, cache.extend(tokens, valid, branch, positions), valid
