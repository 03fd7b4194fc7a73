"""select: the best samples within the budget, each unlike those already kept (METHOD 4.5, 4.6)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minirec import config, schemas, tensors
from minirec.errors import InputError
from minirec.progress import progress
from minirec.schemas import Made

SAME = 1e-6  # smaller distances count as none
TIE = 1e-12  # gains that differ by less are equal but for rounding


def greedy(embeddings: np.ndarray, value: np.ndarray, budget: int) -> np.ndarray:
    """Row numbers in order of choice, int64 [budget] (METHOD 4.6).

    embeddings [n, d], value [n] = alpha L + R. First argmax value, then argmax D~ value among the rows not yet picked,
    D~ the cosine distance to the nearest pick over its largest value. Ties: lowest row.
    """
    return greedy_with_diversity(embeddings, value, budget)[0]


def greedy_with_diversity(embeddings: np.ndarray, value: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """`greedy` and D~ of each pick when it was picked [budget]; 1 for the first."""
    if not 0 <= budget <= len(value):
        raise ValueError(f"budget {budget} is not within 0..{len(value)}")
    unit = _unit(embeddings)
    nearest = np.full(len(value), np.inf)
    open_ = np.ones(len(value), dtype=bool)
    picks, diversity = np.empty(budget, dtype=np.int64), np.ones(budget)
    for position in range(budget):
        if position:
            largest = nearest.max()
            relative = nearest / largest if largest > 0 else np.zeros(len(value))
            gain = relative * value
        else:
            relative, gain = np.ones(len(value)), np.asarray(value, dtype=np.float64)
        gain = np.where(open_, gain, -np.inf)
        pick = int(np.argmax(gain >= gain.max() - TIE))  # the first of them
        picks[position], diversity[position] = pick, relative[pick]
        open_[pick] = False
        distance = 1.0 - unit @ unit[pick]
        distance[distance < SAME] = 0.0
        distance[pick] = 0.0
        np.minimum(nearest, distance, out=nearest)
    return picks, diversity


def _unit(embeddings: np.ndarray) -> np.ndarray:
    """Rows of unit length; zero rows stay zero, at distance 1 from everything else."""
    rows = np.asarray(embeddings, dtype=np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def _budget(budget: str, available: int, what: str) -> int:
    count = available if budget == "all" else int(budget)
    if count > available:
        raise InputError(
            f"the budget is {count}, but only {available} {what}; lower the budget or roll out more samples"
        )
    return count


def run(
    *,
    select: config.Select,
    samples: Path,
    scores: Path | None,
    embeddings: Path | None,
    method: str,
    budget: str,
    seed: int,
    out: Path,
) -> None:
    """Write selection.parquet."""
    table = schemas.read("samples", samples, ["sample_id", "split"])
    train = np.sort(schemas.numpy(table.filter(pc.equal(table["split"], "train")), "sample_id"))
    inputs: dict[str, Path] = {"samples": samples}
    if method in config.SIGNAL_FREE:
        count = _budget("all" if method == "full" else budget, len(train), "training samples are there")
        sample_id = np.random.default_rng(seed).choice(train, count, replace=False)
        none = pa.nulls(count, pa.float64())
        columns = {"value": none, "learnability": none, "representativeness": none, "diversity": none}
    else:
        if scores is None or embeddings is None:
            raise InputError(f"select --method {method} needs --scores and --embeddings; only random and full do not")
        inputs |= {"scores": scores, "embeddings": embeddings}
        scored = schemas.read("scores", scores)
        scored = scored.take(tensors.rows_of(schemas.numpy(scored, "sample_id"), train, scores))
        count = _budget(budget, len(train), "samples have scores")
        stored = tensors.read(embeddings, "sample_id", "embedding")
        points = stored["embedding"][tensors.rows_of(stored["sample_id"], train, embeddings)]
        learnable, typical = (schemas.numpy(scored, name) for name in ("learnability", "representativeness"))
        worth = _worth(select, learnable, typical)
        with progress("select", count, "picks") as bar:
            if "diversity" in select.terms:
                picks, diversity = greedy_with_diversity(points, worth, count)
            else:
                picks, diversity = np.argsort(-worth, kind="stable")[:count], np.ones(count)
            bar.add(count)
        sample_id = train[picks]
        columns = {
            "value": diversity * worth[picks],
            "learnability": learnable[picks],
            "representativeness": typical[picks],
            "diversity": diversity,
        }
    position = pa.array(range(len(sample_id)), pa.int32())
    made = Made("select", select.model_dump() | {"method": method, "budget": budget, "seed": seed}, inputs)
    schemas.write("selection", pa.table({"position": position, "sample_id": sample_id, **columns}), out, made)


def _worth(select: config.Select, learnability: np.ndarray, representativeness: np.ndarray) -> np.ndarray:
    """alpha L + R, of the terms that are on; 1 where diversity is the only one."""
    worth = np.zeros(len(learnability))
    if "learnability" in select.terms:
        worth += select.alpha * learnability
    if "representativeness" in select.terms:
        worth += representativeness
    return worth if set(select.terms) != {"diversity"} else np.ones(len(learnability))
