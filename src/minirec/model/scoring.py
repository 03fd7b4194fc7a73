"""Scores, ranks, rewards and advantages (METHOD 2, 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from minirec.errors import NotFinite


def scores(h: Tensor, items: Tensor, tau: float) -> Tensor:
    """Cosine / tau [n, m] of states [n, d] and item vectors [m, d]."""
    return normalize(h, dim=-1) @ normalize(items, dim=-1).T / tau


def mask(scores: Tensor, exclude: Tensor, keep: Tensor | None = None) -> Tensor:
    """Scores [n, m] with the rows `exclude` [n, w] (padded with -1) at minus infinity, but never the row `keep` [n]."""
    out = torch.zeros(scores.shape[0], scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    out.scatter_(1, torch.where(exclude < 0, scores.shape[1], exclude), True)
    out = out[:, :-1]
    if keep is not None:
        out.scatter_(1, keep[:, None], False)
    return scores.masked_fill(out, -torch.inf)


def ranks(scores: Tensor, target: Tensor, exclude: Tensor) -> Tensor:
    """Rank of each target [n] by counting: 1 + higher scores + equal scores in a lower row. Masked rows never count.

    Raises NotFinite where a score is not finite: every comparison with it is false, so its target would come first.
    """
    if not scores.isfinite().all():
        raise NotFinite("the policy's scores are not finite, so nothing can be ranked")
    allowed = mask(scores, exclude, target)
    own = allowed.gather(1, target[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < target[:, None]
    return 1 + (allowed > own).sum(1) + ((allowed == own) & lower).sum(1)


def log_pi(scores: Tensor, target: Tensor, exclude: Tensor) -> Tensor:
    """Log-probability [n] of each target under the softmax over the catalogue, history masked."""
    return mask(scores, exclude, target).log_softmax(1).gather(1, target[:, None]).squeeze(1)


def ndcg_and_reward(rank: Tensor, pi: Tensor, beta: float, cutoff: int) -> tuple[Tensor, Tensor]:
    """(NDCG, reward): NDCG = 1 / log2(1 + rank), 0 beyond the cutoff; reward = (1 - beta) NDCG + beta pi."""
    ndcg = torch.where(rank <= cutoff, 1 / torch.log2(1 + rank.to(pi.dtype)), torch.zeros_like(pi))
    return ndcg, (1 - beta) * ndcg + beta * pi


def advantages(rewards: Tensor) -> Tensor:
    """Rewards [n, G] standardised within the group (ddof 1); equal rewards give exactly 0, G = 1 gives 1."""
    if rewards.shape[1] == 1:
        return torch.ones_like(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return torch.where(equal, 0.0, centred / (rewards.std(1, keepdim=True) + 1e-8))
