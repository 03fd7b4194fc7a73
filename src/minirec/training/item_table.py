"""The item table during training: the batch's items are refreshed every step, all items now and then (METHOD 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minirec.model import distributed
from minirec.model.items import ItemEncoder
from minirec.model.whitening import Head


@dataclass
class BatchItems:
    """The items of the item loss's softmax in an optimiser batch, the same in every process."""

    rows: Tensor  # [k], catalogue rows: the distinct targets, ascending, then the extra negatives
    vectors: Tensor  # [k, d'], whitened, before the head; a leaf tensor that collects the gradient
    local: list[int]  # positions in `rows` that this process embeds
    graph: Tensor | None  # the local vectors with their autograd graph; None if they need several passes


class ItemTable:
    """Item vectors [m, d'] of the whole catalogue, kept before the head, which is applied when they are used."""

    def __init__(self, encoder: ItemEncoder, head: Head, whitened: Tensor) -> None:
        self.encoder, self.policy, self.head = encoder, encoder.policy, head
        self.whitened = whitened.clone().to(self.policy.device)

    def __len__(self) -> int:
        return len(self.whitened)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """The table [m, d'] after the present head; the adapter may have changed since the table was computed."""
        return self.head.whitened_item(self.whitened)

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute the whole table with the current adapter; each process embeds its `local_rows`."""
        local = self._embed(distributed.local_rows(len(self.encoder)))
        self.whitened = distributed.gathered(local, len(self.encoder))

    def refresh_batch(self, rows: Tensor, learned: bool) -> BatchItems:
        """Recompute the items of a batch, catalogue rows [k]; learned: they will get a gradient.

        If this process needs several passes for its items, no graph is kept, and `backward` runs each pass again.
        """
        local = distributed.local_rows(len(rows))
        local_items = rows[local].tolist()
        keep = learned and not distributed.any_process(len(self.encoder.length_batches(local_items)) != 1)
        with torch.set_grad_enabled(keep):
            vectors = self._embed(local_items)
        gathered = distributed.gathered(vectors.detach(), len(rows))
        items = BatchItems(rows, gathered.requires_grad_(learned), local, vectors if keep else None)
        self.whitened[rows] = items.vectors.detach()
        return items

    def backward(self, items: BatchItems) -> None:
        """Propagate the gradient that the item vectors have collected to the adapter, one pass at a time."""
        if not items.vectors.requires_grad:
            return
        collected = torch.zeros_like(items.vectors) if items.vectors.grad is None else items.vectors.grad
        gradient = distributed.all_reduce_sum(collected)[items.local]
        if items.graph is not None:
            items.graph.backward(gradient)
            return
        local_items = items.rows[items.local].tolist()
        for places in distributed.same_number(self.encoder.length_batches(local_items)):
            vectors = self._embed([0] if places is None else [local_items[place] for place in places])
            vectors.backward(torch.zeros_like(vectors) if places is None else gradient[places])

    def _embed(self, rows: list[int]) -> Tensor:
        """Whitened vectors [k, d'] of catalogue rows, before the head."""
        return self.head.whitening.item(self.encoder.embed(rows))
