"""Several processes that train as one (`launch`): who does what, and what they tell each other.

With one process all of it does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def _nothing() -> None:
    pass


_before_collective: Callable[[], None] = _nothing


def on_collective(settle: Callable[[], None]) -> None:
    """Have this, and nothing else, called in every process before they talk through this module."""
    global _before_collective
    _before_collective = settle


def rank() -> int:
    """Which of the processes this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_rows(total: int) -> list[int]:
    """The rows of 0..total that are this process's own."""
    return list(range(rank(), total, world_size()))


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum of the processes' tensors of one shape, in place."""
    if world_size() > 1:
        _before_collective()
        distributed.all_reduce(values)
    return values


def gathered(own: Tensor, total: int) -> Tensor:
    """The rows [total, d] of which every process has computed its share."""
    if world_size() == 1:
        return own
    whole = torch.zeros(total, *own.shape[1:], dtype=own.dtype, device=own.device)
    whole[local_rows(total)] = own
    return all_reduce_sum(whole)


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every process the sum of their gradients."""
    if world_size() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    flat = all_reduce_sum(parameters_to_vector(torch.zeros_like(p) if p.grad is None else p.grad for p in trained))
    for p in trained:
        p.grad = torch.empty_like(p)
    vector_to_parameters(flat, [p.grad for p in trained if p.grad is not None])


@contextmanager
def first_rank_alone() -> Iterator[bool]:
    """A block that says whether this is the first process; the others leave it when the first one has."""
    yield rank() == 0
    if world_size() > 1:
        _before_collective()
        distributed.barrier()
