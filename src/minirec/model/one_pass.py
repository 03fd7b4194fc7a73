"""Read prompts and their completions in one differentiable pass that fits into memory (METHOD 3, memory)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from minirec.model import distributed
from minirec.model.cache import PROMPT, BranchingCache


class OnePass(BranchingCache):
    """Reads prompts and completions in one pass, after which no key is kept; layers are checkpointed for gradients.

    The rows share the keys of the prefix. But layers that FSDP shards are there for a gradient only where it comes from
    their states, not from their keys: each row then begins with the prefix.
    """

    prefix: Tensor | None = None  # with which each row begins

    def __init__(self, decoder: Any, prefix: Sequence[int] | Tensor, rows: int) -> None:
        """prefix: as for `BranchingCache`."""
        apart = distributed.sharded() and torch.is_grad_enabled()
        super().__init__(decoder, [] if apart else prefix, rows)
        self.prefix = torch.as_tensor(prefix, device=self.device) if apart else None
        self.cache.growing = False
        self.length = torch.full_like(self.length, len(prefix))

    def extend(self, tokens: Tensor, valid: Tensor, branch: Tensor, positions: Tensor) -> Tensor:
        """What `BranchingCache.extend` computes, once."""
        if self.cache.growing:  # it reads the prefix
            return super().extend(tokens, valid, branch, positions)
        count = 0 if self.prefix is None else len(self.prefix)
        if self.prefix is not None:
            first = torch.arange(count, device=self.device).expand(len(tokens), -1)
            tokens = torch.cat([self.prefix.expand(len(tokens), *self.prefix.shape), tokens], 1)
            valid = torch.cat([torch.ones_like(first, dtype=torch.bool), valid], 1)
            branch, positions = torch.cat([torch.full_like(first, PROMPT), branch], 1), torch.cat([first, positions], 1)
        with self._checkpointing() if torch.is_grad_enabled() else nullcontext():
            return super().extend(tokens, valid, branch, positions)[:, count:]

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Let each layer keep the states that enter it alone for a backward pass, which then runs it again.

        transformers' own checkpointing would take the cache away from the layers.
        """
        layers = [m for m in self.decoder.modules() if isinstance(m, GradientCheckpointingLayer)]
        before = [(layer, layer.__dict__.get("forward")) for layer in layers]
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer, forward in before:
                del layer.forward
                if forward is not None:
                    layer.forward = forward
