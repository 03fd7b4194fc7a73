"""The item side of the policy: vectors of the catalogue's items (METHOD 2).

What the frozen layers make of an item never changes, so it is computed once and kept: the frozen_states.
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
from minirec.model.cache import PROMPT, BranchingCache, LayerSlice, pad
from minirec.model.policy import Policy
from minirec.progress import progress
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance


@dataclass(frozen=True)
class FrozenItemStates:
    """States below the lowest trained layer, of the shared prefix [p, d] and of each item's tokens [t, d]."""

    prefix: Tensor
    states: Sequence[Tensor]

    @classmethod
    def read(cls, path: Path) -> FrozenItemStates | None:
        """From frozen_states.safetensors; None where none was kept."""
        stored = {name: torch.from_numpy(array) for name, array in tensors.read(path).items()}
        if not len(stored["lengths"]):
            return None
        return cls(stored["prefix"], stored["states"].split(stored["lengths"].tolist()))

    @staticmethod
    def write(frozen_states: FrozenItemStates | None, path: Path, made: Provenance) -> None:
        """To frozen_states.safetensors; an empty one where there is none."""
        prefix = frozen_states.prefix if frozen_states else torch.zeros(0, 1)
        states = torch.cat(list(frozen_states.states)) if frozen_states else torch.zeros(0, 1)
        lengths = np.array([len(s) for s in frozen_states.states] if frozen_states else [], dtype=np.int64)
        tensors.write({"prefix": prefix.numpy(), "states": states.numpy(), "lengths": lengths}, path, made)


def read_table(path: Path, catalogue: Path) -> Tensor:
    """Item vectors [m, d'] of items.safetensors; raises InputError where they are not of the catalogue's m items."""
    table = torch.from_numpy(tensors.read(path, "items")["items"])
    count = tables.read("catalogue", catalogue, ["row"]).num_rows
    if len(table) != count:
        raise InputError(f"{path} has {len(table)} items, but {catalogue} has {count}; run embed again")
    return table


class Items:
    """Embeds items, from their texts or from their frozen_states."""

    def __init__(self, policy: Policy, texts: Sequence[str], frozen_states: FrozenItemStates | None = None) -> None:
        self.policy = policy
        self.bodies = [policy.item_prompts.encode(text) for text in texts]
        self.frozen_states = frozen_states
        if frozen_states is not None and [len(s) for s in frozen_states.states] != [len(body) for body in self.bodies]:
            raise InputError("the frozen_states was made from another catalogue or tokenizer; run embed again")

    def __len__(self) -> int:
        return len(self.bodies)

    def bytes(self, frozen_states: bool) -> int:
        """What the table of all vectors, and the frozen_states where one is kept, take in float32."""
        tokens = sum(map(len, self.bodies)) if frozen_states and self.policy.frozen_layers else 0
        return 4 * self.policy.width * (len(self) + tokens)

    def batches(self, rows: Sequence[int]) -> list[list[int]]:
        """Places in `rows`, in batches of one pass each."""
        return list(self.policy.batches([self.bodies[row] for row in rows]))

    def embed(self, rows: Sequence[int] | None = None, what: str | None = None) -> Tensor:
        """Vectors [k, d] of catalogue rows, all by default; float32, not whitened.

        Pooling `last`: the state at the marker's last token; else the mean over what follows the instruction. Keeps
        gradients where they are enabled. `what` names a progress bar.
        """
        rows = range(len(self)) if rows is None else rows
        places, vectors = [], [torch.zeros(0, self.policy.width, device=self.policy.device)]  # a share may be empty
        with progress(what, len(rows), "items") if what else nullcontext() as bar:
            for batch in self.batches(rows):
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
        """Compute and use the frozen_states; None where every layer is trained."""
        depth = self.policy.frozen_layers
        if depth == 0:
            return None
        part = LayerSlice(self.policy.decoder, slice(0, depth))
        states: list[Tensor] = [torch.empty(0)] * len(self)
        prefix = torch.zeros(0, self.policy.width)
        with progress("frozen_states", len(self), "items") as bar:
            for batch in self.batches(range(len(self))):
                tree, hidden, valid = self._extend(part, self.policy.item_prompts.prefix, batch)
                prefix = tree.states[0].float().cpu()
                for row, state, count in zip(batch, hidden, valid.sum(1).tolist(), strict=True):
                    states[row] = state[:count].float().cpu()
                bar.add(len(batch))
        self.frozen_states = FrozenItemStates(prefix, states)
        return self.frozen_states

    def _read(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        if self.frozen_states is None:
            _, hidden, valid = self._extend(self.policy.decoder, self.policy.item_prompts.prefix, rows)
            return hidden.float(), valid
        kind = next(self.policy.decoder.parameters()).dtype
        part = LayerSlice(self.policy.decoder, slice(self.policy.frozen_layers, None))
        prefix = self.frozen_states.prefix.to(self.policy.device, kind)
        _, hidden, valid = self._extend(part, prefix, rows)
        return hidden.float(), valid

    def _extend(
        self, decoder: object, prefix: Sequence[int] | Tensor, rows: Sequence[int]
    ) -> tuple[BranchingCache, Tensor, Tensor]:
        tree = BranchingCache(decoder, prefix, len(rows))
        if isinstance(prefix, Tensor):
            assert self.frozen_states is not None
            given, valid = pad([self.frozen_states.states[row].to(prefix.dtype) for row in rows], tree.device)
        else:
            given, valid = pad([self.bodies[row] for row in rows], tree.device)
        branch = torch.full_like(valid, PROMPT, dtype=torch.long)
        positions = (len(prefix) + torch.arange(given.shape[1], device=tree.device)).expand_as(branch)
        return tree, tree.extend(given, valid, branch, positions), valid
