"""Amazon Reviews 2023 in its own format: a CSV.gz of interactions and a JSONL.gz of items."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from minirec.errors import InputError
from minirec.progress import log
from minirec.storage import database, tables
from minirec.storage.artefact import Provenance

INTERACTIONS = "benchmark/5core/rating_only/{category}.csv.gz"
ITEMS = "raw/meta_categories/meta_{category}.jsonl.gz"
ROWS = 1_000_000  # a row group


def convert(interactions: Path, items: Path, out: Path, memory: str, made: Provenance) -> None:
    """Write interactions.parquet and items.parquet into the folder `out`; raises InputError for damaged files.

    Items that are bought but have no metadata get a row with an empty title; of items listed twice the first counts.
    """
    with database.connect(memory, out) as engine:
        engine.execute("CREATE TEMP TABLE bought (item_id VARCHAR)")
        _write(engine, "interactions", interactions, out, made, _INTERACTIONS, [str(interactions)])
        engine.execute(
            "INSERT INTO bought SELECT DISTINCT item_id FROM read_parquet(?)", [str(out / "interactions.parquet")]
        )
        with _reading(items):
            engine.execute(f"CREATE TEMP TABLE listed AS {_ITEMS}", [str(items)])
        counts = engine.execute(
            "SELECT (SELECT count(*) FROM listed) - (SELECT count(DISTINCT item_id) FROM listed), "
            "(SELECT count(*) FROM bought ANTI JOIN listed USING (item_id))"
        ).fetchall()[0]
        log.info("items listed again and left out: %d; bought items without metadata: %d", *counts)
        _write(engine, "items", items, out, made, _ALL_ITEMS, [])


def _write(
    engine: duckdb.DuckDBPyConnection,
    name: str,
    source: Path,
    out: Path,
    made: Provenance,
    query: str,
    values: list[str],
) -> None:
    with _reading(source), tables.writer(name, out / f"{name}.parquet", made) as append:
        for part in _parts(engine, query, values):
            append(part)


def _parts(engine: duckdb.DuckDBPyConnection, query: str, values: list[str]) -> Iterator[pa.Table]:
    for batch in engine.sql(query, params=values).to_arrow_reader(ROWS):
        yield pa.Table.from_batches([batch])


class _reading:
    """Turn the engine's errors about a file into one sentence, and remove the file from the cache."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, duckdb.Error | ValueError):
            what = " ".join(str(error).split())[:300]
            machine = isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException)  # too little memory, disk
            if not machine or str(self.path) in str(error):
                self.path.unlink(missing_ok=True)
            raise InputError(
                f"{self.path} is not what Amazon Reviews 2023 looks like ({what}); fetch it again"
            ) from error


_INTERACTIONS = """
SELECT user_id, parent_asin AS item_id, timestamp, rating
FROM read_csv(?, header = true, delim = ',', auto_detect = false, columns = {
    'user_id': 'VARCHAR', 'parent_asin': 'VARCHAR', 'rating': 'FLOAT', 'timestamp': 'BIGINT'})
"""
_ITEMS = """
SELECT parent_asin AS item_id, coalesce(title, '') AS title,
    nullif(array_to_string(categories, ', '), '') AS categories, store,
    nullif(array_to_string(description, ' '), '') AS description,
    TRY_CAST(ltrim(price, '$') AS FLOAT) AS price, average_rating, rating_number, row_number() OVER () AS number
FROM read_json(?, format = 'newline_delimited', maximum_object_size = 67108864, columns = {
    'parent_asin': 'VARCHAR', 'title': 'VARCHAR', 'categories': 'VARCHAR[]', 'store': 'VARCHAR',
    'description': 'VARCHAR[]', 'price': 'VARCHAR', 'average_rating': 'FLOAT', 'rating_number': 'BIGINT'})
"""
_ALL_ITEMS = """
SELECT item_id, title, categories, store, description, price, average_rating, rating_number FROM (
    SELECT * FROM listed QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY number) = 1
    UNION ALL BY NAME
    SELECT item_id, '' AS title FROM bought ANTI JOIN listed USING (item_id))
ORDER BY item_id
"""
