"""How much memory a training step needs, by part; `benchmarks/memory.py` compares the formula with real passes.

Backward keeps the states that enter each trained layer. It runs one layer at a time again, and keeps all of that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minirec.experiment import sections
from minirec.planning.workload import BYTES, LanguageModel, Shape

FLOAT = 4  # bytes
LOGITS_AT_ONCE = 2**26  # as in model/logits.py, which loads torch
LOGIT_BYTES = 14  # of a logit: copies in the model's dtype and in float32, and gradients
RECOMPUTATION = 1.4  # a layer that is run again also has gradients of some of what it keeps
NORMS = 3  # of a layer, each with a copy of the states in float32: most families have two, Gemma four
PREFIX_TOKENS = 64  # of the start that all prompts share, read once without checkpoints
OPTIMISER = 4  # numbers a trained weight: itself, its gradient, two moments of AdamW
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


@dataclass(frozen=True)
class Tokens:
    """How many tokens the passes of a training step have."""

    items: float  # of a pass over items
    reading: float  # of a micro-batch that is read again: prompts with their completions
    written: float  # of these, the completions' tokens
    row: float  # of one prompt with its completions
    frozen: float  # of all prompts and completions of the step, where their frozen states are kept; else 0


def tokens(
    model: LanguageModel, train: sections.Train, sampling: sections.Sampling, passes: int, micro_batch: int
) -> Tokens:
    """The tokens of a step. passes: resource `batch_tokens`; micro_batch: resource `micro_batch_prompts`."""
    prompts, written = min(micro_batch, train.batch_prompts), sampling.completions * sampling.max_new_tokens
    row = model.size.user_tokens + written
    items = min(passes, (train.batch_prompts + train.extra_negatives) * model.size.item_tokens)
    frozen = row * train.batch_prompts if model.above < 1 else 0
    return Tokens(items, row * prompts, written * prompts, row, frozen)


def parts(model: LanguageModel, shape: Shape, train: sections.Train, step: Tokens) -> dict[str, float]:
    """Bytes of a training step by part, at the moment when it needs most."""
    policy, b = model.policy, BYTES[model.policy.dtype]
    layers = min(policy.lora_layers or shape.layers, shape.layers)
    width = policy.whiten_dim or shape.width
    head = {"none": 0, "shared": 1, "separate": 2}[train.head] * width**2
    return {
        "weights": b * shape.parameters,
        "adapter, head and optimiser": FLOAT * OPTIMISER * (adapter_weights(shape, policy.lora_r, layers) + head),
        "item table": model.catalogue_bytes,
        "states that enter the layers, items": b * shape.width * layers * step.items,
        "frozen states of the step": b * shape.width * step.frozen,
        **of_a_pass(shape, policy, step),
    }


def of_a_pass(shape: Shape, policy: sections.Policy, step: Tokens) -> dict[str, float]:
    """Bytes by part of reading a micro-batch again, forth and back."""
    layers, b = min(policy.lora_layers or shape.layers, shape.layers), BYTES[policy.dtype]
    again = layer_bytes(shape, policy.dtype, policy.lora_targets, step.row)
    logits = LOGIT_BYTES * min(LOGITS_AT_ONCE, step.written * shape.head_parameters / shape.width)
    return {
        "states that enter the layers, prompts": b * shape.width * layers * step.reading,
        "the prefix of the prompts": again * layers * PREFIX_TOKENS,
        "one layer run again, or logits": max(RECOMPUTATION * again * max(step.items, step.reading), logits),
    }


def layer_bytes(shape: Shape, dtype: str, targets: Sequence[str], keys: float) -> float:
    """Bytes a token that a layer keeps for its gradient. targets: `policy.lora_targets`; keys: tokens it attends to."""
    b, adapted = BYTES[dtype], {*targets}
    if "all-linear" in adapted:
        adapted = {*ATTENTION, *MLP, "o_proj", "down_proj"}
    copies = len(adapted.intersection(ATTENTION + MLP)) if b != FLOAT else 2  # an adapter reads in float32
    inputs = FLOAT * (copies * shape.width + ("down_proj" in adapted) * shape.inner)
    inputs += FLOAT * ("o_proj" in adapted and b != FLOAT) * shape.attention
    scores = (FLOAT + b) * shape.heads * keys if shape.eager else 0
    return inputs + 3 * b * shape.inner + 4 * b * shape.attention + NORMS * FLOAT * shape.width + scores


def adapter_weights(shape: Shape, rank: int, layers: int) -> int:
    """Weights of adapters of this rank on all linear maps of so many layers."""
    mlp, attention = 3 * (shape.width + shape.inner), 2 * (shape.width + shape.attention)
    return rank * layers * (mlp + attention + 2 * (shape.width + shape.keys))
