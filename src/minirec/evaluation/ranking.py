"""Rank the whole catalogue for each sample of a split, by a policy that decodes greedily (METHOD 5)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from minirec.data.splits import Split
from minirec.evaluation.rank_tables import PolicyRanks
from minirec.model import distributed, generate, scoring
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.progress import progress


@torch.no_grad()
def rank(
    policy: Policy, whitening: Whitening, items: Tensor, split: Split, max_new_tokens: int, top: int, what: str
) -> PolicyRanks:
    """Rank all items for every sample of a split, in its order; items of the history are never recommended.

    items [m, d']: the whitened item table. top: how many recommended items to return. what: label of the progress bar.
    One pass gives the ranks with and without reasoning. Raises NotFinite if a score is not finite.
    """
    prompts = policy.user_bodies(split.bodies)
    items = items.to(policy.device)
    target, history = torch.as_tensor(split.target), torch.as_tensor(split.history)
    ranks = np.zeros((len(split), 2), dtype=np.int32)  # with reasoning, without
    best = np.zeros((len(split), min(top, len(items))), dtype=np.int32)
    with progress(what, len(split), "samples") as bar:
        extra, limits = max_new_tokens + 2 * len(policy.marker_ids), [max_new_tokens, 0]
        for rows in distributed.same_number(list(policy.length_batches(prompts, extra))):
            if rows is None:  # other processes share the layers and need them
                generate.stand_in(policy, limits)
                continue
            written = generate.generate(policy, [prompts[row] for row in rows], limits)
            targets, masked = target[rows].to(policy.device), history[rows].to(policy.device)
            for branch in range(2):
                h = whitening.user(written.hidden[:, branch])
                scores = scoring.scores(h, items, policy.settings.tau)
                ranks[rows, branch] = scoring.ranks(scores, targets, masked).cpu().numpy()
                if branch == 0 and best.shape[1]:
                    ordered = scoring.mask(scores, masked).sort(dim=1, descending=True, stable=True)
                    order = ordered.indices.masked_fill(ordered.values == -torch.inf, -1)
                    best[rows] = order[:, : best.shape[1]].cpu().numpy()
            bar.add(len(rows))
    return PolicyRanks(split.sample_id, ranks[:, 0], best, ranks[:, 1])
