"""Ranking the whole catalogue for a split with greedy reasoning (METHOD 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minirec.data.splits import Split
from minirec.model import generate, scoring
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.progress import progress


@dataclass(frozen=True)
class Ranking:
    """Ranks in the order of the split; 1 is best."""

    rank: np.ndarray  # [n] after greedy reasoning
    rank_without_reasoning: np.ndarray  # [n] after an empty completion
    top: np.ndarray  # [n, k] catalogue rows, best first, padded with -1 where fewer are outside the history


@torch.no_grad()
def rank(
    policy: Policy, whitening: Whitening, items: Tensor, split: Split, max_new_tokens: int, top: int, what: str
) -> Ranking:
    """Rank every item of the table [m, d'] for every sample; the history is masked."""
    prompts = policy.user_bodies(split.bodies)
    items = items.to(policy.device)
    target, history = torch.as_tensor(split.target), torch.as_tensor(split.history)
    ranks = np.zeros((len(split), 2), dtype=np.int32)
    best = np.zeros((len(split), min(top, len(items))), dtype=np.int32)
    with progress(what, len(split), "samples") as bar:
        for rows in policy.length_batches(prompts, extra=max_new_tokens + 2 * len(policy.marker_ids)):
            written = generate.generate(policy, [prompts[row] for row in rows], limits=[max_new_tokens, 0])
            for branch in range(2):
                h = whitening.user(written.hidden[:, branch])
                scores = scoring.scores(h, items, policy.settings.tau)
                wanted, masked = target[rows].to(policy.device), history[rows].to(policy.device)
                ranks[rows, branch] = scoring.ranks(scores, wanted, masked).cpu().numpy()
                if branch == 0 and best.shape[1]:
                    found = scoring.mask(scores, masked).sort(dim=1, descending=True, stable=True)
                    order = found.indices.masked_fill(found.values == -torch.inf, -1)
                    best[rows] = order[:, : best.shape[1]].cpu().numpy()
            bar.add(len(rows))
    return Ranking(ranks[:, 0], ranks[:, 1], best)
