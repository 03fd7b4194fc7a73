"""select: pick the training samples within the budget by a selection method (METHOD 4.5, 4.6).

With `select.shards` above 1 there are two rounds: each shard of the samples gets its own picks, as many as the budget,
and a last job picks among all of these.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from minirec.data import stored_signals as stored
from minirec.errors import InputError
from minirec.experiment.sections import Select
from minirec.experiment.validation import require_shard
from minirec.progress import log
from minirec.selection.methods.registry import Method, find
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output

COLUMNS = ("mean_reward", "learnability", "representativeness")  # of each pick, beside its value and diversity


def run(
    *,
    select: Select,
    samples: Path,
    scores: Path | None = None,
    rollouts: Path | None = None,
    embeddings: Path | None = None,
    influences: Path | None = None,
    shards_folder: Path | None = None,
    method: str = "minirec",
    budget: str,
    seed: int = 0,
    shard: int | None = None,
    selection: Output,
) -> None:
    """Write selection.parquet, picked from all training samples, from one shard, or from the shards' picks."""
    chosen = _method(method, scores, rollouts, embeddings, influences)
    require_shard("select", shard, select.shards)
    if embeddings is not None and shard is None:
        tensors.shapes(embeddings, "sample_id", "embedding")  # reads all of it for damage; a shard leaves that out
    picked_before = (
        [shards_folder / str(n) / "selection.parquet" for n in range(select.shards)] if shards_folder else []
    )
    pool = stored.pool(samples, shard, select.shards, picked_before)
    signals = stored.load(pool, samples, scores, rollouts, embeddings, influences)
    count = _count("all" if chosen.takes_all else budget, len(pool), shard is not None)
    log.info("%s: %d of %d samples", method, count, len(pool))
    settings = {name: getattr(select, name) for name in chosen.settings}
    picks = chosen.pick(signals, count, np.random.default_rng(seed), **settings)
    picked = signals.take(picks.rows)
    columns = {name: getattr(picked, name) for name in COLUMNS} | {"value": picks.value, "diversity": picks.diversity}
    table = {
        "position": pa.array(range(count), pa.int32()),
        "sample_id": picked.sample_id,
        **{name: pa.nulls(count, pa.float64()) if c is None else c for name, c in columns.items()},
    }
    inputs = {"samples": samples, "scores": scores, "rollouts": rollouts, "embeddings": embeddings}
    inputs["influences"] = influences
    inputs |= {f"shard{number}": file for number, file in enumerate(picked_before)}
    provenance = Provenance(
        "select",
        {"shards": select.shards, **settings, "method": method, "budget": budget, "seed": seed},
        {name: file for name, file in inputs.items() if file is not None},
    )
    tables.write("selection", pa.table(table), selection, provenance)


def _method(
    name: str, scores: Path | None, rollouts: Path | None, embeddings: Path | None, influences: Path | None
) -> Method:
    """The method of a name; raises InputError if it is unknown, or a file that it needs is missing."""
    method = find(name)
    flags = {
        "rewards": ("--scores" if "gradients" in method.needs else "--rollouts or --scores", rollouts or scores),
        "gradients": ("--scores", scores),
        "errors": ("--scores", scores),
        "embeddings": ("--embeddings", embeddings),
        "influence": ("--influences", influences),
    }
    missing = [flags[need][0] for need in method.needs if need in flags and flags[need][1] is None]
    if missing:
        raise InputError(f"select --method {name} needs {' and '.join(dict.fromkeys(missing))}")
    return method


def _count(budget: str, available: int, at_most: bool) -> int:
    """How many samples to pick; with `at_most`, as for a shard, the budget may exceed the number available."""
    if budget != "all" and not (budget.isdecimal() and int(budget)):
        raise InputError(f"--budget is {budget}, but it must be a number of samples, 1 or more, or all")
    count = available if budget == "all" else int(budget)
    if count > available and not at_most:
        raise InputError(
            f"the budget is {count}, but only {available} samples can be chosen; "
            "lower the budget or roll out more samples"
        )
    return min(count, available)
