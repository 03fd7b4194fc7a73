"""Several processes that train one policy (METHOD 3): their ranks, sums over them, and layers sharded over them.

A collective operation is one that all processes must call; with one process it returns its argument.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from minirec.progress import log

T = TypeVar("T")
_agreement: Any = None  # the processes' group that agrees on passes, where layers are sharded


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def log_idle_gpus() -> None:
    """Say so if this computer has more GPUs than processes that train."""
    if (gpus := torch.cuda.device_count()) > (processes := int(os.environ.get("LOCAL_WORLD_SIZE", "1"))):
        log.info("%d of %d GPUs are used; to use all, set the resource processes of train", processes, gpus)


def local_rows(total: int) -> list[int]:
    """The rows among 0..total-1 that this process works on: every `world_size`-th, from its rank."""
    return list(range(rank(), total, world_size()))


def all_reduce_sum(values: Tensor) -> Tensor:
    """Replace the values by their sum over the processes; all have the same shape."""
    if world_size() > 1:
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
        dist.barrier()


def shard(layers: Sequence[torch.nn.Module], device: torch.device) -> None:
    """Shard the frozen weights of layers over the processes with FSDP2, which gathers a layer at a time to use it.

    Adapters that are added later stay whole. From now on all processes must make the same passes in the same order: see
    `same_number` and `any_process`.
    """
    global _agreement
    mesh = init_device_mesh(device.type, (world_size(),))
    for layer in layers:
        fully_shard(layer.requires_grad_(False), mesh=mesh, reshard_after_forward=True)
    _agreement = dist.new_group(backend="gloo")  # on the CPU: no GPU is waited for


def sharded() -> bool:
    """Whether the layers are sharded, so that all processes must make the same passes."""
    return _agreement is not None


def ignored_by_ddp(model: torch.nn.Module) -> list[str]:
    """Names of the weights that FSDP shards, which accelerate's DDP must leave alone."""
    return [name for name, weight in model.named_parameters() if isinstance(weight, DTensor)]


def largest(value: int) -> int:
    """The largest of the processes' values if their layers are sharded; else this process's."""
    if _agreement is None:
        return value
    largest = torch.tensor(value)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=_agreement)
    return int(largest)


def any_process(wanted: bool) -> bool:
    """Whether any process wants it if their layers are sharded; else whether this one does."""
    return bool(largest(int(wanted)))


def same_number(batches: Sequence[T]) -> list[T | None]:
    """The batches; if the layers are sharded, also None, so often that every process has as many."""
    return [*batches, *[None] * (largest(len(batches)) - len(batches))]
