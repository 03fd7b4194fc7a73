"""Several processes that train one policy (METHOD 3): their ranks, sums over them, and layers sharded over them.

A collective operation is one that all processes must call; with one process it returns its argument.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parameters_to_vector, vector_to_parameters

NO_LAYER = -1
ALIGNMENT = 64  # bytes: every weight starts at a multiple of this, as GPU kernels expect


def _nothing() -> None:
    pass


_before_collective: Callable[[], None] = _nothing


def on_collective(callback: Callable[[], None]) -> None:
    """Register the one callback that every process runs before each collective operation of this module."""
    global _before_collective
    _before_collective = callback


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rows(total: int) -> list[int]:
    """The rows among 0..total-1 that this process works on: every `world_size`-th, from its rank."""
    return list(range(rank(), total, world_size()))


def all_reduce_sum(values: Tensor) -> Tensor:
    """Replace the values by their sum over the processes; all have the same shape."""
    if world_size() > 1:
        _before_collective()
        dist.all_reduce(values)
    return values


def gathered(local: Tensor, total: int) -> Tensor:
    """All rows [total, d]; local: those that this process has computed, its `local_rows`."""
    if world_size() == 1:
        return local
    whole = torch.zeros(total, *local.shape[1:], dtype=local.dtype, device=local.device)
    whole[local_rows(total)] = local
    return all_reduce_sum(whole)


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace the gradients of the trained parameters by their sums over the processes."""
    if world_size() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    flat = all_reduce_sum(parameters_to_vector(torch.zeros_like(p) if p.grad is None else p.grad for p in trained))
    for p in trained:
        p.grad = torch.empty_like(p)
    vector_to_parameters(flat, [p.grad for p in trained if p.grad is not None])


@contextmanager
def first_rank_alone() -> Iterator[bool]:
    """Yield whether this process is rank 0; at the end of the block every process waits for all others."""
    yield rank() == 0
    if world_size() > 1:
        _before_collective()
        dist.barrier()


class ShardedLayers:
    """Shards the frozen layers' weights over the processes; one layer at a time is gathered whole, as in ZeRO-3.

    Processes need layers at different times and unequally often, as their texts differ in length and their numbers of
    passes differ. So all agree on every gather: a process that needs a layer requests it, and the others join in when
    they need a layer themselves or come to another collective operation.
    """

    def __init__(self, layers: Sequence[Any], device: torch.device) -> None:
        """Take the weights out of the layers; from now on `layers` work only through this object.

        They lie on the CPU, the same ones in every process; adapters may be added later and are not sharded.
        """
        weights = [list(layer.parameters()) for layer in layers]
        longest = max(sum(map(_aligned_bytes, of_layer)) for of_layer in weights)
        shard = -(-longest // (ALIGNMENT * world_size())) * ALIGNMENT
        self.whole = torch.zeros(shard * world_size(), dtype=torch.uint8, device=device)  # the layer `gathered`
        self.gathered = NO_LAYER
        self.shards = [self._take(ws).split(shard)[rank()].to(device, copy=True) for ws in weights]
        self.requests = dist.new_group(backend="gloo")  # agrees on layers on the CPU: no GPU is waited for
        for number, (layer, of_layer) in enumerate(zip(layers, weights, strict=True)):
            layer.forward = self._gathering(number, of_layer, layer.forward)
        on_collective(self.finish_gathers)

    def _take(self, weights: list[Any]) -> Tensor:
        """Copy a layer's weights out as bytes, and make the weights views of `whole`."""
        start, taken = 0, torch.zeros(len(self.whole), dtype=torch.uint8)
        for weight in weights:
            taken[start : start + weight.nbytes] = weight.detach().contiguous().flatten().view(torch.uint8)
            start += _aligned_bytes(weight)
        self._point_to_whole(weights)
        return taken

    def _point_to_whole(self, weights: list[Any]) -> None:
        """Make a layer's weights views of `whole`, the gathered layer."""
        start = 0
        for weight in weights:
            weight.data = self.whole[start : start + weight.nbytes].view(weight.dtype).view(weight.shape)
            start += _aligned_bytes(weight)

    def _gathering(self, number: int, weights: list[Any], forward: Any) -> Any:
        """Wrap a layer's forward so that its full weights are gathered before forward and backward."""

        def unpack(saved: Tensor) -> Tensor:
            if saved.untyped_storage().data_ptr() == self.whole.untyped_storage().data_ptr():
                self.gather(number)
            return saved

        @functools.wraps(forward)
        def gathering(*args: Any, **kwargs: Any) -> Any:
            self.gather(number)
            self._point_to_whole(weights)  # again: on a CPU, accelerate's `to` copies them
            with saved_tensors_hooks(lambda tensor: tensor, unpack):
                return forward(*args, **kwargs)

        return gathering

    def gather(self, number: int) -> None:
        """Gather a layer's full weights; requests of other processes may be answered before."""
        while self.gathered != number:
            self._answer(number)

    def finish_gathers(self) -> None:
        """Answer the other processes' requests until none is pending; call before any other collective operation."""
        while self._answer(NO_LAYER) != NO_LAYER:
            pass

    def _answer(self, wanted: int) -> int:
        """Gather the highest layer that any process requests, this one `wanted`; returns its number, or NO_LAYER."""
        request = torch.tensor(wanted)
        dist.all_reduce(request, dist.ReduceOp.MAX, group=self.requests)
        served = int(request)
        if served != NO_LAYER:
            dist.all_gather_into_tensor(self.whole, self.shards[served])
            self.gathered = served
        return served


def _aligned_bytes(weight: Tensor) -> int:
    """Bytes of a weight, rounded up to a multiple of ALIGNMENT."""
    return -(-weight.nbytes // ALIGNMENT) * ALIGNMENT
