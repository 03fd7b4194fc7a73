"""Token loss and item loss (METHOD 3): each completion meets its own advantage; nothing broadcasts over the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from minirec.model import scoring

MAX_ENGINE_WEIGHT = 2.0


def clipped(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Clipped policy loss -min(rho A, clip(rho, 1 - low, 1 + high) A), element by element; rho = exp(log_ratio)."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def token_loss(log_p: Tensor, old_log_p: Tensor, weight: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Weighted sum of the token losses, to be divided by the number of sampled tokens of the whole optimiser batch.

    log_p, old_log_p [n, G, T]: log-probabilities of the tokens under the policy and under the one that sampled them.
    weight [n, G, T]: 0 for padding; else 1, or `engine_weight`. advantage [n, G].
    """
    return (clipped(log_p - old_log_p, advantage[..., None], low, high) * weight).sum()


def engine_weight(old_log_p: Tensor, real: Tensor, engine_log_p: list[list[list[float]]]) -> Tensor:
    """Truncated importance weights [n, G, T] of tokens: p of the sampling policy / p of the engine, at most 2.

    engine_log_p [n][G]: log-probabilities by the engine, as `Completions.log_p`; weights are 1 where it is empty. real
    [n, G, T]: which of the tokens are not padding.
    """
    if not engine_log_p:
        return torch.ones_like(old_log_p)
    by_engine = torch.zeros_like(old_log_p)
    by_engine[real] = torch.tensor([p for group in engine_log_p for row in group for p in row]).to(by_engine)
    return (old_log_p - by_engine).exp().clamp(max=MAX_ENGINE_WEIGHT)


def best_completions(advantage: Tensor, count: int) -> Tensor:
    """Numbers [n, count] of the completions with the highest advantage [n, G]; ties go to the first."""
    return advantage.sort(dim=1, descending=True, stable=True).indices[:, :count]


def item_log_pi(h: Tensor, items: Tensor, column: Tensor, masked: Tensor, tau: float) -> Tensor:
    """Log-probability [n] of the targets items[column] for states h [n, d'], without the items in masked [n, k]."""
    masked = masked.scatter(1, column[:, None], False)
    scores = scoring.scores(h, items, tau).masked_fill(masked, -torch.inf)
    return scores.log_softmax(-1).gather(1, column[:, None]).squeeze(1)


def column_and_mask(rows: Tensor, target: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
    """Column [n] of each target [n] among the catalogue rows [k], and which of these are in its history [n, k].

    history [n, w]: catalogue rows, padded with -1. Both results are what `item_log_pi` takes.

    >>> column_and_mask(torch.tensor([4, 7, 9]), torch.tensor([7]), torch.tensor([[9, 3, -1]]))
    (tensor([1]), tensor([[False, False,  True]]))
    """
    return (rows == target[:, None]).int().argmax(1), (rows[:, None] == history[:, None, :]).any(-1)


def item_loss(log_pi: Tensor, old_log_pi: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Sum of the item losses [n], to be divided by the number of prompts of the optimiser batch.

    log_pi, old_log_pi [n]: log-probabilities of the targets, see `item_log_pi`, now and before the first update.
    """
    return clipped(log_pi - old_log_pi, advantage, low, high).sum()


def batch_items(target: Tensor, catalogue_size: int, extra: int, generator: torch.Generator) -> Tensor:
    """Catalogue rows [k] of the items in the item loss: the distinct targets, ascending, then `extra` random others."""
    distinct = target.unique()
    if extra == 0:
        return distinct
    others = torch.ones(catalogue_size, dtype=torch.bool)
    others[distinct] = False
    pool = others.nonzero().squeeze(1)
    return torch.cat([distinct, pool[torch.randperm(len(pool), generator=generator)[:extra]]])
