"""Amazon Reviews 2023: download a category, and convert it to interactions.parquet and items.parquet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from minirec.data.download import download
from minirec.errors import InputError, one_line
from minirec.experiment import config
from minirec.progress import log
from minirec.storage import database, tables
from minirec.storage.artefact import Provenance

INTERACTIONS = "benchmark/5core/rating_only/{category}.csv.gz"
ITEMS = "raw/meta_categories/meta_{category}.jsonl.gz"
MEMORY = "1GB"  # of DuckDB, which converts the files
ROWS = 1_000_000  # of a row group


def fetch(source: config.Dataset, out: Path, provenance: Provenance) -> None:
    """Download a category and write interactions.parquet and items.parquet; raises Unreachable without a network."""
    files = []
    for pattern in (INTERACTIONS, ITEMS):
        name = pattern.format(category=source.category)
        files.append(download(str(source.url).rstrip("/") + "/" + name, source.sha256.get(Path(name).name)))
    convert(files[0], files[1], out, MEMORY, provenance)


def convert(interactions: Path, items: Path, out: Path, memory: str, provenance: Provenance) -> None:
    """Write interactions.parquet and items.parquet into the folder `out`; raises InputError for damaged files.

    interactions: CSV.gz; items: JSONL.gz; memory: of DuckDB, e.g. "1GB". Items with interactions but without metadata
    get an empty title; of an item that is listed twice, the first row is kept.
    """
    with database.connect(memory, out) as engine:
        _write(engine, "interactions", interactions, out, provenance)
        engine.execute(
            "CREATE TEMP TABLE bought AS SELECT DISTINCT item_id FROM read_parquet(?)",
            [str(out / "interactions.parquet")],
        )
        with _reading(items):
            engine.execute(f"CREATE TEMP TABLE listed AS {_LISTED}", [str(items)])
        counts = engine.execute(
            "SELECT (SELECT count(*) FROM listed) - (SELECT count(DISTINCT item_id) FROM listed), "
            "(SELECT count(*) FROM bought ANTI JOIN listed USING (item_id))"
        ).fetchall()[0]
        log.info("items listed again and left out: %d; bought items without metadata: %d", *counts)
        _write(engine, "items", items, out, provenance)


def _write(engine: duckdb.DuckDBPyConnection, name: str, source: Path, out: Path, provenance: Provenance) -> None:
    """Write the table interactions or items part by part, so that it need not fit into memory."""
    with _reading(source), tables.writer(name, out / f"{name}.parquet", provenance) as append:
        rows = engine.sql(_INTERACTIONS, params=[str(source)]) if name == "interactions" else engine.sql(_ITEMS)
        for batch in rows.to_arrow_reader(ROWS):
            append(pa.Table.from_batches([batch]))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn DuckDB's errors into one sentence, and remove the file from the cache if its content is the cause."""
    try:
        yield
    except (duckdb.Error, ValueError) as error:
        of_machine = isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException)  # memory or disk is short
        if not of_machine or str(path) in str(error):
            path.unlink(missing_ok=True)
        raise InputError(
            f"{path} is not what Amazon Reviews 2023 looks like ({one_line(error, 300)}); fetch it again"
        ) from error


_INTERACTIONS = """
SELECT user_id, parent_asin AS item_id, timestamp, rating
FROM read_csv(?, header = true, delim = ',', auto_detect = false, columns = {
    'user_id': 'VARCHAR', 'parent_asin': 'VARCHAR', 'rating': 'FLOAT', 'timestamp': 'BIGINT'})
"""
_LISTED = """
SELECT parent_asin AS item_id, coalesce(title, '') AS title,
    nullif(array_to_string(categories, ', '), '') AS categories, store,
    nullif(array_to_string(description, ' '), '') AS description,
    TRY_CAST(ltrim(price, '$') AS FLOAT) AS price, average_rating, rating_number, row_number() OVER () AS number
FROM read_json(?, format = 'newline_delimited', maximum_object_size = 67108864, columns = {
    'parent_asin': 'VARCHAR', 'title': 'VARCHAR', 'categories': 'VARCHAR[]', 'store': 'VARCHAR',
    'description': 'VARCHAR[]', 'price': 'VARCHAR', 'average_rating': 'FLOAT', 'rating_number': 'BIGINT'})
"""
_ITEMS = """
SELECT item_id, title, categories, store, description, price, average_rating, rating_number FROM (
    SELECT * FROM listed QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY number) = 1
    UNION ALL BY NAME
    SELECT item_id, '' AS title FROM bought ANTI JOIN listed USING (item_id))
ORDER BY item_id
"""
