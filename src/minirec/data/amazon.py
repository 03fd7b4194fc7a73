"""Amazon Reviews 2023: download a category, and convert it to interactions.parquet and items.parquet."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from minirec.data.download import download, partial_of
from minirec.data.usable_rows import price, require_few
from minirec.errors import InputError, one_line
from minirec.experiment import sources
from minirec.progress import log
from minirec.storage import database, tables
from minirec.storage.artefact import Provenance
from minirec.storage.user_files import JSON_BYTES, first_line, quoted, rejected_lines

INTERACTIONS = "benchmark/5core/rating_only/{category}.csv.gz"
ITEMS = "raw/meta_categories/meta_{category}.jsonl.gz"
MEMORY = "1GB"  # of DuckDB, which converts the files
ROWS = 1_000_000  # of a row group
FIELDS = ("user_id", "parent_asin", "rating", "timestamp")


class _Other(InputError):
    """The file at `path` is not one of Amazon's at all."""

    def __init__(self, path: Path, problem: object) -> None:
        super().__init__(f"{path} is not what Amazon Reviews 2023 looks like ({problem}); fetch it again")
        self.path = path


def fetch(source: sources.Dataset, out: Path, provenance: Provenance) -> None:
    """Download a category and write interactions.parquet and items.parquet; raises Unreachable without a network.

    A download stays for the next fetch unless it is damaged or not one of Amazon's files.
    """
    files = []
    for pattern in (INTERACTIONS, ITEMS):
        name = pattern.format(category=source.category)
        files.append(download(str(source.url).rstrip("/") + "/" + name, source.sha256.get(Path(name).name)))
        _require_whole(files[-1])
    try:
        convert(files[0], files[1], out, MEMORY, provenance)
    except _Other as other:
        other.path.unlink()
        raise


def convert(interactions: Path, items: Path, out: Path, memory: str, provenance: Provenance) -> None:
    """Write interactions.parquet and items.parquet into the folder `out`; raises InputError for damaged files.

    interactions: CSV.gz; items: JSONL.gz; memory: of DuckDB, e.g. "1GB". Bad lines are left out and counted in the log;
    if they are several and more than 1 %, that is an error. Items with interactions but without metadata get an empty
    title; of an item that is listed twice, the first row is kept.
    """
    with database.connect(memory, out) as engine:
        with _reading(interactions):
            _read_interactions(engine, interactions)
        with _reading(items):
            _read_items(engine, items)
        counts = engine.execute(
            "SELECT (SELECT count(*) FROM listed) - (SELECT count(DISTINCT item_id) FROM listed), "
            "(SELECT count(DISTINCT item_id) FROM interactions ANTI JOIN listed USING (item_id))"
        ).fetchall()[0]
        log.info("items listed again and left out: %d; bought items without metadata: %d", *counts)
        for name, rows in (("interactions", _INTERACTIONS), ("items", _ITEMS)):
            with _reading(items), tables.writer(name, out / f"{name}.parquet", provenance) as append:
                for batch in engine.sql(rows).to_arrow_reader(ROWS):
                    append(pa.Table.from_batches([batch]))


def _read_interactions(engine: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Make the table `interactions` of the usable lines; raises InputError over other columns or many bad lines."""
    names = first_line(path).split(",")
    if not set(FIELDS) <= set(names):
        raise _Other(path, f"its columns are {', '.join(names)[:100]}, not {', '.join(FIELDS)}")
    columns = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in names)
    engine.execute(
        f"CREATE TABLE interactions_lines AS SELECT * FROM read_csv({quoted(str(path))}, header = true, delim = ',', "
        f"quote = '', auto_detect = false, columns = {{{columns}}}, store_rejects = true, rejects_limit = 0, "
        "rejects_table = 'interactions_rejects', rejects_scan = 'interactions_scans')"
    )
    engine.execute(_TYPED)
    _drop(engine, path, "interactions", rejected_lines(engine, "interactions"))
    engine.execute("DROP TABLE interactions_lines")


def _read_items(engine: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Make the table `listed` of the usable lines; raises InputError if too few are usable."""
    engine.execute(_LISTED.format(price=price("price"), line=JSON_BYTES), [str(path)])
    if engine.execute("SELECT count(item_id) FROM listed").fetchall()[0][0] == 0:
        raise _Other(path, "no line of it is an item")
    _drop(engine, path, "listed", 0)


def _drop(engine: duckdb.DuckDBPyConnection, path: Path, table: str, unreadable: int) -> None:
    """Delete the rows of a table that have a `problem`; raises InputError if there are too many of them."""
    found = engine.execute(f"SELECT problem, count(*) FROM {table} GROUP BY 1 ORDER BY 1").fetchall()
    counts = {problem: count for problem, count in found if problem}
    counts |= {"unreadable_line": counts.get("unreadable_line", 0) + unreadable} if unreadable else {}
    total = unreadable + sum(count for _, count in found)
    require_few(counts, total, f"{path} (which is kept: delete it to download it again)", always=1)
    engine.execute(f"DELETE FROM {table} WHERE problem IS NOT NULL")
    log.info("%s: bad lines left out: %s", path.name, ", ".join(f"{k} {n}" for k, n in counts.items()) or "none")


def _require_whole(path: Path) -> None:
    """Raise InputError if a download is damaged; if it only ends too early, the next fetch completes it."""
    try:
        with gzip.open(path) as stream:
            while stream.read(1 << 22):
                pass
    except EOFError as error:
        path.replace(partial_of(path))
        raise InputError(f"{path} ends too early; fetch again, which downloads the rest") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        path.unlink()
        raise _Other(path, one_line(error)) from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors over a file into one sentence."""
    try:
        yield
    except duckdb.Error as error:
        raise InputError(f"{path} cannot be converted ({one_line(error, 300)}); fetch again") from error


_TYPED = """
CREATE TABLE interactions AS SELECT user_id, item_id, time AS timestamp, stars AS rating, CASE
    WHEN user_id IS NULL THEN 'without_user' WHEN item_id IS NULL THEN 'without_item'
    WHEN time IS NULL THEN 'time_unreadable' WHEN time < 0 THEN 'time_negative'
    WHEN rating IS NOT NULL AND TRY_CAST(rating AS FLOAT) IS NULL THEN 'rating_unreadable' END AS problem
FROM (SELECT user_id, parent_asin AS item_id, rating,
    CASE WHEN isfinite(TRY_CAST(rating AS FLOAT)) THEN rating::FLOAT END AS stars,
    TRY_CAST(timestamp AS BIGINT) AS time, rowid AS number FROM interactions_lines) ORDER BY number
"""
_LISTED = """
CREATE TABLE listed AS SELECT parent_asin AS item_id, coalesce(title, '') AS title,
    nullif(array_to_string(TRY_CAST(categories AS VARCHAR[]), ', '), '') AS categories, store,
    nullif(array_to_string(TRY_CAST(description AS VARCHAR[]), ' '), '') AS description,
    TRY_CAST({price} AS FLOAT) AS price,
    CASE WHEN isfinite(TRY_CAST(average_rating AS FLOAT)) THEN average_rating::FLOAT END AS average_rating,
    CASE WHEN TRY_CAST(rating_number AS BIGINT) >= 0 THEN rating_number::BIGINT END AS rating_number,
    row_number() OVER () AS number, CASE
        WHEN parent_asin IS NULL AND title IS NULL AND average_rating IS NULL THEN 'unreadable_line'
        WHEN coalesce(parent_asin, '') = '' THEN 'without_parent_asin' END AS problem
FROM read_json(?, format = 'newline_delimited', maximum_object_size = {line}, ignore_errors = true, columns = {{
    'parent_asin': 'VARCHAR', 'title': 'VARCHAR', 'categories': 'JSON', 'store': 'VARCHAR',
    'description': 'JSON', 'price': 'VARCHAR', 'average_rating': 'VARCHAR', 'rating_number': 'VARCHAR'}})
"""
_INTERACTIONS = "SELECT user_id, item_id, timestamp, rating FROM interactions"
_ITEMS = """
SELECT item_id, title, categories, store, description, price, average_rating, rating_number FROM (
    SELECT * FROM listed QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY number) = 1
    UNION ALL BY NAME
    SELECT DISTINCT item_id, '' AS title FROM interactions ANTI JOIN listed USING (item_id))
ORDER BY item_id
"""
