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


_settle: Callable[[], None] = _nothing


def before_talking(settle: Callable[[], None]) -> None:
    """Have this, and nothing else, called in every process before they talk through this module."""
    global _settle
    _settle = settle


def number() -> int:
    """Which of the processes this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """How many there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(total: int) -> list[int]:
    """The rows of 0..total that are this process's own."""
    return list(range(number(), total, count()))


def add_up(values: Tensor) -> Tensor:
    """Sum of the processes' tensors of one shape, in place."""
    if count() > 1:
        _settle()
        distributed.all_reduce(values)
    return values


def gathered(own: Tensor, total: int) -> Tensor:
    """The rows [total, d] of which every process has computed its share."""
    if count() == 1:
        return own
    whole = torch.zeros(total, *own.shape[1:], dtype=own.dtype, device=own.device)
    whole[share(total)] = own
    return add_up(whole)


def add_up_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every process the sum of their gradients."""
    if count() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    flat = add_up(parameters_to_vector(torch.zeros_like(p) if p.grad is None else p.grad for p in trained))
    for p in trained:
        p.grad = torch.empty_like(p)
    vector_to_parameters(flat, [p.grad for p in trained if p.grad is not None])


@contextmanager
def first_alone() -> Iterator[bool]:
    """A block that says whether this is the first process; the others leave it when the first one has."""
    yield number() == 0
    if count() > 1:
        _settle()
        distributed.barrier()
