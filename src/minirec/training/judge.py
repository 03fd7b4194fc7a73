"""Judging completions: from pooled states to ranks, rewards and advantages (METHOD 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from minirec.data.splits import Split
from minirec.experiment import config
from minirec.model import scoring
from minirec.model.whitening import Whitening


def score_completions(
    hidden: Tensor, items: Tensor, split: Split, whitening: Whitening, tau: float, reward: config.Reward
) -> dict[str, Tensor]:
    """Rank, pi, NDCG, hit, reward and advantage [n, G] of completions with pooled states [n, G, d]."""
    n, groups, _ = hidden.shape
    scores = scoring.scores(whitening.user(hidden).flatten(0, 1), items, tau)
    target = torch.as_tensor(split.target, device=hidden.device).repeat_interleave(groups)
    history = torch.as_tensor(split.history, device=hidden.device).repeat_interleave(groups, 0)
    rank = scoring.ranks(scores, target, history)
    pi = scoring.log_pi(scores, target, history).exp()
    ndcg, total = scoring.ndcg_and_reward(rank, pi, reward.beta, reward.cutoff)
    shaped = {"rank": rank, "pi": pi, "ndcg": ndcg, "hit": rank <= reward.cutoff, "reward": total}
    shaped = {name: values.view(n, groups) for name, values in shaped.items()}
    return shaped | {"advantage": scoring.advantages(shaped["reward"])}
