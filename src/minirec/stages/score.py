"""score: compute how learnable and how representative every training sample is (METHOD 4.3, 4.4)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from minirec.data.stored_signals import rewards
from minirec.experiment.sections import Score
from minirec.selection.signals import direction, learnability, representativeness_of_blocks
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output

BLOCK = 2_048  # samples whose derivatives are in memory at a time


def run(*, score: Score, rollouts: Path, gradients: Path, scores: Output) -> None:
    """Write scores.parquet, one row per sample, in the order of sample_id."""
    table = rewards(rollouts)
    tensors.shapes(gradients, "sample_id", "gradient", "hvp", "error_norm")
    stored = tensors.read_rows(gradients, "sample_id")
    rows = tables.rows_of(stored, tables.numpy(table, "sample_id"), gradients)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(gradients, Hessian-vector products) of BLOCK samples at a time."""
        for begin in range(0, len(rows), BLOCK):
            block = rows[begin : begin + BLOCK]
            yield tensors.take(gradients, "gradient", block), tensors.take(gradients, "hvp", block)

    columns = {
        "learnability": learnability(tables.numpy(table, "mean_reward"), score.mu, score.sigma),
        "representativeness": representativeness_of_blocks(
            lambda: (direction(g, hv, score.direction, score.eta) for g, hv in blocks())
        ),
        "gradient_norm": np.concatenate([np.linalg.norm(g.astype(np.float64), axis=1) for g, _ in blocks()]),
        "error_norm": tensors.take(gradients, "error_norm", rows).astype(np.float64),
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    provenance = Provenance("score", score.model_dump(), {"rollouts": rollouts, "gradients": gradients})
    tables.write("scores", table, scores, provenance)
