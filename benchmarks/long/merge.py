"""What merging an adapter in bfloat16 changes: ranks of the test samples by the adapter, and by the merged weights.

    python benchmarks/long/merge.py results/DATASET/runs/MODEL/SELECTOR/METHOD-BUDGET/seedN

The items keep the vectors of the adapter, as in `minirec export model`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from minirec.data import splits
from minirec.evaluation import metrics, ranking
from minirec.evaluation.recommender import Recommender, TrainedRun
from minirec.model.engines.builtin import Builtin
from minirec.model.items import ItemEncoder


@torch.no_grad()
def main(folder: Path) -> None:
    run = TrainedRun.opened(folder)
    one = Recommender(replace(run, settings=run.settings | {"dtype": "bfloat16"}))
    policy, whitening = one.policy, one.whitening
    test = splits.load(run.top / "samples.parquet", run.catalogue, "test", policy.settings.prompt_history)
    items = whitening.item(ItemEncoder(policy, one.catalogue["text"].to_pylist()).embed(what="items"))
    before = ranking.rank(Builtin(policy), whitening, items, test, one.max_new_tokens, 0, "adapter").rank
    policy.model = policy.model.merge_and_unload()
    after = ranking.rank(Builtin(policy), whitening, items, test, one.max_new_tokens, 0, "merged").rank
    ndcg = [metrics.ndcg(rank, metrics.K).mean() for rank in (before, after)]
    print(f"{len(test)} test samples: NDCG@10 {ndcg[0]:.4f} by the adapter, {ndcg[1]:.4f} merged")
    print(f"same rank: {(before == after).mean():.0%}; median change of a rank: {np.median(abs(before - after)):g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
