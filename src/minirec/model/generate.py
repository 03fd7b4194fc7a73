"""Write completions, and compute their token probabilities and states with gradients (METHOD 2, user side)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from minirec.model import distributed
from minirec.model.cache import BranchingCache, BranchReader, LayerSlice, pad
from minirec.model.one_pass import OnePass
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.progress import progress


def completion_uniforms(seed: int, sample_id: int, completion: int, count: int, epoch: int = 0) -> np.ndarray:
    """The first `count` random numbers in [0, 1) of one completion; the other arguments alone determine them.

    >>> three, two = completion_uniforms(0, 17, 1, 3), completion_uniforms(0, 17, 1, 2)
    >>> bool((three[:2] == two).all())
    True
    """
    return np.random.Generator(np.random.Philox(key=[seed, sample_id], counter=[0, 0, completion, epoch])).random(count)


def sampling_uniforms(seed: int, sample_ids: Sequence[int], completions: int, count: int, epoch: int = 0) -> Tensor:
    """The `completion_uniforms` of all completions of some samples, as one tensor [n, G, count]."""
    rows = [[completion_uniforms(seed, int(s), g, count, epoch) for g in range(completions)] for s in sample_ids]
    return torch.from_numpy(np.array(rows))


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
            torch.cat([batch.hidden for batch in batches]) if batches else torch.empty(0),
            [row for batch in batches for row in batch.frozen_states],
            [row for batch in batches for row in batch.log_p],
        )


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    keep_frozen_states: bool = False,
) -> Completions:
    """Write G completions of each prompt of a batch, and pool their states.

    prompts: token ids without the prefix that all share. limits [G]: most tokens of each completion; 0: the completion
    is empty, and the marker follows at once. uniforms [n, G, max(limits)]: a random number in [0, 1) for each token,
    which is the quantile of the distribution over tokens from likely to unlikely; None: greedy decoding.
    keep_frozen_states: keep what lets `teacher_forced` skip the frozen layers.
    """
    require_context(policy, prompts, max(limits))
    n, groups = len(prompts), len(limits)
    frozen_layers = policy.frozen_layers if keep_frozen_states else 0
    cache = BranchingCache(policy.decoder, policy.user_prompts.prefix, n, frozen_layers)
    prefix = cache.frozen_states[0] if frozen_layers else None
    state = cache.read(prompts)[:, None, :].expand(n, groups, -1)
    prompt = cache.frozen_states if frozen_layers else None
    reader = _reader(policy, cache, groups)
    drafts = _Drafts(policy, n, limits)
    step, unfinished = 0, distributed.any_process(bool(drafts.open))
    while unfinished:
        if drafts.open:
            i, g = (torch.tensor(index, device=policy.device) for index in zip(*drafts.open, strict=True))
            quantiles = None if uniforms is None else uniforms[i, g, step]
            drafts.append(sample_tokens(policy.logits(state[i, g]), quantiles, temperature, top_k).tolist())
            step += 1
        unfinished = distributed.any_process(bool(drafts.open))
        if drafts.open:
            state = reader.read(drafts.next_unread())
        elif unfinished:  # in another process, which needs the layers
            policy.decoder(input_ids=torch.zeros(1, 1, dtype=torch.long, device=policy.device), use_cache=False)
    reader.read(drafts.unread)
    frozen_states = []
    if prefix is not None and prompt is not None:
        texts = reader.frozen_states()
        frozen_states = [FrozenStates(prefix, prompt[i, : len(p)], texts[i]) for i, p in enumerate(prompts)]
    completions = Completions(drafts.tokens, drafts.forced, reader.pooled(), frozen_states)
    return share_states(policy, completions)


def stand_in(policy: Policy, limits: Sequence[int]) -> Completions:
    """Write meaningless completions, of no prompt: other processes share the layers and need the passes."""
    uniforms = torch.zeros(1, len(limits), max(limits), device=policy.device)
    return generate(policy, [[0]], limits, uniforms, keep_frozen_states=True)


def require_context(policy: Policy, prompts: Sequence[Sequence[int]], limit: int) -> None:
    """Raise InputError if a prompt with `limit` tokens and the marker after it is longer than the model's context."""
    longest = max(map(len, prompts), default=0) + limit + len(policy.marker_ids)
    policy.require_context(
        len(policy.user_prompts.prefix) + longest, "sampling.max_new_tokens or policy.prompt_history"
    )


class _Drafts:
    """Completions being written: their tokens so far, tokens the model has not read yet, and which are unfinished."""

    def __init__(self, policy: Policy, rows: int, limits: Sequence[int]) -> None:
        self.policy, self.limits = policy, limits
        self.tokens: list[list[list[int]]] = [[[] for _ in limits] for _ in range(rows)]
        self.unread = [[[] if limit > 0 else list(policy.marker_ids) for limit in limits] for _ in range(rows)]
        self.forced = [[True] * len(limits) for _ in range(rows)]
        self.open = [(i, g) for i in range(rows) for g, limit in enumerate(limits) if limit > 0]

    def append(self, chosen: Sequence[int]) -> None:
        """Add a token to each unfinished completion; if that ends it without the marker, the marker follows."""
        still_open = []
        for (i, g), token in zip(self.open, chosen, strict=True):
            self.tokens[i][g].append(token)
            self.unread[i][g].append(token)
            missing = marker_missing(self.policy, self.tokens[i][g], self.limits[g])
            if missing is None:
                still_open.append((i, g))
            elif missing:
                self.unread[i][g] = with_marker(self.policy, [token])
            else:
                self.forced[i][g] = False
        self.open = still_open

    def next_unread(self) -> list[list[list[int]]]:
        """Take the first unread token, or none, of each completion [n][G]."""
        first = [[tokens[:1] for tokens in row] for row in self.unread]
        self.unread = [[tokens[1:] for tokens in row] for row in self.unread]
        return first


@torch.no_grad()
def user_states(
    policy: Policy, bodies: Sequence[str], count: int | None = None, whitening: Whitening | None = None
) -> Tensor:
    """States [n, d] of users after an empty completion, on the CPU; with a whitening, whitened ones [n, k].

    bodies: the histories as text, see `Split.bodies`, in the order of time. count: take so many of them, evenly spread.
    """
    whitening = whitening or Whitening.identity()
    rows = np.linspace(0, len(bodies) - 1, min(count or len(bodies), len(bodies))).round().astype(int)
    prompts = policy.user_bodies([bodies[row] for row in rows])
    states = torch.zeros(len(prompts), whitening.size(policy.width))
    with progress("users", len(prompts), "prompts") as bar:
        for batch in policy.length_batches(prompts, extra=len(policy.marker_ids)):
            hidden = generate(policy, [prompts[row] for row in batch], limits=[0]).hidden[:, 0]
            states[batch] = whitening.user(hidden).cpu()
            bar.add(len(batch))
    return states


@torch.no_grad()
def from_tokens(
    policy: Policy, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[Sequence[int]]], limit: int
) -> Completions:
    """Make what `generate` returns from completions that another engine sampled; texts [n][G]: their token ids.

    Each is truncated where `generate` would have ended it. The policy has not read them yet, see `with_states`.
    """
    require_context(policy, prompts, limit)
    truncated = [[truncate(policy, tokens, limit) for tokens in row] for row in texts]
    tokens = [[kept for kept, _ in row] for row in truncated]
    unread = torch.empty(len(prompts), len(texts[0]) if texts else 0, 0, device=policy.device)
    return Completions(tokens, [[forced for _, forced in row] for row in truncated], unread, [])


def with_states(policy: Policy, prompts: Sequence[Sequence[int]], completions: Completions) -> Completions:
    """The completions with their pooled states, by one pass over prompts and completions."""
    _, reader = _read_completions(policy, prompts, completions)
    return share_states(policy, replace(completions, hidden=reader.pooled()))


def teacher_forced(
    policy: Policy, prompts: Sequence[Sequence[int]], completions: Completions
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and pooled states of completions, by one differentiable pass over prompts and completions.

    Returns the log-probability of each sampled token at temperature 1 [n, G, T], which of these entries are not padding
    [n, G, T], and the pooled states [n, G, d]. If the completions have frozen states, only the layers above them run.
    """
    n, groups = len(prompts), len(completions.tokens[0])
    first, reader = _read_completions(policy, prompts, completions)
    longest = max(len(tokens) for row in completions.tokens for tokens in row)
    ids, real = pad([tokens for row in completions.tokens for tokens in row], policy.device)
    ids, real = ids.view(n, groups, longest), real.view(n, groups, longest)
    before = torch.cat([first[:, None, None, :].expand(n, groups, 1, -1), reader.states], 2)[:, :, :longest]
    log_probability = torch.zeros(n, groups, longest, device=policy.device)
    log_probability[real] = policy.log_p(before[real], ids[real])
    return log_probability, real, reader.pooled()


def has_marker(policy: Policy, tokens: Sequence[int]) -> bool:
    """Whether the last of these tokens completes the marker, however the marker is split into tokens."""
    marker = policy.settings.marker
    return marker in policy.tokenizer.decode(tokens[-len(marker.encode()) :])  # a token is a byte or more


def with_marker(policy: Policy, tokens: Sequence[int]) -> list[int]:
    """What the policy reads of a completion without the marker: the marker is appended, or replaces its end of turn."""
    ended = bool(tokens) and tokens[-1] in policy.eos_ids
    return [*(tokens[:-1] if ended else tokens), *policy.marker_ids]


def texts(policy: Policy, completions: Completions) -> list[list[list[int]]]:
    """Token ids [n][G] that the policy reads of each completion, forced markers included."""
    return [
        [with_marker(policy, tokens) if forced else tokens for tokens, forced in zip(*row, strict=True)]
        for row in zip(completions.tokens, completions.forced, strict=True)
    ]


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


def _read_completions(
    policy: Policy, prompts: Sequence[Sequence[int]], completions: Completions
) -> tuple[Tensor, BranchReader]:
    """Read prompts and completions; returns the states at the prompts' last tokens [n, d], and the reader."""
    n, groups = len(prompts), len(completions.tokens[0])
    frozen_states = completions.frozen_states
    if frozen_states:
        trainable = LayerSlice(policy.decoder, slice(policy.frozen_layers, None))
        reader = _reader(policy, OnePass(trainable, frozen_states[0].prefix, n), groups)
        first = reader.read_with_prompts(
            [row.prompt for row in frozen_states], [row.completions for row in frozen_states]
        )
    else:
        cache = OnePass(policy.decoder, policy.user_prompts.prefix, n)
        reader = _reader(policy, cache, groups)
        first = reader.read_with_prompts(prompts, texts(policy, completions))
    return first, reader


def _reader(policy: Policy, cache: BranchingCache, branches: int) -> BranchReader:
    return BranchReader(cache, branches, policy.width, policy.settings.pooling)


def share_states(policy: Policy, completions: Completions) -> Completions:
    """Give completions of a prompt of which the policy reads the same tokens the same state.

    In bfloat16 the last bits can differ, and standardising the rewards would turn that noise into advantages.
    """
    hidden = completions.hidden
    first = torch.tensor([[row.index(text) for text in row] for row in texts(policy, completions)])
    return replace(completions, hidden=hidden.gather(1, first.to(hidden.device)[..., None].expand_as(hidden)))


def sample_tokens(logits: Tensor, uniforms: Tensor | None, temperature: float, top_k: int) -> Tensor:
    """Token ids [k] at the quantiles `uniforms` [k] of the softmax over the `top_k` tokens, likeliest first.

    None: the likeliest tokens.
    """
    if uniforms is None:
        return logits.argmax(-1)
    count = min(top_k or logits.shape[-1], logits.shape[-1])
    best, ids = (logits / temperature).topk(count, dim=-1)
    cumulative = best.double().softmax(-1).cumsum(-1)
    uniforms = uniforms.double()[..., None].contiguous().to(cumulative.device)
    slot = torch.searchsorted(cumulative, uniforms, right=True).clamp(max=count - 1)
    return ids.gather(-1, slot).squeeze(-1)
