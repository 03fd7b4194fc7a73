"""Logits of the next token and log-probabilities of tokens at hidden states, as the model itself computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

LOGITS_AT_ONCE = 2**26  # numbers; 256 MiB in float32


@dataclass
class _Read(BaseModelOutputWithPastAndCrossAttentions):
    """What a decoder returns, for every family of models."""

    router_logits: Any = None


def logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits of the next token [..., vocabulary], float32, at hidden states [..., d] of a causal language model.

    The model computes them, as some scale or cap what their head gives; its decoder only hands over the states.
    """
    decoder, states = model.get_decoder(), hidden.reshape(1, -1, hidden.shape[-1])
    decoder.forward = lambda *_, **__: _Read(last_hidden_state=states)
    try:
        found = model(inputs_embeds=states, use_cache=False).logits
    finally:
        del decoder.forward
    return found.reshape(*hidden.shape[:-1], found.shape[-1]).float()


def token_log_p(model: Any, states: Tensor, ids: Tensor) -> Tensor:
    """Log-probability [k], at temperature 1, of the token ids [k] that follow the states [k, d]; differentiable.

    Many logits are not kept for the backward pass, which computes them again, a part of the tokens at a time.
    """

    def log_p(states: Tensor, ids: Tensor) -> Tensor:
        return logits(model, states).log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)

    size = max(1, LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
    if len(ids) <= size:
        return log_p(states, ids)
    parts = zip(states.split(size), ids.split(size), strict=True)
    return torch.cat([checkpoint(log_p, *part, use_reentrant=False) for part in parts])
