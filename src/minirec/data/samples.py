"""Make samples from interactions: filter, cut histories, split by time, count popularity (METHOD 1).

NumPy works on whole columns, so ten million interactions fit into two gigabytes.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from minirec.data.interactions import CHUNK, Interactions, read, rejected_items
from minirec.data.times import milliseconds_of
from minirec.errors import InputError
from minirec.experiment.sections import Prepare
from minirec.experiment.sources import Filter, Format
from minirec.progress import log


@dataclass(frozen=True)
class Samples:
    """Samples [k] as rows of the interactions, which are sorted by (user, time); the position is the sample_id."""

    target: np.ndarray  # [k] int32
    start: np.ndarray  # [k] int32; the history is the rows start..target-1


@dataclass(frozen=True)
class Prepared:
    """What the stage prepare writes: samples, catalogue, and a report of what was dropped and why."""

    interactions: Interactions  # that passed the filter; `item` is now a row of the catalogue
    users: pa.Array  # [u] user ids by code
    item_codes: np.ndarray  # [m] codes of the catalogue's items, ascending
    popularity: np.ndarray  # [m] training interactions of each item
    samples: Samples
    splits: dict[str, np.ndarray]  # sample ids of train, valid, test
    report: dict[str, Any]
    timed: bool  # whether times are known, not only the order

    def tables(self) -> Iterator[pa.Table]:
        """Yield samples.parquet in parts."""
        for split, ids in self.splits.items():
            for begin in range(0, len(ids), CHUNK):
                yield self._table(split, ids[begin : begin + CHUNK])

    def _table(self, split: str, sample_id: np.ndarray) -> pa.Table:
        target, start = self.samples.target[sample_id], self.samples.start[sample_id]
        length = target - start
        offsets = np.concatenate([[0], np.cumsum(length)])
        rows = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length) + np.repeat(start, length)
        lists = pa.array(offsets, pa.int32())
        rating = self.interactions.rating[rows]
        timestamp = self.interactions.timestamp[target]
        age = np.repeat(timestamp, length) - self.interactions.timestamp[rows]
        ageless = pa.nulls(len(age), pa.int64())
        return pa.table(
            {
                "sample_id": sample_id,
                "split": pa.repeat(split, len(sample_id)),
                "user_id": self.users.take(pa.array(self.interactions.user[target])),
                "target_row": self.interactions.item[target],
                "history_rows": pa.ListArray.from_arrays(lists, pa.array(self.interactions.item[rows])),
                "history_rating": pa.ListArray.from_arrays(lists, pa.array(rating, mask=np.isnan(rating))),
                "history_age_ms": pa.ListArray.from_arrays(lists, pa.array(age) if self.timed else ageless),
                "timestamp": timestamp,
            }
        )


def prepare(
    engine: duckdb.DuckDBPyConnection, interactions: Path, items: Path, rules: Filter, form: Format, settings: Prepare
) -> Prepared:
    """Filter and split a data set, given by its two files; raises InputError if too little is left."""
    data, users, report = read(engine, interactions, items, rules, form)
    log.info("read %d interactions of %d users", len(data), len(users))
    rejected, reasons = rejected_items(engine, rules)
    report |= {"interactions_without_rating": int(np.isnan(data.rating).sum()), "dropped_items": reasons}
    report["dropped_interactions"]["of_dropped_items"] = int(rejected[data.item].sum())
    data = data.take(~rejected[data.item])
    _require_any(data, interactions, "every item is filtered out")
    kept, start, dropped = window(data, rules)
    report["dropped_interactions"] |= dropped
    report["window_start"] = start.isoformat() if start else None
    data = data.take(kept)
    _require_any(data, interactions, _what_emptied(rules, dropped))
    item_codes, row = np.unique(data.item, return_inverse=True)
    data = replace(data, item=row.astype(np.int32))
    report["dropped_items"]["without_interactions"] = len(rejected) - int(rejected.sum()) - len(item_codes)
    by_place = form.time_unit == "order"
    if by_place:
        data = replace(data, timestamp=places(data.user))
    samples, repeated = cut(data, settings.history)
    count = len(samples.target)
    report |= {"kept_interactions": len(data), "kept_items": len(item_codes)}
    report |= {"kept_users": len(np.unique(data.user)), "dropped_samples": {"target_in_history": repeated}}
    if count == 0:
        raise InputError(f"{interactions}: no user has two different items, so there is nothing to predict; add data")
    samples, edges = split_users(data, samples, settings) if by_place else (samples, shares(count, settings))
    splits = split([int(edge) for edge in edges], settings)
    report["split_by"] = "the place in each user's sequence" if by_place else "time"
    report |= {"samples": count} | {name: len(ids) for name, ids in splits.items()}
    for name, ids in splits.items():
        if len(ids) == 0:
            raise InputError(f"{interactions}: {count} samples leave none for {name}; add data or relax the filter")
    counts = popularity(data, samples, splits["train"], len(item_codes))
    return Prepared(data, users, item_codes, counts, samples, splits, report, not by_place)


def core(interactions: Interactions, k: int) -> np.ndarray:
    """Mask [n] of the k-core: drop users and items with fewer than k interactions until none is left.

    >>> user, item = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 2])
    >>> core(Interactions(user, item, np.arange(5), np.zeros(5)), 2)
    array([ True,  True,  True,  True, False])
    """
    keep = np.ones(len(interactions), dtype=bool)
    if k < 2:
        return keep
    users, items = interactions.user.max(initial=0) + 1, interactions.item.max(initial=0) + 1
    while True:
        of_user = np.bincount(interactions.user[keep], minlength=users)
        of_item = np.bincount(interactions.item[keep], minlength=items)
        stays = keep & (of_user[interactions.user] >= k) & (of_item[interactions.item] >= k)
        if stays.sum() == keep.sum():
            return keep
        keep = stays


def months_before(day: date, months: int) -> date:
    """The same day of the month some months earlier, or the last day of a shorter month; not before year 1.

    >>> months_before(date(2022, 5, 31), 3)
    datetime.date(2022, 2, 28)
    """
    year, month = divmod(max(12, day.year * 12 + day.month - 1 - months), 12)
    return date(year, month + 1, min(day.day, calendar.monthrange(year, month + 1)[1]))


def window(interactions: Interactions, rules: Filter) -> tuple[np.ndarray, date | None, dict[str, int]]:
    """Mask [n] of the k-core within the time window, the window's first day, and numbers dropped by reason.

    While fewer than `min_items` items remain, the window starts earlier, until it reaches the first interaction.
    """
    start = rules.start
    first = int(interactions.timestamp.min())
    while True:
        inside = np.ones(len(interactions), dtype=bool)
        if start is not None:
            inside &= interactions.timestamp >= milliseconds_of(start)
        if rules.end is not None:
            inside &= interactions.timestamp < milliseconds_of(rules.end)
        kept = np.flatnonzero(inside)
        kept = kept[core(interactions.take(kept), rules.core)]
        items = len(np.unique(interactions.item[kept]))
        enough = rules.min_items is None or items >= rules.min_items
        if enough or start is None or milliseconds_of(start) <= first:
            break
        start = months_before(start, rules.step_months)
    mask = np.zeros(len(interactions), dtype=bool)
    mask[kept] = True
    dropped = {"outside_window": int((~inside).sum()), "outside_core": int(inside.sum() - len(kept))}
    return mask, start, dropped


def cut(interactions: Interactions, history: int) -> tuple[Samples, int]:
    """All samples of interactions sorted by (user, time); a sample's history is at most `history` interactions.

    Also returns how many samples were dropped because the target is in their history.
    """
    n = len(interactions)
    user, item, timestamp = interactions.user, interactions.item, interactions.timestamp
    rows = np.arange(n, dtype=np.int32)
    first = np.maximum.accumulate(np.where(np.diff(user, prepend=-1) != 0, rows, np.int32(0)))  # of the same user
    start = np.maximum(first, rows - np.int32(history))
    repeated = np.zeros(n, dtype=bool)
    for lag in range(1, min(history, n - 1) + 1):
        repeated[lag:] |= (item[lag:] == item[:-lag]) & (start[lag:] <= rows[:-lag])
    has_history = rows > first
    dropped = int((has_history & repeated).sum())
    target = rows[has_history & ~repeated]
    del rows, first, repeated, has_history  # ten million interactions must fit
    target = target[np.lexsort((item[target], user[target], timestamp[target]))]
    return Samples(target, start[target]), dropped


def places(user: np.ndarray) -> np.ndarray:
    """Place [n], from 0, of each interaction in its user's sequence; user [n]: codes, sorted.

    >>> places(np.array([3, 3, 5]))
    array([0, 1, 0])
    """
    rows = np.arange(len(user), dtype=np.int64)
    return rows - np.maximum.accumulate(np.where(np.diff(user, prepend=-1) != 0, rows, 0))


def shares(count: int | np.ndarray, settings: Prepare) -> list[Any]:
    """Where train, valid and test of this many samples begin and end, rounded down: 0, two edges, and the count."""
    train, valid = Fraction(str(settings.train_share)), Fraction(str(settings.valid_share))
    edges = [share.numerator * count // share.denominator for share in (train, train + valid)]
    return [0, *edges, count]


def split_users(interactions: Interactions, samples: Samples, settings: Prepare) -> tuple[Samples, list[int]]:
    """The samples in order of (split, place, user, item), and the edges of the splits.

    Each user's sequence is split for itself: the first share of a user's samples is train, the last test.
    """
    user = interactions.user[samples.target]
    order = np.lexsort((samples.target, user))
    place = np.empty_like(order)
    place[order] = places(user[order])
    _, train, valid, _ = shares(np.bincount(user)[user], settings)
    part = (place >= train).astype(int) + (place >= valid)
    order = np.argsort(part, kind="stable")
    return Samples(samples.target[order], samples.start[order]), [0, *np.cumsum(np.bincount(part, minlength=3))]


def split(edges: list[int], settings: Prepare) -> dict[str, np.ndarray]:
    """Sample ids of train, valid and test, which begin and end at these edges; random ones of each where limited."""
    splits = {}
    for number, name in enumerate(("train", "valid", "test")):
        ids = np.arange(edges[number], edges[number + 1])
        limit = getattr(settings, f"max_{name}")
        if limit is not None and limit < len(ids):
            ids = np.sort(np.random.default_rng([settings.seed, number]).choice(ids, limit, replace=False))
        splits[name] = ids
    return splits


def popularity(interactions: Interactions, samples: Samples, train: np.ndarray, items: int) -> np.ndarray:
    """Interactions of each item [items] that are target or history of one of the samples `train`, each counted once."""
    steps = np.zeros(len(interactions) + 1, dtype=np.int32)  # their sum counts the samples that use an interaction
    np.add.at(steps, samples.start[train], 1)
    np.add.at(steps, samples.target[train] + 1, -1)
    return np.bincount(interactions.item[np.cumsum(steps[:-1], dtype=np.int32) > 0], minlength=items)


def _require_any(interactions: Interactions, path: Path, why: str) -> None:
    if len(interactions) == 0:
        raise InputError(f"{path}: nothing is left, {why}; relax datasets.NAME.filter")


def _what_emptied(rules: Filter, dropped: dict[str, int]) -> str:
    """Which setting of the filter leaves nothing."""
    if dropped["outside_core"]:
        return f"no user and item has {rules.core} interactions among {dropped['outside_core']} (filter.core)"
    return "no interaction is between filter.start and filter.end"
