"""prepare: interactions and items to samples and a catalogue (METHOD 1).

What follows `interactions.read` is whole-column NumPy on the encoded interactions, so ten million of them fit into two
gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from minirec.data.interactions import CHUNK, Events, catalogue, read, refused
from minirec.errors import InputError
from minirec.experiment import config
from minirec.experiment.config import Filter, Prepare
from minirec.progress import log, progress
from minirec.storage import artefact, database, tables
from minirec.storage.artefact import Provenance


@dataclass(frozen=True)
class Samples:
    """One row a sample, in the order of sample_id; `event` and `start` are rows of the sorted events."""

    sample_id: np.ndarray  # [k] int64
    event: np.ndarray  # [k] int32, the target's row
    start: np.ndarray  # [k] int32, the first history row; the history is start..event-1


def core(events: Events, k: int) -> np.ndarray:
    """Mask [n] of the k-core: users and items with fewer than k interactions leave until none does."""
    keep = np.ones(len(events), dtype=bool)
    if k < 2:
        return keep
    users, items = events.user.max(initial=0) + 1, events.item.max(initial=0) + 1
    while True:
        of_user = np.bincount(events.user[keep], minlength=users)
        of_item = np.bincount(events.item[keep], minlength=items)
        stays = keep & (of_user[events.user] >= k) & (of_item[events.item] >= k)
        if stays.sum() == keep.sum():
            return keep
        keep = stays


def months_before(day: date, months: int) -> date:
    """The same day of the month, earlier; the last day where the month is shorter."""
    index = day.year * 12 + day.month - 1 - months
    for last in (day.day, 30, 29, 28):
        try:
            return date(index // 12, index % 12 + 1, last)
        except ValueError:
            continue
    raise AssertionError


def window(events: Events, filter: Filter) -> tuple[np.ndarray, dict[str, Any]]:
    """Mask [n] of the window and the k-core inside it, and what was used and dropped.

    While fewer than `min_items` items remain, the window starts earlier, until it reaches the first interaction.
    """
    start = filter.start
    first = int(events.timestamp.min())
    while True:
        inside = np.ones(len(events), dtype=bool)
        if start is not None:
            inside &= events.timestamp >= _ms(start)
        if filter.end is not None:
            inside &= events.timestamp < _ms(filter.end)
        kept = np.flatnonzero(inside)
        kept = kept[core(events.take(kept), filter.core)]
        items = len(np.unique(events.item[kept]))
        enough = filter.min_items is None or items >= filter.min_items
        if enough or start is None or _ms(start) <= first:
            break
        start = months_before(start, filter.step_months)
    mask = np.zeros(len(events), dtype=bool)
    mask[kept] = True
    dropped = {"outside_window": int((~inside).sum()), "outside_core": int(inside.sum() - len(kept))}
    return mask, {"start": start, "dropped": dropped}


def cut(events: Events, history: int) -> tuple[Samples, int]:
    """Samples of events sorted by (user, time), and how many were dropped as their target is in their history."""
    n = len(events)
    rows = np.arange(n, dtype=np.int32)
    first = np.maximum.accumulate(np.where(np.diff(events.user, prepend=-1) != 0, rows, np.int32(0)))
    start = np.maximum(first, rows - np.int32(history))
    repeated = np.zeros(n, dtype=bool)
    for lag in range(1, min(history, n - 1) + 1):
        repeated[lag:] |= (events.item[lag:] == events.item[:-lag]) & (start[lag:] <= rows[:-lag])
    sample = rows > first
    dropped = int((sample & repeated).sum())
    kept = rows[sample & ~repeated]
    del rows, first, repeated, sample
    kept = kept[np.lexsort((events.item[kept], events.user[kept], events.timestamp[kept]))]
    return Samples(np.arange(len(kept)), kept, start[kept]), dropped


def split(count: int, prepare: Prepare) -> dict[str, np.ndarray]:
    """Sample ids of train, valid and test: by time, then a seeded draw of each."""
    train, valid = Fraction(str(prepare.train_share)), Fraction(str(prepare.valid_share))
    edges = [0, int(train * count), int((train + valid) * count), count]
    found = {}
    for number, name in enumerate(("train", "valid", "test")):
        ids = np.arange(edges[number], edges[number + 1])
        most = getattr(prepare, f"max_{name}")
        if most is not None and most < len(ids):
            ids = np.sort(np.random.default_rng([prepare.seed, number]).choice(ids, most, replace=False))
        found[name] = ids
    return found


def popularity(events: Events, train: Samples, items: int) -> np.ndarray:
    """Interactions of each item [items] that are target or history of a training sample, each counted once."""
    edges = np.zeros(len(events) + 1, dtype=np.int32)
    np.add.at(edges, train.start, 1)
    np.add.at(edges, train.event + 1, -1)
    return np.bincount(events.item[np.cumsum(edges[:-1], dtype=np.int32) > 0], minlength=items)


def sample_tables(
    events: Events, samples: Samples, splits: dict[str, np.ndarray], users: pa.Array
) -> Iterator[pa.Table]:
    """samples.parquet in parts; users [u] are the ids by code."""
    for name, part in ((name, ids[i : i + CHUNK]) for name, ids in splits.items() for i in range(0, len(ids), CHUNK)):
        event, start = samples.event[part], samples.start[part]
        length = event - start
        offsets = np.concatenate([[0], np.cumsum(length)])
        rows = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length) + np.repeat(start, length)
        where = pa.array(offsets, pa.int32())
        rating = events.rating[rows]
        age = np.repeat(events.timestamp[event], length) - events.timestamp[rows]
        yield pa.table(
            {
                "sample_id": samples.sample_id[part],
                "split": pa.repeat(name, len(part)),
                "user_id": users.take(pa.array(events.user[event])),
                "target": events.item[event],
                "history": pa.ListArray.from_arrays(where, pa.array(events.item[rows])),
                "history_rating": pa.ListArray.from_arrays(where, pa.array(rating, mask=np.isnan(rating))),
                "history_age": pa.ListArray.from_arrays(where, pa.array(age)),
                "timestamp": events.timestamp[event],
            }
        )


def run(*, prepare: Prepare, interactions: Path, items: Path, filter: str, out: Path) -> None:
    """Write samples.parquet, catalogue.parquet and prepare.json."""
    rules = config.parse(Filter, filter, "--filter")
    made = Provenance(
        "prepare", prepare.model_dump() | {"filter": rules.model_dump()}, {"interactions": interactions, "items": items}
    )
    with database.connect(prepare.memory, out) as engine:
        _run(engine, prepare, rules, interactions, items, out, made)


def _run(
    engine: duckdb.DuckDBPyConnection,
    prepare: Prepare,
    rules: Filter,
    interactions: Path,
    items: Path,
    out: Path,
    made: Provenance,
) -> None:
    events, users, unknown = read(engine, interactions, items)
    log.info("read %d interactions of %d users", len(events), len(users))
    bad, reasons = refused(engine, rules)
    report: dict[str, Any] = {
        "interactions": len(events),
        "items": len(bad),
        "users": len(users),
        **unknown,
        "dropped_items": reasons,
        "dropped_interactions": {"of_dropped_items": int(bad[events.item].sum())},
    }
    events = events.take(~bad[events.item])
    _left(events, interactions, "every item is filtered out")
    mask, used = window(events, rules)
    report["dropped_interactions"] |= used["dropped"]
    report["window_start"] = used["start"].isoformat() if used["start"] else None
    events = events.take(mask)
    _left(events, interactions, "no interaction passes the filter")
    codes, item = np.unique(events.item, return_inverse=True)
    events = replace(events, item=item.astype(np.int32))
    report["dropped_items"]["without_interactions"] = len(bad) - int(bad.sum()) - len(codes)
    samples, repeated = cut(events, prepare.history)
    starters = len(np.unique(events.user))
    report |= {"kept_interactions": len(events), "kept_items": len(codes), "kept_users": starters}
    report["dropped_samples"] = {"target_in_history": repeated}
    if len(samples.sample_id) == 0:
        raise InputError(f"{interactions}: no user has two different items, so there is nothing to predict; add data")
    splits = split(len(samples.sample_id), prepare)
    report["samples"] = len(samples.sample_id)
    report |= {name: len(ids) for name, ids in splits.items()}
    empty = [name for name, ids in splits.items() if len(ids) == 0]
    if empty:
        raise InputError(
            f"{interactions}: {len(samples.sample_id)} samples leave none for {empty[0]}; add data or relax the filter"
        )
    train = Samples(*(column[splits["train"]] for column in (samples.sample_id, samples.event, samples.start)))
    count = popularity(events, train, len(codes))
    with tables.writer("catalogue", out / "catalogue.parquet", made) as append:
        for part in catalogue(engine, items, codes, count, prepare):
            append(part)
    with (
        tables.writer("samples", out / "samples.parquet", made) as append,
        progress("samples", sum(map(len, splits.values())), "samples") as bar,
    ):
        for part in sample_tables(events, samples, splits, users):
            append(part)
            bar.add(part.num_rows)
    for name, value in report.items():
        counts = ", ".join(f"{key} {n}" for key, n in value.items()) if isinstance(value, dict) else value
        log.info("%s: %s", name.replace("_", " "), counts)
    artefact.write_json(report, out / "prepare.json", made)


def _left(events: Events, path: Path, why: str) -> None:
    if len(events) == 0:
        raise InputError(f"{path}: nothing is left, {why}; relax datasets.NAME.filter")


def _ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
