"""Whether minirec reads a model as the model reads itself (METHOD 2, model families): a check of a few tokens at load.

minirec reads completions side by side behind one prompt, begins above the frozen layers, and takes logits of states it
has kept. A family of models that computes anything else there is refused, whatever its name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from minirec.errors import InputError, one_line
from minirec.model import generate
from minirec.model.cache import BranchingCache, LayerSlice
from minirec.model.completions import texts_as_read
from minirec.model.policy import Policy
from minirec.progress import log

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}  # largest relative difference of the states, and of the logits
SLOW = 3.0
BODIES = ("x", "a longer text")
PREFIX, COMPLETIONS, TOKENS = 4, 6, 2  # tokens of the prefix that is read; completions of a prompt, their tokens


def warn_if_slow(dtype: str, device: torch.device) -> None:
    """Say so where the weights are in a type in which this CPU multiplies SLOW times as slowly as in float32."""
    if device.type == "cpu" and dtype != "float32":
        factor = _seconds(getattr(torch, dtype)) / _seconds(torch.float32)
        if factor > SLOW:
            text = "this CPU multiplies matrices in %s %.0f times as slowly as in float32; set policy.dtype to float32"
            log.warning(text, dtype, factor)


def _seconds(dtype: torch.dtype) -> float:
    """The least of three times that a product of small matrices takes."""
    one, other = torch.ones(64, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        one @ other
        taken.append(time.perf_counter() - started)
    return min(taken)


@torch.no_grad()
def require_supported(policy: Policy, name: str) -> None:
    """Raise InputError unless states and logits are those of plain passes; name: of the model, for the message."""
    kind = policy.model.config.model_type
    try:
        for what, found, expected in _compared(policy):
            gap = float((found - expected).norm() / expected.norm().clamp(min=1e-9))  # all may be 0
            if not gap <= TOLERANCE[policy.settings.dtype]:
                raise InputError(
                    f"{name} is of the type {kind}, for which {what} differ from those of a plain pass by {gap:.0%}; "
                    "take another model"
                )
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model raises that is called in a way it does not know
        raise InputError(
            f"{name} is of the type {kind}, which cannot read completions side by side ({one_line(error)}); "
            "take another model"
        ) from error


def _compared(policy: Policy) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Pairs of what minirec computes and what a plain pass gives, each with its name."""
    policy = replace(policy, settings=policy.settings.model_copy(update={"pooling": "last"}))
    policy.user_prompts = replace(policy.user_prompts, prefix=policy.user_prompts.prefix[:PREFIX])
    prompts = policy.user_bodies(BODIES)
    uniforms = torch.linspace(0, 0.99, len(BODIES) * COMPLETIONS * TOKENS, device=policy.device)
    uniforms = uniforms.view(len(BODIES), COMPLETIONS, TOKENS)
    written = generate.generate(policy, prompts, [TOKENS] * COMPLETIONS, uniforms, 2.0, keep_frozen_states=True)
    last = [group[-1] for group in texts_as_read(policy, written)]  # the others lie between it and its prompt
    texts = [[*policy.user_prompts.prefix, *prompt, *text] for prompt, text in zip(prompts, last, strict=True)]
    plain = torch.stack([_states(policy, text)[-1] for text in texts]).float()
    yield "the states of completions", written.hidden[:, -1], plain
    again = generate.teacher_forced(policy, prompts, replace(written, frozen_states=[]))[2]
    yield "the states of completions read again", again[:, -1], plain
    if policy.frozen_layers:
        above = generate.teacher_forced(policy, prompts, written)[2]
        yield "the states above the frozen layers", above[:, -1], plain
        below = BranchingCache(
            LayerSlice(policy.decoder, slice(0, policy.frozen_layers)), policy.user_prompts.prefix, 1
        )
        yield "the states of the frozen layers", below.prefix_states[0], written.frozen_states[0].prefix
    own = policy.model(input_ids=torch.tensor([texts[0]], device=policy.device), use_cache=False).logits[0].float()
    yield "the logits", policy.logits(_states(policy, texts[0])), own


def _states(policy: Policy, text: list[int]) -> Tensor:
    """States [t, d] of one text, read by the model alone."""
    ids = torch.tensor([text], device=policy.device)
    return policy.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
