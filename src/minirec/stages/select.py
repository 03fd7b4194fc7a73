"""select: the best samples within the budget, each unlike those already kept (METHOD 4.5, 4.6).

Where the samples are shared among jobs, each picks as many of its own as the budget allows, and a last one picks among
these: the greedy choice in two rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minirec.errors import InputError
from minirec.experiment import config
from minirec.experiment.validation import require_shard
from minirec.progress import progress
from minirec.selection.distances import TIE, ArgmaxCache, NearestDistances
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance


def greedy(embeddings: np.ndarray, value: np.ndarray, budget: int) -> np.ndarray:
    """Row numbers in order of choice, int64 [budget] (METHOD 4.6); exact, see `nearest`.

    embeddings [n, d], value [n] = alpha L + R >= 0. First argmax value, then argmax D~ value among the rows not yet
    picked, D~ the cosine distance to the nearest pick over its largest value. Ties: lowest row.
    """
    return _greedy(embeddings, value, budget, lambda: None, None)


def greedy_with_diversity(
    embeddings: np.ndarray, value: np.ndarray, budget: int, picked: Callable[[], None] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """`greedy` and D~ of each pick when it was picked [budget]; 1 for the first. Calls `picked` after every pick."""
    diversity = np.ones(budget)
    return _greedy(embeddings, value, budget, picked, diversity), diversity


def _greedy(
    embeddings: np.ndarray, value: np.ndarray, budget: int, picked: Callable[[], None], diversity: np.ndarray | None
) -> np.ndarray:
    """As D~ is the distance over what is the same for all rows, the argmax is that of distance x value."""
    value = np.asarray(value, dtype=np.float64)
    if not 0 <= budget <= len(value):
        raise ValueError(f"budget {budget} is not within 0..{len(value)}")
    if not (value >= 0).all():
        raise ValueError("a value is negative or not a number")
    nearest = NearestDistances(embeddings, budget)
    best, farthest = ArgmaxCache(nearest, value), ArgmaxCache(nearest, np.ones(len(value)))
    open_ = np.ones(len(value), dtype=bool)
    picks = np.empty(budget, dtype=np.int64)
    for position in range(budget):
        if position == 0:
            ties = np.flatnonzero(value >= value.max() - TIE)
        else:
            _, ties = best.find()
        pick = int(ties[0] if len(ties) else np.argmax(open_))  # all gains are 0: the first row left
        if position and diversity is not None:
            largest, _ = farthest.find()
            nearest.update(np.array([pick]))
            diversity[position] = nearest.distance[pick] / largest if largest else 0.0
        picks[position], open_[pick] = pick, False
        nearest.pick(pick)
        picked()
    return picks


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
    shard: int | None,
    winners: list[Path] | None,
    out: Path,
) -> None:
    """Write selection.parquet: of all training samples, of one shard of them, or of what the shards have picked."""
    table = tables.read("samples", samples, ["sample_id", "split"])
    train = np.sort(tables.numpy(table.filter(pc.equal(table["split"], "train")), "sample_id"))
    inputs: dict[str, Path] = {"samples": samples}
    if method in config.SIGNAL_FREE:
        count = _budget("all" if method == "full" else budget, len(train), "training samples are there")
        sample_id = np.random.default_rng(seed).choice(train, count, replace=False)
        none = pa.nulls(count, pa.float64())
        columns = {"value": none, "learnability": none, "representativeness": none, "diversity": none}
    else:
        if scores is None or embeddings is None:
            raise InputError(f"select --method {method} needs --scores and --embeddings; only random and full do not")
        require_shard("select", shard, select.shards)
        inputs |= {"scores": scores, "embeddings": embeddings}
        pool = train
        if winners:
            pool = np.sort(np.concatenate([tables.numpy(tables.read("selection", f), "sample_id") for f in winners]))
            inputs |= {f"shard{number}": file for number, file in enumerate(winners)}
        elif shard is not None:
            pool = train[len(train) * shard // select.shards : len(train) * (shard + 1) // select.shards]
        scored = tables.read("scores", scores)
        scored = scored.take(tensors.rows_of(tables.numpy(scored, "sample_id"), pool, scores))
        if shard is None:
            count = _budget(budget, len(pool), "samples have scores")
            tensors.shapes(embeddings, "sample_id", "embedding")  # a shard leaves this to the last round
        else:
            count = len(pool) if budget == "all" else min(int(budget), len(pool))
        stored = tensors.read_rows(embeddings, "sample_id")
        points = tensors.take(embeddings, "embedding", tensors.rows_of(stored, pool, embeddings))
        learnable, typical = (tables.numpy(scored, name) for name in ("learnability", "representativeness"))
        worth = _worth(select, learnable, typical)
        with progress("select", count, "picks") as bar:
            if "diversity" in select.terms:
                picks, diversity = greedy_with_diversity(points, worth, count, bar.add)
            else:
                picks, diversity = np.argsort(-worth, kind="stable")[:count], np.ones(count)
                bar.add(count)
        sample_id = pool[picks]
        columns = {
            "value": diversity * worth[picks],
            "learnability": learnable[picks],
            "representativeness": typical[picks],
            "diversity": diversity,
        }
    position = pa.array(range(len(sample_id)), pa.int32())
    made = Provenance("select", select.model_dump() | {"method": method, "budget": budget, "seed": seed}, inputs)
    tables.write("selection", pa.table({"position": position, "sample_id": sample_id, **columns}), out, made)


def _worth(select: config.Select, learnability: np.ndarray, representativeness: np.ndarray) -> np.ndarray:
    """alpha L + R, of the terms that are on; 1 where diversity is the only one."""
    worth = np.zeros(len(learnability))
    if "learnability" in select.terms:
        worth += select.alpha * learnability
    if "representativeness" in select.terms:
        worth += representativeness
    return worth if set(select.terms) != {"diversity"} else np.ones(len(learnability))
