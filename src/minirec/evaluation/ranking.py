"""Rank the whole catalogue for each sample of a split, by a policy that decodes greedily (METHOD 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from minirec.data.splits import Split
from minirec.evaluation.rank_tables import PolicyRanks
from minirec.model import distributed, scoring
from minirec.model.completions import Completions
from minirec.model.engines.engine import Engine
from minirec.model.whitening import Whitening
from minirec.progress import progress


@torch.no_grad()
def rank(
    engine: Engine, whitening: Whitening, items: Tensor, split: Split, max_new_tokens: int, top: int, what: str
) -> PolicyRanks:
    """Rank all items for every sample of a split, in its order; items of the history are never recommended.

    items [m, d']: the whitened item table. top: how many recommended items to return. what: label of the progress bar.
    One pass gives the ranks with and without reasoning. Raises NotFinite if a score is not finite.
    """
    items = items.to(engine.policy.device)
    target, history = torch.as_tensor(split.target), torch.as_tensor(split.history)
    ranks = np.zeros((len(split), 2), dtype=np.int32)  # with reasoning, without
    best = np.zeros((len(split), min(top, len(items))), dtype=np.int32)
    with progress(what, len(split), "samples") as bar:
        for rows, scores, _ in scored(engine, whitening, items, split.bodies, max_new_tokens):
            targets, masked = target[rows].to(items.device), history[rows].to(items.device)
            for branch in range(2):
                ranks[rows, branch] = scoring.ranks(scores[branch], targets, masked).cpu().numpy()
            if best.shape[1]:
                best[rows] = scoring.best(scores[0], masked, best.shape[1])[0].cpu().numpy()
            bar.add(len(rows))
    return PolicyRanks(split.sample_id, ranks[:, 0], best, ranks[:, 1])


@torch.no_grad()
def scored(
    engine: Engine, whitening: Whitening, items: Tensor, bodies: Sequence[str], max_new_tokens: int
) -> Iterator[tuple[list[int], list[Tensor], Completions]]:
    """Scores of all items for users, a batch at a time: their places, scores [k, m] with and without reasoning.

    Also yields what the policy wrote, greedily. bodies: the histories as text. items [m, d']: the whitened table, on
    the policy's device.
    """
    policy, limits = engine.policy, [max_new_tokens, 0]
    prompts = policy.user_bodies(bodies)
    for rows in distributed.same_number(engine.batches(prompts, limits)):
        texts = [prompts[row] for row in rows or []]
        written = engine.write(texts, limits)
        if rows is None:  # other processes share the layers and needed them
            continue
        for part in policy.length_batches(texts, engine.extra(limits)):  # an engine may write many batches at a time
            states = [whitening.user(written.hidden[part, branch]) for branch in range(len(limits))]
            scores = [scoring.scores(h, items, policy.settings.tau) for h in states]
            yield [rows[place] for place in part], scores, written.take(part)
