"""The item table of a policy in training: refreshed whole now and then, and for the items of every batch (METHOD 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minirec.model import distributed
from minirec.model.items import ItemEncoder
from minirec.model.whitening import Head


@dataclass
class BatchItems:
    """The items of an optimiser batch's softmax, the same in every process."""

    rows: Tensor  # [k], catalogue rows: the distinct targets, ascending, then the extra negatives
    vectors: Tensor  # [k, d'], whitened, before the head; a leaf that collects the gradient
    own: list[int]  # positions in `rows` that this process embeds
    graph: Tensor | None  # the own vectors with their autograd graph, where it fits into one pass


class ItemTable:
    """Item vectors [m, d'] of the whole catalogue, kept before the head, which is applied wherever they are used."""

    def __init__(self, encoder: ItemEncoder, head: Head, whitened: Tensor) -> None:
        self.encoder, self.policy, self.head = encoder, encoder.policy, head
        self.whitened = whitened.clone().to(self.policy.device)

    def __len__(self) -> int:
        return len(self.whitened)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """The table with the head as trained so far; what the adapter has changed waits for a refresh."""
        return self.head.whitened_item(self.whitened)

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute the whole table with the current adapter; every process embeds its share."""
        self.policy.model.eval()
        own = self._embed(distributed.local_rows(len(self.encoder)))
        self.whitened = distributed.gathered(own, len(self.encoder))

    def refresh_batch(self, rows: Tensor, learned: bool) -> BatchItems:
        """Recompute the items of a batch, with gradients where they are learned.

        Embedding that needs several passes keeps no graph: `backward` runs each pass again.
        """
        wanted = rows.tolist()
        own = distributed.local_rows(len(wanted))
        keep = learned and len(self.encoder.length_batches([wanted[place] for place in own])) == 1
        self.policy.model.train(keep)
        with torch.set_grad_enabled(keep):
            vectors = self._embed([wanted[place] for place in own])
        gathered = distributed.gathered(vectors.detach(), len(wanted))
        items = BatchItems(rows, gathered.requires_grad_(learned), own, vectors if keep else None)
        self.whitened[rows] = items.vectors.detach()
        return items

    def backward(self, items: BatchItems) -> None:
        """Carry the gradient collected at the item vectors on to the adapter, a pass of `batch_tokens` at a time."""
        if not items.vectors.requires_grad:
            return
        collected = torch.zeros_like(items.vectors) if items.vectors.grad is None else items.vectors.grad
        gradient = distributed.all_reduce_sum(collected)[items.own]
        if items.graph is not None:
            items.graph.backward(gradient)
            return
        wanted = items.rows[items.own].tolist()
        for places in self.encoder.length_batches(wanted):
            self._embed([wanted[place] for place in places]).backward(gradient[places])

    def _embed(self, rows: list[int]) -> Tensor:
        """Whitened vectors [k, d'] of catalogue rows, before the head."""
        return self.head.whitening.item(self.encoder.embed(rows))
