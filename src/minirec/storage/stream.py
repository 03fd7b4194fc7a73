"""Read a table that does not fit into memory, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minirec.errors import InputError
from minirec.storage import tables

ROWS = 16_384  # read at once


class Stream:
    """Reads a table in the order of sample_id from first to last; rows are in memory until they are taken.

    Raises InputError as `tables.read` does, and if the rows are not in that order.
    """

    def __init__(self, name: str, path: Path, columns: list[str], split: str | None = None) -> None:
        """split: read only the samples of this split; `columns` must then include `split`."""
        self.name, self.path, self.columns, self.split = name, path, columns, split
        self.batches = self._batches()
        schema = tables.TABLES[name].schema()
        self.rest = pa.schema([schema.field(column) for column in columns]).empty_table()
        self.last = -1

    def take(self, count: int) -> pa.Table:
        """The next `count` rows; fewer at the end."""
        while self.rest.num_rows < count and self._read_more():
            pass
        return self._take_read(count)

    def until(self, sample_id: int) -> pa.Table:
        """The next rows, up to and including those of this sample."""
        while (not self.rest.num_rows or self.rest["sample_id"][-1].as_py() <= sample_id) and self._read_more():
            pass
        return self._take_read(int(np.searchsorted(tables.numpy(self.rest, "sample_id"), sample_id, side="right")))

    def _take_read(self, count: int) -> pa.Table:
        """Take rows that have been read already."""
        rows, self.rest = self.rest.slice(0, count), self.rest.slice(count)
        return rows

    def _read_more(self) -> bool:
        """Read another part of the file; False at its end."""
        part = next(self.batches, None)
        if part is None:
            return False
        tables.check(self.name, part, self.path, self.columns)
        part = part.cast(self.rest.schema)
        ids = tables.numpy(part, "sample_id")
        if len(ids):
            if self.last > ids[0] or (np.diff(ids) < 0).any():
                raise InputError(f"{self.path} is not in the order of sample_id; make it again")
            self.last = int(ids[-1])
        if self.split is not None:
            part = part.filter(pc.equal(part["split"], self.split))
        self.rest = pa.concat_tables([self.rest, part]).combine_chunks()
        return True

    def _batches(self) -> Iterator[pa.Table]:
        with tables.opened(self.path, tables.TABLES[self.name].foreign, buffer_size=2**20) as (file, _):
            tables.present_columns(self.name, self.path, file, self.columns)
            for batch in file.iter_batches(ROWS, columns=self.columns):
                yield pa.Table.from_batches([batch])
