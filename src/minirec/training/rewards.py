"""The reward of a completion: its state ranks the catalogue; the higher the target, the more it earns (METHOD 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from minirec.data.splits import Split
from minirec.experiment import sections
from minirec.model import scoring
from minirec.model.scoring import SCORES
from minirec.model.whitening import Whitening


def score_completions(
    hidden: Tensor, items: Tensor, split: Split, whitening: Whitening, tau: float, reward: sections.Reward
) -> dict[str, Tensor]:
    """The columns rank, pi (probability of the target), ndcg, hit, reward and advantage of completions, each [n, G].

    hidden [n, G, d]: their pooled states, not whitened; items [m, d']: the item table, whitened, with the head applied.
    Raises NotFinite where a score is not finite.
    """
    size = max(1, SCORES // (hidden.shape[1] * len(items)))  # an engine may have written thousands of completions
    rows = torch.arange(len(hidden)).split(size)  # one block of none where there are none
    parts = [_scored(hidden[block], items, split.take(block.tolist()), whitening, tau, reward) for block in rows]
    scored = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return scored | {"advantage": advantages(scored["reward"])}


def _scored(
    hidden: Tensor, items: Tensor, split: Split, whitening: Whitening, tau: float, reward: sections.Reward
) -> dict[str, Tensor]:
    """The columns of `score_completions` but for the advantage, which needs no scores."""
    n, groups, _ = hidden.shape
    scores = scoring.scores(whitening.user(hidden).flatten(0, 1), items, tau)
    target = torch.as_tensor(split.target, device=hidden.device).repeat_interleave(groups)
    history = torch.as_tensor(split.history, device=hidden.device).repeat_interleave(groups, 0)
    rank = scoring.ranks(scores, target, history)
    pi = scoring.log_pi(scores, target, history).exp()
    ndcg, total = ndcg_and_reward(rank, pi, reward.beta, reward.cutoff)
    flat = {"rank": rank, "pi": pi, "ndcg": ndcg, "hit": rank <= reward.cutoff, "reward": total}
    return {name: values.view(n, groups) for name, values in flat.items()}


def ndcg_and_reward(rank: Tensor, pi: Tensor, beta: float, cutoff: int) -> tuple[Tensor, Tensor]:
    """(NDCG, reward): NDCG = 1 / log2(1 + rank), 0 beyond the cutoff; reward = (1 - beta) NDCG + beta pi.

    >>> ndcg, reward = ndcg_and_reward(torch.tensor([1, 3, 4]), torch.tensor([0.6, 0.2, 0.0]), beta=0.5, cutoff=3)
    >>> ndcg.tolist()
    [1.0, 0.5, 0.0]
    >>> reward.tolist()
    [0.800000011920929, 0.3499999940395355, 0.0]
    """
    ndcg = torch.where(rank <= cutoff, 1 / torch.log2(1 + rank.to(pi.dtype)), torch.zeros_like(pi))
    return ndcg, (1 - beta) * ndcg + beta * pi


def advantages(rewards: Tensor) -> Tensor:
    """Rewards [n, G] standardised within each prompt's group (ddof 1); equal rewards give exactly 0, G = 1 gives 1.

    >>> advantages(torch.tensor([[0.0, 1.0, 2.0], [0.3, 0.3, 0.3]])).tolist()
    [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    if rewards.shape[1] == 1:
        return torch.ones_like(rewards)
    centred = rewards - rewards.mean(1, keepdim=True)
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    return torch.where(equal, 0.0, centred / (rewards.std(1, keepdim=True) + 1e-8))
