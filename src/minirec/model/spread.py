"""Frozen layers spread over the processes: each keeps a part of every layer, and has one whole layer at a time.

The processes need layers at different moments and not equally often: their texts differ in length, their shares in the
number of passes. So none waits for another to come to the same place. A process that needs a layer says so, and the
others, wherever they are, join in gathering it when they need one themselves, until everyone had a turn.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.graph import saved_tensors_hooks

from minirec.model import distributed

NONE = -1  # no layer
ALIGNED = 64  # bytes: every weight starts where kernels like it


class ShardedLayers:
    """Takes the weights of layers apart, for good. Adapters that are added later stay whole."""

    def __init__(self, layers: Sequence[Any], device: torch.device) -> None:
        """The layers lie on the CPU, without adapters; every process calls this with the same ones."""
        weights = [list(layer.parameters()) for layer in layers]
        longest = max(sum(map(_room, of_layer)) for of_layer in weights)
        part = -(-longest // (ALIGNED * distributed.world_size())) * ALIGNED
        self.whole = torch.zeros(part * distributed.world_size(), dtype=torch.uint8, device=device)  # the layer `here`
        self.here = NONE
        self.parts = [self._take(ws).split(part)[distributed.rank()].to(device, copy=True) for ws in weights]
        self.words = dist.new_group(backend="gloo")  # which layer is wanted: no GPU is waited for
        for number, (layer, of_layer) in enumerate(zip(layers, weights, strict=True)):
            layer.forward = self._needing(number, of_layer, layer.forward)
        distributed.on_collective(self.finish_gathers)

    def _take(self, weights: list[Any]) -> Tensor:
        """The bytes of a layer, whose weights own none from now on."""
        start, taken = 0, torch.zeros(len(self.whole), dtype=torch.uint8)
        for weight in weights:
            taken[start : start + weight.nbytes] = weight.detach().contiguous().flatten().view(torch.uint8)
            start += _room(weight)
        self._lend(weights)
        return taken

    def _lend(self, weights: list[Any]) -> None:
        """Let the weights of a layer be views of the layer that is whole."""
        start = 0
        for weight in weights:
            weight.data = self.whole[start : start + weight.nbytes].view(weight.dtype).view(weight.shape)
            start += _room(weight)

    def _needing(self, number: int, weights: list[Any], forward: Any) -> Any:
        """A layer's forward pass that has its weights at hand, also when gradients come back through it."""

        def unpack(saved: Tensor) -> Tensor:
            if saved.untyped_storage().data_ptr() == self.whole.untyped_storage().data_ptr():
                self.fetch(number)
            return saved

        @functools.wraps(forward)
        def fetching(*positional: Any, **named: Any) -> Any:
            self.fetch(number)
            self._lend(weights)  # again: on a CPU, accelerate's `to` copies them
            with saved_tensors_hooks(lambda tensor: tensor, unpack):
                return forward(*positional, **named)

        return fetching

    def fetch(self, number: int) -> None:
        """Make a layer whole, others before it where other processes want them."""
        while self.here != number:
            self._serve(number)

    def finish_gathers(self) -> None:
        """Return when no process wants a layer: all have come to where they talk of something else."""
        while self._serve(NONE) != NONE:
            pass

    def _serve(self, wanted: int) -> int:
        """Gather the highest layer that any process wants; which one that was."""
        asked = torch.tensor(wanted)
        dist.all_reduce(asked, dist.ReduceOp.MAX, group=self.words)
        served = int(asked)
        if served != NONE:
            dist.all_gather_into_tensor(self.whole, self.parts[served])
            self.here = served
        return served


def _room(weight: Tensor) -> int:
    """Bytes from the start of a weight to that of the next."""
    return -(-weight.nbytes // ALIGNED) * ALIGNED
