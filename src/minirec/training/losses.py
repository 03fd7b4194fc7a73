"""Token loss and item loss (METHOD 3): each completion meets its own advantage; nothing broadcasts over the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def clipped(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Clipped policy loss -min(rho A, clip(rho, 1 - low, 1 + high) A), element by element; rho = exp(log_ratio)."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def token_loss(log_p: Tensor, old_log_p: Tensor, real: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Sum of the token losses, to be divided by the number of sampled tokens of the whole optimiser batch.

    log_p, old_log_p [n, G, T]: log-probabilities of the tokens under the policy and under the one that sampled them.
    real [n, G, T]: which are not padding. advantage [n, G].
    """
    return (clipped(log_p - old_log_p, advantage[..., None], low, high) * real).sum()


def best_completions(advantage: Tensor, count: int) -> Tensor:
    """Numbers [n, count] of the completions with the highest advantage [n, G]; ties go to the first."""
    return advantage.sort(dim=1, descending=True, stable=True).indices[:, :count]


def item_log_pi(h: Tensor, items: Tensor, column: Tensor, masked: Tensor, tau: float) -> Tensor:
    """Log-probability [n] of the targets items[column] for states h [n, d'], without the items in masked [n, k]."""
    scores = normalize(h, dim=-1) @ normalize(items, dim=-1).T / tau
    masked = masked.scatter(1, column[:, None], False)
    scores = scores.masked_fill(masked, -torch.inf)
    return scores.log_softmax(-1).gather(1, column[:, None]).squeeze(1)


def item_loss(
    h: Tensor, items: Tensor, column: Tensor, masked: Tensor, advantage: Tensor, tau: float, low: float, high: float
) -> Tensor:
    """Sum of the item losses of states h [n, d'], to be divided by the number of prompts of the optimiser batch."""
    log_pi = item_log_pi(h, items, column, masked, tau)
    return clipped(log_pi - log_pi.detach(), advantage, low, high).sum()


def batch_items(target: Tensor, catalogue_size: int, extra: int, generator: torch.Generator) -> Tensor:
    """Catalogue rows [k] of the items in the item loss: the distinct targets, ascending, then `extra` random others."""
    distinct = target.unique()
    if extra == 0:
        return distinct
    others = torch.ones(catalogue_size, dtype=torch.bool)
    others[distinct] = False
    pool = others.nonzero().squeeze(1)
    return torch.cat([distinct, pool[torch.randperm(len(pool), generator=generator)[:extra]]])
