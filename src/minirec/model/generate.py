"""Write completions, and compute their token probabilities and states with gradients (METHOD 2, user side)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from minirec.model import distributed
from minirec.model.cache import BranchingCache, BranchReader, LayerSlice, pad
from minirec.model.completions import (
    Completions,
    FrozenStates,
    marker_missing,
    share_states,
    texts_as_read,
    truncate,
    with_marker,
)
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
        first = reader.read_with_prompts(prompts, texts_as_read(policy, completions))
    return first, reader


def _reader(policy: Policy, cache: BranchingCache, branches: int) -> BranchReader:
    return BranchReader(cache, branches, policy.width, policy.settings.pooling)


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
