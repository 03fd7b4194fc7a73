"""NDCG@10 on the valid split, by which a training keeps its best policy and stops (METHOD 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minirec.data.splits import Split
from minirec.errors import NotFinite
from minirec.evaluation import metrics, ranking
from minirec.model import distributed
from minirec.model.engines.engine import Engine
from minirec.model.whitening import Head


def validator(engine: Engine, head: Head, valid: Split, max_new_tokens: int) -> Callable[[Tensor], float]:
    """A function from the item table [m, d'] to the policy's NDCG@10 on valid, the same in every process.

    It returns nan if a score in any process is not finite.
    """
    policy, local = engine.policy, valid.take(distributed.local_rows(len(valid)))

    def validate(items: Tensor) -> float:
        policy.model.eval()
        try:
            ranked = ranking.rank(engine, head.merged_whitening(), items, local, max_new_tokens, 0, "valid")
            total = torch.tensor(metrics.ndcg(ranked.rank, metrics.K).sum(), device=policy.device)
        except NotFinite:
            total = torch.tensor(torch.nan, dtype=torch.float64, device=policy.device)  # so that every process stops
        return distributed.all_reduce_sum(total).item() / len(valid)

    return validate
