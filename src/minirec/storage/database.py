"""DuckDB with limited memory and threads; what does not fit is spilled to disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb

from minirec.storage.files import temporary


@contextlib.contextmanager
def connect(memory: str, out: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield an empty database that uses at most `memory`, e.g. "2GB", and spills to a temporary folder in `out`."""
    spill = temporary(out / "spill")
    spill.mkdir(parents=True, exist_ok=True)
    threads = min(2, os.cpu_count() or 1)
    try:
        with duckdb.connect(
            config={"memory_limit": memory, "threads": threads, "temp_directory": str(spill)}
        ) as engine:
            engine.execute("SET enable_progress_bar = false")  # it would go to stdout
            yield engine
    finally:
        shutil.rmtree(spill, ignore_errors=True)
