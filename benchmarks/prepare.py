"""Time and memory of fetch's conversion and of prepare, on made-up files in the format of Amazon Reviews 2023.

A full category by default: ten million interactions of a 5-core file and a million items. Aims: prepare in at most
180 s and 2 GB on two cores. Each stage runs in a process of its own; its peak memory is what the kernel reports.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from minirec.experiment import commands, config

CONFIG = Path(__file__).parents[1] / "config" / "config.yaml"
CONVERT = """
import sys
from pathlib import Path
from minirec.data import amazon
from minirec.storage.artefact import Provenance
interactions, items, out = map(Path, sys.argv[1:])
out.mkdir()
amazon.convert(interactions, items, out, amazon.MEMORY, Provenance("fetch", {}))
"""

# five interactions for every user, the rest skewed; items follow a power law; times go through 20 years
INTERACTIONS = """
COPY (
    SELECT 'A' || upper(md5('u' || u)[:27]) AS user_id, 'B' || upper(md5('i' || i)[:9]) AS parent_asin,
        rating, timestamp
    FROM (SELECT
        CASE WHEN n < 5 * {users} THEN n % {users}
            ELSE floor({users} * pow(hash(n) % 1000003 / 1000003, 2)) END::BIGINT AS u,
        floor({items} * pow(hash(n + 1000000007) % 1000003 / 1000003, 3))::BIGINT AS i,
        (1 + hash(n + 5) % 5)::DOUBLE AS rating,
        1064000000000 + (hash(n + 7) % 630000000) * 1000 + hash(n + 9) % 1000 AS timestamp
        FROM (SELECT range AS n FROM range({interactions})))
) TO '{path}' (HEADER, DELIMITER ',', COMPRESSION gzip)
"""
# titles, features and descriptions are drawn out of a few thousand sentences
SENTENCES = """
SET VARIABLE s = (SELECT list(sentence ORDER BY k) FROM (
    SELECT range // 12 AS k, string_agg(md5('w' || hash(range) % 30000)[:3 + hash(range + 3) % 7], ' ') AS sentence
    FROM range(12 * 8192) GROUP BY k))
"""
ITEMS = """
COPY (
    SELECT 'Synthetic' AS main_category, s(a)[:20 + b % 60] AS title, 1 + (b % 41) / 10 AS average_rating,
        b % 5000 AS rating_number, [s(b), s(c), s(b + 1)] AS features,
        CASE WHEN a % 3 = 0 THEN [] ELSE [s(c + 1) || s(a), s(a + 2) || s(a + 3) || s(c + 2) || s(c + 3)] END
            AS description,
        CASE WHEN b % 10 < 4 THEN NULL ELSE (5 + b % 90000 / 100)::DECIMAL(9, 2)::VARCHAR END AS price,
        [{{'thumb': 'https://example.org/' || md5('p' || i), 'variant': 'MAIN'}}] AS images,
        s(b + 4)[:15] AS store, ['Synthetic', s(c % 40 + 1)[:12]] AS categories,
        {{'Brand': s(b + 4)[:15], 'Weight': b % 40 || ' ounces'}} AS details,
        'B' || upper(md5('i' || i)[:9]) AS parent_asin
    FROM (SELECT range AS i, (1 + hash(range) % 8000)::BIGINT AS a, (1 + hash(range + 11) % 8000)::BIGINT AS b,
        (1 + hash(range + 13) % 8000)::BIGINT AS c FROM range({items}))
) TO '{path}' (FORMAT json, COMPRESSION gzip)
"""


def make(interactions: int, items: int, folder: Path) -> None:
    """Write both files."""
    with duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(folder / "spill")}) as engine:
        engine.execute("SET enable_progress_bar = false")
        engine.execute(
            INTERACTIONS.format(
                interactions=interactions, users=interactions // 8, items=items, path=folder / "interactions.csv.gz"
            )
        )
        engine.execute(SENTENCES)
        engine.execute("CREATE MACRO s(k) AS getvariable('s')[k]")
        engine.execute(ITEMS.format(items=items, path=folder / "items.jsonl.gz"))


def measured(command: list[str]) -> tuple[float, float]:
    """(seconds, peak resident GB) of a command that must succeed."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert child.stderr is not None
    said = child.stderr.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(said)
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maker = multiprocessing.get_context("spawn").Process(
            target=make, args=(options.interactions, options.items, folder)
        )
        started = time.perf_counter()
        maker.start()
        maker.join()
        if maker.exitcode:
            sys.exit("the files could not be made")
        files = [folder / "interactions.csv.gz", folder / "items.jsonl.gz"]
        size = [f"{file.stat().st_size / 1e6:.0f} MB" for file in files]
        print(f"made {options.interactions:,} interactions ({size[0]}) and {options.items:,} items ({size[1]})")
        print(f"in {time.perf_counter() - started:.0f} s; {os.cpu_count()} cores\n")
        raw, out = folder / "raw", folder / "out"
        paths = {"interactions": raw / "interactions.parquet", "item_metadata": raw / "items.parquet"}
        paths |= {"samples": out / "samples.parquet", "catalogue": out / "catalogue.parquet"}
        paths |= {"dropped": out / "prepare.json"}
        flags = commands.flags(config.load(CONFIG), "prepare")
        flags += [word for name, path in paths.items() for word in (commands.flag(name), str(path))]
        stages = {
            "fetch (conversion)": [sys.executable, "-c", CONVERT, *map(str, files), str(raw)],
            "prepare": [sys.executable, "-m", "minirec", "prepare", *flags],
        }
        rows = options.interactions + options.items
        print(f"| {'stage':18} | {'seconds':>7} | {'rows/s':>9} | {'peak GB':>7} |")
        print(f"|{'-' * 20}|{'-' * 8}:|{'-' * 10}:|{'-' * 8}:|")
        for stage, command in stages.items():
            seconds, memory = measured(command)
            print(f"| {stage:18} | {seconds:7.1f} | {rows / seconds:9,.0f} | {memory:7.2f} |", flush=True)
        samples, catalogue = (pq.read_metadata(out / f"{t}.parquet").num_rows for t in ("samples", "catalogue"))
        print(f"\nprepare wrote {samples:,} samples and a catalogue of {catalogue:,} items")


if __name__ == "__main__":
    main()
