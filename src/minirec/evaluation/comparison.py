"""What a policy is held against on the same test samples: itself before RL, others, simple recommenders (METHOD 5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minirec.errors import InputError
from minirec.evaluation import metrics
from minirec.evaluation.breakdown import K
from minirec.experiment import config
from minirec.storage import tables


def policy(ranks: Path, sample_id: np.ndarray, column: str = "rank") -> np.ndarray:
    """Ranks [n] of a policy, of the samples [n]; raises InputError where the file has others."""
    return _of(tables.read("ranks", ranks), ranks, sample_id, column)


def references(ranks: Path, sample_id: np.ndarray) -> dict[str, np.ndarray]:
    """Ranks [n] of every simple recommender, of the samples [n]; raises InputError where the file has others."""
    table = tables.read("references", ranks)
    names = pc.unique(table["reference"]).to_pylist()
    return {name: _of(table.filter(pc.equal(table["reference"], name)), ranks, sample_id) for name in names}


def improvement(other: np.ndarray, rank: np.ndarray, settings: config.Evaluate) -> dict[str, Any]:
    """NDCG@10 of ranks minus that of others, each [n] or, averaged over runs, [r, n]: mean, interval, paired test."""
    mean, start = (metrics.ndcg(np.atleast_2d(runs), K).mean(0) for runs in (rank, other))
    interval = metrics.interval(mean - start, settings.bootstrap, settings.confidence, settings.seed)
    p = metrics.paired_p(mean, start, settings.seed)
    return {**interval, "p": p, "significant": bool(p < 1 - settings.confidence)}


def each(others: Mapping[str, np.ndarray], rank: np.ndarray, settings: config.Evaluate) -> dict[str, Any]:
    """The improvement over each of the others."""
    return {name: improvement(other, rank, settings) for name, other in others.items()}


def _of(table: pa.Table, path: Path, sample_id: np.ndarray, column: str = "rank") -> np.ndarray:
    table = table.sort_by("sample_id")
    if not np.array_equal(tables.numpy(table, "sample_id"), np.sort(sample_id)):
        raise InputError(f"{path} is of other test samples; run the stage that makes it again")
    return tables.numpy(table, column)[np.argsort(np.argsort(sample_id))]
