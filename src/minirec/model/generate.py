"""Writing completions and reading them again with gradients (METHOD 2, 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minirec.model.cache import BranchingCache, LayerSlice, pad
from minirec.model.policy import Policy


def uniforms(seed: int, sample_id: int, completion: int, count: int, epoch: int = 0) -> np.ndarray:
    """The random stream of one completion: `count` numbers in [0, 1), a function of the arguments alone."""
    return np.random.Generator(np.random.Philox(key=[seed, sample_id], counter=[0, 0, completion, epoch])).random(count)


def noise(seed: int, sample_ids: Sequence[int], completions: int, count: int, epoch: int = 0) -> Tensor:
    """The numbers that choose the tokens [n, G, count]; a function of (seed, sample, completion, epoch) alone."""
    rows = [[uniforms(seed, int(s), g, count, epoch) for g in range(completions)] for s in sample_ids]
    return torch.from_numpy(np.array(rows))


@dataclass
class Completions:
    """G completions of each of n prompts."""

    tokens: list[list[list[int]]]  # [n][G]: sampled ids, forced marker not included
    forced: list[list[bool]]  # [n][G]: whether the marker had to be appended
    hidden: Tensor  # [n, G, d]: pooled state, float32, not whitened
    below: list[FrozenStates]  # [n]: what the frozen layers made of them; empty where it was not kept

    def take(self, rows: Sequence[int]) -> Completions:
        """The completions of these prompts, in this order."""
        below = [self.below[row] for row in rows] if self.below else []
        tokens, forced = [self.tokens[row] for row in rows], [self.forced[row] for row in rows]
        return Completions(tokens, forced, self.hidden[list(rows)], below)

    @classmethod
    def together(cls, parts: Sequence[Completions]) -> Completions:
        """The completions of several batches, one after another."""
        return cls(
            [row for part in parts for row in part.tokens],
            [row for part in parts for row in part.forced],
            torch.cat([part.hidden for part in parts]),
            [row for part in parts for row in part.below],
        )


@dataclass(frozen=True)
class FrozenStates:
    """States under the lowest trained layer: they never change, so reading again starts from them."""

    prefix: Tensor  # [p, d], shared by all prompts
    prompt: Tensor  # [t, d]
    completions: list[Tensor]  # [G] of [t, d], a forced marker included


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    noise: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    keep_below: bool = False,
) -> Completions:
    """Write completions of one batch of prompts (without their shared prefix); greedy where `noise` is None.

    limits [G]: longest completion of each branch, in tokens; 0 is the empty completion, the bare marker.
    noise [n, G, max(limits)]: numbers in [0, 1) that choose the tokens, by the inverse of the distribution function
    over tokens from likely to unlikely. The state at the marker comes from the decoding step that reads it.
    keep_below: keep the states after the frozen layers of every token, for `teacher_forced`.
    """
    n, groups = len(prompts), len(limits)
    marker = policy.marker_ids
    tree = BranchingCache(policy.decoder, policy.user_prompts.prefix, n, policy.frozen_layers if keep_below else 0)
    prefix = tree.below[0] if tree.depth else None
    state = tree.read(prompts)[:, None, :].expand(n, groups, -1)
    prompt = tree.below if tree.depth else None
    reader = _Reader(policy, tree, groups)
    tokens: list[list[list[int]]] = [[[] for _ in range(groups)] for _ in range(n)]
    queues: list[list[list[int]]] = [[[] for _ in range(groups)] for _ in range(n)]  # chosen, not yet read
    forced = [[True] * groups for _ in range(n)]
    writing = [(i, g) for i in range(n) for g in range(groups) if limits[g] > 0]
    for i, g in {(i, g) for i in range(n) for g in range(groups)}.difference(writing):
        queues[i][g] += marker
    step = 0
    while writing:
        i_, g_ = (torch.tensor(index, device=policy.device) for index in zip(*writing, strict=True))
        logits = policy.logits(state[i_, g_])
        chosen = logits.argmax(-1) if noise is None else _sample(logits, noise[i_, g_, step], temperature, top_k)
        step += 1
        going = []
        for (i, g), token in zip(writing, chosen.tolist(), strict=True):
            tokens[i][g].append(token)
            queues[i][g].append(token)
            end = ending(policy, tokens[i][g], limits[g])
            if end is None:
                going.append((i, g))
            elif end:
                queues[i][g] += marker
            else:
                forced[i][g] = False
        writing = going
        if writing:
            state = reader.read([[queue[:1] for queue in row] for row in queues])
            queues = [[queue[1:] for queue in row] for row in queues]
    reader.read(queues)
    below = []
    if prefix is not None and prompt is not None:
        texts = reader.below()
        below = [FrozenStates(prefix, prompt[i, : len(p)], texts[i]) for i, p in enumerate(prompts)]
    return Completions(tokens, forced, _alike(tokens, reader.pooled()), below)


@torch.no_grad()
def from_tokens(
    policy: Policy, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[Sequence[int]]], limit: int
) -> Completions:
    """Completions of one batch of prompts from tokens [n][G] that another writer sampled, as if `write` had.

    Each is cut where `write` would have ended it; the states come from one pass over the finished texts.
    """
    ended = [[cut(policy, tokens, limit) for tokens in row] for row in texts]
    tokens = [[kept for kept, _ in row] for row in ended]
    written = Completions(tokens, [[forced for _, forced in row] for row in ended], torch.empty(0), [])
    return replace(written, hidden=_alike(tokens, _read_again(policy, prompts, written)[1].pooled()))


def teacher_forced(
    policy: Policy, prompts: Sequence[Sequence[int]], completions: Completions
) -> tuple[Tensor, Tensor, Tensor]:
    """Read prompts with their completions once more, keeping gradients where they are enabled.

    Where the states below the trained layers were kept, only the layers above them run.

    Returns the log-probabilities of the sampled tokens at temperature 1 [n, G, T], which of them are real [n, G, T],
    and the pooled states [n, G, d].
    """
    n, groups = len(prompts), len(completions.tokens[0])
    first, reader = _read_again(policy, prompts, completions)
    longest = max(len(tokens) for row in completions.tokens for tokens in row)
    flat = [tokens for row in completions.tokens for tokens in row]
    ids, real = pad(flat, policy.device)
    ids, real = ids.view(n, groups, longest), real.view(n, groups, longest)
    before = torch.cat([first[:, None, None, :].expand(n, groups, 1, -1), reader.states], 2)[:, :, :longest]
    logits = policy.logits(before[real])
    log_probability = torch.zeros(n, groups, longest, device=policy.device)
    log_probability[real] = logits.log_softmax(-1).gather(-1, ids[real][:, None]).squeeze(-1)
    return log_probability, real, reader.pooled()


def _alike(tokens: list[list[list[int]]], hidden: Tensor) -> Tensor:
    """The states [n, G, d], one and the same for completions of a prompt with the same tokens.

    In bfloat16 they differ in the last bits, and an advantage would make a signal of that.
    """
    first = torch.tensor([[row.index(completion) for completion in row] for row in tokens], device=hidden.device)
    return hidden.gather(1, first[..., None].expand_as(hidden))


def has_marker(policy: Policy, tokens: Sequence[int]) -> bool:
    """Whether the last of these tokens completes the marker; it may be tokenised in any way."""
    marker = policy.settings.marker
    return marker in policy.tokenizer.decode(tokens[-len(marker.encode()) :])  # a token is a byte or more


def ending(policy: Policy, tokens: Sequence[int], limit: int) -> bool | None:
    """Whether a completion that ends with these tokens needs the marker appended; None where it does not end yet."""
    if has_marker(policy, tokens):
        return False
    return True if tokens[-1] in policy.eos_ids or len(tokens) == limit else None


def cut(policy: Policy, tokens: Sequence[int], limit: int) -> tuple[list[int], bool]:
    """These tokens up to where a completion of at most `limit` ends, and whether the marker must be appended."""
    for count in range(1, min(len(tokens), limit) + 1):
        forced = ending(policy, tokens[:count], limit)
        if forced is not None:
            return list(tokens[:count]), forced
    return list(tokens[:limit]), True


def _read_again(policy: Policy, prompts: Sequence[Sequence[int]], completions: Completions) -> tuple[Tensor, _Reader]:
    """The states after the prompts [n, d], and a reader that has read all completions after them."""
    n, groups = len(prompts), len(completions.tokens[0])
    below = completions.below
    if below:
        tree = BranchingCache(LayerSlice(policy.decoder, slice(policy.frozen_layers, None)), below[0].prefix, n)
        first = tree.read([row.prompt for row in below])
        reader = _Reader(policy, tree, groups)
        reader.read([row.completions for row in below])
    else:
        tree = BranchingCache(policy.decoder, policy.user_prompts.prefix, n)
        first = tree.read(prompts)
        reader = _Reader(policy, tree, groups)
        marker = policy.marker_ids
        reader.read(
            [
                [tokens + (marker if forced else []) for tokens, forced in zip(*row, strict=True)]
                for row in zip(completions.tokens, completions.forced, strict=True)
            ]
        )
    return first, reader


class _Reader:
    """Reads tokens of every branch, once the prompts are read, and pools the states."""

    def __init__(self, policy: Policy, tree: BranchingCache, groups: int) -> None:
        self.pooling, self.tree, self.groups = policy.settings.pooling, tree, groups
        self.rows = len(tree.length)
        self.count = torch.zeros(self.rows, groups, dtype=torch.long, device=tree.device)
        self.sum = torch.zeros(self.rows, groups, policy.width, device=tree.device)
        self.last = torch.zeros(self.rows, groups, policy.width, device=tree.device)
        self.kept: list[tuple[list[int], Tensor, Tensor]] = []  # of every read: branches, states below, validity

    def read(self, chunk: Sequence[Sequence[Sequence[int] | Tensor]]) -> Tensor:
        """Read tokens, or states, of each branch; returns the state after each branch's last token [n, G, d]."""
        n = self.rows
        open_ = [g for g in range(self.groups) if any(len(row[g]) for row in chunk)]  # the others cost nothing
        ids, valid = pad([row[g] for row in chunk for g in open_], self.tree.device)
        groups, width = len(open_), ids.shape[1]
        places = torch.tensor(open_, device=self.tree.device)
        branch = places.repeat_interleave(width).expand(n, -1)
        start = self.tree.length[:, None] + self.count[:, open_]
        positions = start[:, :, None] + torch.arange(width, device=self.tree.device)
        hidden = self.tree.extend(
            ids.reshape(n, groups * width, *ids.shape[2:]), valid.view(n, -1), branch, positions.view(n, -1)
        )
        self.states = hidden.view(n, groups, width, -1)
        valid = valid.view(n, groups, width)
        if self.tree.depth:
            self.kept.append((open_, self.tree.below.view(n, groups, width, -1), valid))
        states = self.states.float()
        if self.pooling != "last":
            self.sum = self.sum.index_add(1, places, (states * valid[..., None]).sum(2))
        counts = valid.sum(2)
        at_end = states.gather(2, (counts - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, states.shape[-1]))
        newest = torch.where((counts > 0)[..., None], at_end.squeeze(2), self.last[:, open_])
        self.last = self.last.index_copy(1, places, newest)
        self.count = self.count.index_add(1, places, counts)
        return self.last.to(hidden.dtype)

    def below(self) -> list[list[Tensor]]:
        """The states [t, d] below the trained layers, of all that each branch has read [n][G]."""
        found: list[list[list[Tensor]]] = [[[] for _ in range(self.groups)] for _ in range(self.rows)]
        for open_, states, valid in self.kept:
            for place, g in enumerate(open_):
                for i in range(self.rows):
                    found[i][g].append(states[i, place][valid[i, place]])
        return [[torch.cat(parts) for parts in row] for row in found]

    def pooled(self) -> Tensor:
        """The state of each branch by the policy's pooling [n, G, d], float32."""
        if self.pooling == "last":
            return self.last
        if self.pooling == "mean":
            return self.sum / self.count[..., None]
        states, count = self.tree.total
        return (states[:, None] + self.sum) / (count[:, None] + self.count)[..., None]


def _sample(logits: Tensor, noise: Tensor, temperature: float, top_k: int) -> Tensor:
    count = min(top_k or logits.shape[-1], logits.shape[-1])
    best, ids = (logits / temperature).topk(count, dim=-1)
    below = best.double().softmax(-1).cumsum(-1)
    slot = torch.searchsorted(below, noise.double()[..., None].contiguous().to(below.device), right=True).clamp(
        max=count - 1
    )
    return ids.gather(-1, slot).squeeze(-1)
