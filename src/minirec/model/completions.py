"""Completions: what was written for a prompt, where it ends, and what the policy reads of it (METHOD 2, user side)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minirec.model.policy import Policy


@dataclass(frozen=True)
class FrozenStates:
    """States of a prompt and its completions that enter the first trainable layer: no lower layer need run again."""

    prefix: Tensor  # [p, d], of the start that all prompts share
    prompt: Tensor  # [t, d], of the rest of the prompt
    completions: list[Tensor]  # G tensors [t, d], a forced marker included


@dataclass
class Completions:
    """G completions of each of n prompts."""

    tokens: list[list[list[int]]]  # [n][G]: sampled token ids, an end-of-turn token included, a forced marker not
    forced: list[list[bool]]  # [n][G]: whether the marker was missing, so that it was forced, see `with_marker`
    hidden: Tensor  # [n, G, d]: pooled state, float32, not whitened; [n, G, 0] if the policy has not read them yet
    frozen_states: list[FrozenStates]  # [n]; empty if they were not kept
    log_p: list[list[list[float]]] = field(default_factory=list)  # [n][G]: of `tokens` at temperature 1, by the engine
    # that sampled them; empty if this policy did

    @property
    def were_read(self) -> bool:
        """Whether the policy has read them, so that their states are there."""
        return self.hidden.shape[-1] > 0

    def take(self, rows: Sequence[int]) -> Completions:
        """The completions of these prompts, in this order."""
        frozen_states = [self.frozen_states[row] for row in rows] if self.frozen_states else []
        tokens, forced = [self.tokens[row] for row in rows], [self.forced[row] for row in rows]
        log_p = [self.log_p[row] for row in rows] if self.log_p else []
        return Completions(tokens, forced, self.hidden[list(rows)], frozen_states, log_p)

    @classmethod
    def none(cls, policy: Policy, groups: int) -> Completions:
        """The completions of no prompt, `groups` of each."""
        return cls([], [], torch.zeros(0, groups, policy.width, device=policy.device), [])

    @classmethod
    def concatenate(cls, batches: Sequence[Completions]) -> Completions:
        """The completions of several batches, one after another."""
        return cls(
            [row for batch in batches for row in batch.tokens],
            [row for batch in batches for row in batch.forced],
            torch.cat([batch.hidden for batch in batches]),
            [row for batch in batches for row in batch.frozen_states],
            [row for batch in batches for row in batch.log_p],
        )

    @classmethod
    def in_order(cls, batches: Sequence[Completions], order: Sequence[int]) -> Completions:
        """The completions of all prompts in their order; order: the number of each prompt, batch by batch."""
        return cls.concatenate(batches).take(sorted(range(len(order)), key=order.__getitem__))


def has_marker(policy: Policy, tokens: Sequence[int]) -> bool:
    """Whether the last of these tokens completes the marker, however the marker is split into tokens."""
    marker = policy.settings.marker
    return marker in policy.tokenizer.decode(tokens[-len(marker.encode()) :])  # a token is a byte or more


def marker_missing(policy: Policy, tokens: Sequence[int], limit: int) -> bool | None:
    """None if a completion goes on after these tokens; else whether it has ended without the marker."""
    if has_marker(policy, tokens):
        return False
    return True if tokens[-1] in policy.eos_ids or len(tokens) == limit else None


def truncate(policy: Policy, tokens: Sequence[int], limit: int) -> tuple[list[int], bool]:
    """Truncate a completion after its marker, an end-of-turn token or `limit` tokens; also whether it has no marker."""
    for count in range(1, min(len(tokens), limit) + 1):
        missing = marker_missing(policy, tokens[:count], limit)
        if missing is not None:
            return list(tokens[:count]), missing
    return list(tokens[:limit]), True


def with_marker(policy: Policy, tokens: Sequence[int]) -> list[int]:
    """What the policy reads of a completion without the marker: the marker is appended, or replaces its end of turn."""
    ended = bool(tokens) and tokens[-1] in policy.eos_ids
    return [*(tokens[:-1] if ended else tokens), *policy.marker_ids]


def texts_as_read(policy: Policy, completions: Completions) -> list[list[list[int]]]:
    """Token ids [n][G] that the policy reads of each completion, forced markers included."""
    return [
        [with_marker(policy, tokens) if forced else tokens for tokens, forced in zip(*row, strict=True)]
        for row in zip(completions.tokens, completions.forced, strict=True)
    ]


def share_states(policy: Policy, completions: Completions) -> Completions:
    """Give completions of a prompt of which the policy reads the same tokens the same state.

    In bfloat16 the last bits can differ, and standardising the rewards would turn that noise into advantages.
    """
    hidden = completions.hidden
    first = torch.tensor([[row.index(text) for text in row] for row in texts_as_read(policy, completions)])
    return replace(completions, hidden=hidden.gather(1, first.to(hidden.device)[..., None].expand_as(hidden)))
