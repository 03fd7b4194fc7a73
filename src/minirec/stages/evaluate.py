"""evaluate: rank the whole catalogue for every test sample (METHOD 5).

Without an adapter this is the policy before RL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from minirec.data import splits
from minirec.evaluation import comparison, metrics, ranking
from minirec.evaluation.breakdown import Breakdown, K
from minirec.experiment import config
from minirec.model.items import FrozenItemStates, ItemEncoder, read_table
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.progress import log
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance


def write(
    rank: np.ndarray,
    without: np.ndarray,
    top: np.ndarray,
    sample_id: np.ndarray,
    groups: Breakdown,
    settings: config.Evaluate,
    made: Provenance,
    ranks: Path,
    out: Path,
    before: Path | None = None,
    references: Path | None = None,
) -> None:
    """Write ranks.parquet and metrics.json, with what the policy is held against where that is given."""
    columns: dict[str, Any] = {
        "sample_id": sample_id,
        "rank": rank,
        "rank_without_reasoning": without,
        "top": [rows[rows >= 0] for rows in top],
    }
    tables.write("ranks", pa.table(columns, tables.TABLES["ranks"].schema()), ranks, made)
    summary: dict[str, Any] = {
        "samples": len(rank),
        "metrics": metrics.summary(rank, settings),
        "metrics_without_reasoning": metrics.summary(without, settings),
        "breakdown": groups.describe(rank, top),
    }
    if before is not None:
        start = comparison.policy(before, sample_id)
        summary["before"] = metrics.summary(start, settings)
        summary["improvement"] = comparison.improvement(start, rank, settings)
    if references is not None:
        others = comparison.references(references, sample_id)
        summary["references"] = {name: metrics.summary(other, settings) for name, other in others.items()}
        summary["against"] = comparison.each(others, rank, settings)
    artefact.write_json(summary, out, made)
    for name, value in summary["metrics"].items():
        log.info("%s %.4f [%.4f, %.4f]", name, value["mean"], value["low"], value["high"])


@torch.no_grad()
def run(
    *,
    policy: config.Policy,
    sampling: config.Sampling,
    evaluate: config.Evaluate,
    samples: Path,
    catalogue: Path,
    items: Path | None,
    whitening: Path,
    frozen_states: Path | None,
    model: Path,
    adapter: Path | None,
    before: Path | None,
    references: Path | None,
    ranks: Path,
    out: Path,
) -> None:
    """Evaluate a policy; the item table is computed where none is given."""
    test = splits.load(samples, catalogue, "test", policy.prompt_history)
    loaded = Policy.load(model, policy, adapter)
    whiten = Whitening.read(whitening, adapter)
    if items is not None:
        table = read_table(items, catalogue)
    else:
        goods = ItemEncoder(
            loaded, splits.catalogue_texts(catalogue), FrozenItemStates.read(frozen_states) if frozen_states else None
        )
        table = whiten.item(goods.embed(what="items"))
    ranked = ranking.rank(loaded, whiten, table, test, sampling.max_new_tokens, max(K, *evaluate.cutoffs), "evaluate")
    settings = policy.model_dump() | sampling.model_dump() | evaluate.model_dump()
    given = {"adapter": adapter, "before": before, "references": references}
    inputs = {"samples": samples, "catalogue": catalogue, "model": model} | {n: f for n, f in given.items() if f}
    made = Provenance("evaluate", settings, inputs)
    groups = Breakdown.of(test, catalogue)
    found = ranked.rank, ranked.rank_without_reasoning, ranked.top
    write(*found, test.sample_id, groups, evaluate, made, ranks, out, before, references)
