"""prepare: interactions and items to samples and a catalogue (METHOD 1).

DuckDB reads, checks and encodes the files within `prepare.memory`; what follows is whole-column NumPy on the encoded
interactions, so ten million of them fit into two gigabytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from minirec import artefact, config, schemas
from minirec.artefact import Made
from minirec.config import Filter, Prepare
from minirec.errors import InputError
from minirec.progress import log, progress

CHUNK = 250_000  # rows a row group


@dataclass(frozen=True)
class Events:
    """Interactions as columns; user and item are ranks of their ids, so their order is the ids' order."""

    user: np.ndarray  # [n] int32
    item: np.ndarray  # [n] int32
    timestamp: np.ndarray  # [n] int64, ms
    rating: np.ndarray  # [n] float32, NaN where unknown

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Events:
        """These rows, or the rows where a mask is true."""
        return Events(self.user[rows], self.item[rows], self.timestamp[rows], self.rating[rows])


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


def tables(events: Events, samples: Samples, splits: dict[str, np.ndarray], users: pa.Array) -> Iterator[pa.Table]:
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


def read(engine: duckdb.DuckDBPyConnection, interactions: Path, items: Path) -> tuple[Events, pa.Array, dict[str, int]]:
    """Check and encode both files; the engine then holds `goods` (code, item_id) and a view `listed` of the items."""
    for path, name in ((items, "items"), (interactions, "interactions")):
        _check(engine, path, name)
    have = set(pq.read_schema(items).names)
    optional = ["categories", "store", "description", "price", "average_rating", "rating_number"]
    columns = ", ".join(c if c in have else f"NULL AS {c}" for c in ["item_id", "title", *optional])
    with _asking(items):
        engine.read_parquet(str(items)).project(columns).create_view("listed")
        engine.execute(
            "CREATE TABLE goods AS SELECT (row_number() OVER (ORDER BY item_id) - 1)::INTEGER AS code, item_id "
            "FROM listed ORDER BY code"
        )
    again = engine.execute(
        "SELECT item_id FROM goods GROUP BY item_id HAVING count(*) > 1 ORDER BY 1 LIMIT 1"
    ).fetchone()
    if again:
        raise InputError(f"{items}: item_id {again[0]} occurs twice; keep one row an item")
    rating = "rating" if "rating" in pq.read_schema(interactions).names else "NULL"
    with _asking(interactions):
        engine.execute(
            "CREATE TABLE people AS SELECT (row_number() OVER (ORDER BY user_id) - 1)::INTEGER AS code, user_id "
            "FROM (SELECT DISTINCT user_id FROM read_parquet(?)) ORDER BY code",
            [str(interactions)],
        )
        lost = engine.execute(
            "SELECT i.item_id, i.file_row_number FROM read_parquet(?, file_row_number = true) i "
            "ANTI JOIN goods USING (item_id) ORDER BY 2 LIMIT 1",
            [str(interactions)],
        ).fetchone()
        if lost:
            raise InputError(f"{interactions}: item {lost[0]} in row {lost[1]} has no row in {items}; add it there")
        found = engine.execute(
            "SELECT p.code AS u, g.code AS i, i.timestamp::BIGINT AS t, i.file_row_number::INTEGER AS n, "
            f"{rating}::FLOAT AS r "
            "FROM read_parquet(?, file_row_number = true) i JOIN people p USING (user_id) JOIN goods g USING (item_id)",
            [str(interactions)],
        ).fetchnumpy()
        ids: pa.Table = engine.sql("SELECT user_id FROM people ORDER BY code").to_arrow_table()
        engine.execute("DROP TABLE people")
    order = np.lexsort((found.pop("n"), found["t"], found["u"])).astype(np.int32)
    rating_ = np.ma.filled(np.ma.asarray(found.pop("r"), dtype=np.float32), np.nan)[order]
    rating_[~np.isfinite(rating_)] = np.nan
    user, item, time = (np.ma.getdata(found.pop(column))[order] for column in ("u", "i", "t"))
    unknown = int(np.isnan(rating_).sum())
    return Events(user, item, time, rating_), ids["user_id"].combine_chunks(), {"interactions_without_rating": unknown}


def refused(engine: duckdb.DuckDBPyConnection, filter: Filter) -> tuple[np.ndarray, dict[str, int]]:
    """Mask [m] of the items a filter refuses, and how many for which reason (the first that applies)."""
    rules = {
        "without_title": (filter.title, "trim(title) = ''"),
        "long_title": (
            filter.max_title_words is not None,
            f"len(string_split_regex(trim(title), '\\s+')) > {filter.max_title_words or 0}",
        ),
        "without_price": (filter.price, "price IS NULL OR NOT isfinite(price::DOUBLE)"),
    }
    case = " ".join(f"WHEN {test} THEN '{name}'" for name, (on, test) in rules.items() if on)
    if not case:
        count = engine.execute("SELECT count(*) FROM goods").fetchall()[0][0]
        return np.zeros(count, dtype=bool), {}
    found = engine.execute(
        f"SELECT coalesce(CASE {case} END, '') AS why FROM listed JOIN goods USING (item_id) ORDER BY code"
    ).fetchnumpy()["why"]
    reasons = np.asarray(found, dtype=str)
    return reasons != "", {name: int((reasons == name).sum()) for name, (on, _) in rules.items() if on}


def catalogue(
    engine: duckdb.DuckDBPyConnection, codes: np.ndarray, count: np.ndarray, prepare: Prepare
) -> Iterator[pa.Table]:
    """catalogue.parquet in parts, of the items with these codes, ascending; count [m] is their popularity."""
    words = prepare.description_words
    lines = {
        "title": _line("Title", "title"),
        "average_rating": "'Rating: ' || printf('%.1f', average_rating::DOUBLE)",
        "rating_number": "'Number of ratings: ' || rating_number::BIGINT",
        "categories": _line("Categories", "categories"),
        "store": _line("Store", "store"),
        "description": _line("Description", "description", words),
    }
    text = ", ".join(lines[name] for name in prepare.item_fields)
    row = np.arange(len(codes), dtype=np.int32)
    kept = {"row": row, "code": codes.astype(np.int32), "popularity": count.astype(np.int64)}
    engine.register("kept", pa.table(kept))
    found = engine.sql(
        f"SELECT row, item_id, {_clean('title')} AS title, concat_ws(chr(10), {text}) AS text, popularity "
        "FROM kept JOIN goods USING (code) JOIN listed USING (item_id) ORDER BY row"
    )
    for part in found.to_arrow_reader(CHUNK):
        yield pa.Table.from_batches([part])


def run(*, prepare: Prepare, interactions: Path, items: Path, filter: str, out: Path) -> None:
    """Write samples.parquet, catalogue.parquet and prepare.json."""
    rules = config.parse(Filter, filter, "--filter")
    made = Made(
        "prepare", prepare.model_dump() | {"filter": rules.model_dump()}, {"interactions": interactions, "items": items}
    )
    spill = artefact.temporary(out / "spill")
    spill.mkdir(parents=True, exist_ok=True)
    try:
        with duckdb.connect(
            config={
                "memory_limit": prepare.memory,
                "threads": min(2, os.cpu_count() or 1),
                "temp_directory": str(spill),
            }
        ) as engine:
            engine.execute("SET enable_progress_bar = false")  # it would go to stdout
            _run(engine, prepare, rules, interactions, items, out, made)
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _run(
    engine: duckdb.DuckDBPyConnection,
    prepare: Prepare,
    rules: Filter,
    interactions: Path,
    items: Path,
    out: Path,
    made: Made,
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
    with _asking(items), schemas.writer("catalogue", out / "catalogue.parquet", made) as append:
        for part in catalogue(engine, codes, count, prepare):
            append(part)
    with (
        schemas.writer("samples", out / "samples.parquet", made) as append,
        progress("samples", sum(map(len, splits.values())), "samples") as bar,
    ):
        for part in tables(events, samples, splits, users):
            append(part)
            bar.add(part.num_rows)
    for name, value in report.items():
        counts = ", ".join(f"{key} {n}" for key, n in value.items()) if isinstance(value, dict) else value
        log.info("%s: %s", name.replace("_", " "), counts)
    artefact.write_json(report, out / "prepare.json", made)


def _check(engine: duckdb.DuckDBPyConnection, path: Path, name: str) -> None:
    """Raise InputError where a file is no Parquet file or breaks the table's schema."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; put your data there or fetch it")
    with schemas.opened(path, foreign=True) as (file, _):
        schema = file.schema_arrow
    spec = schemas.TABLES[name]
    for column, rule in spec.columns.items():
        if column not in schema.names:
            if rule.optional:
                continue
            raise InputError(f"{path} has no column {column}; {name} needs {_needed(name)}")
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        fits = text if rule.type == "str" else pa.types.is_integer(kind) if column == "timestamp" else number
        if not fits and not pa.types.is_null(kind):
            wanted = {"str": "text", "i64": "whole numbers"}.get(rule.type, "numbers")
            raise InputError(f"{path}: column {column} is {kind}, not {wanted}; convert it")
    tests = []
    for column, rule in spec.columns.items():
        if column in schema.names and not rule.nullable:
            tests.append((column, "has a null", f"{column} IS NULL"))
            if rule.low is not None:
                tests.append((column, "is negative", f"{column} < {rule.low}"))
    rows = "SELECT count(*) FROM read_parquet(?)"
    with _asking(path):
        if engine.execute(rows, [str(path)]).fetchall()[0][0] == 0:
            raise InputError(f"{path} is empty; {name} needs at least one row")
        case = " ".join(f"WHEN {test} THEN {i}" for i, (_, _, test) in enumerate(tests))
        bad = engine.execute(
            f"SELECT CASE {case} END AS why, file_row_number FROM read_parquet(?, file_row_number = true) "
            "WHERE why IS NOT NULL ORDER BY 2 LIMIT 1",
            [str(path)],
        ).fetchone()
    if bad:
        column, what, _ = tests[bad[0]]
        raise InputError(f"{path}: column {column} {what} in row {bad[1]}; correct or remove the row")


def _needed(name: str) -> str:
    return ", ".join(column for column, rule in schemas.TABLES[name].columns.items() if not rule.optional)


class _asking:
    """Turn the engine's errors about a file into one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, duckdb.Error):
            what = " ".join(str(error).split())[:200]
            hint = "text must be UTF-8" if "UTF" in what or "encoding" in what else "make or copy it again"
            raise InputError(f"{self.path} cannot be read ({what}); {hint}") from error


def _left(events: Events, path: Path, why: str) -> None:
    if len(events) == 0:
        raise InputError(f"{path}: nothing is left, {why}; relax datasets.NAME.filter")


def _ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def _clean(column: str) -> str:
    """SQL: text on one line, without control characters."""
    return f"trim(regexp_replace({column}, '[[:cntrl:]\\s]+', ' ', 'g'))"


def _line(label: str, column: str, words: int | None = None) -> str:
    """SQL: `Label: text`, null where there is no text."""
    text = _clean(column)
    if words is not None:
        text = f"array_to_string(list_slice(string_split({text}, ' '), 1, {words}), ' ')"
    return f"'{label}: ' || nullif({text}, '')"
