"""The rows of the original training data behind picked prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow as pa

from minirec.data.logged.rollouts import PROMPTS, RolloutLog, columns_of, log_files, source_of, text_of
from minirec.errors import InputError, one_sentence
from minirec.storage.user_files import identifier


class Originals:
    """A data set of prompts: files as for rollouts, a folder of them, or one that `save_to_disk` of datasets wrote."""

    def __init__(self, log: RolloutLog, path: Path, on: str | None) -> None:
        """on: column by which rows are found, in the log and in the data set; None: the prompt.

        A prompt may have another name in the data set, and an id may lie in its `extra_info`, as verl has it. Raises
        InputError if the data set cannot be read or lacks the column.
        """
        self.log, self.path = log, path
        numbered = f"SELECT *, row_number() OVER () - 1 AS minirec_row FROM {self._source()}"
        with self._one_sentence():
            log.engine.execute(f"CREATE OR REPLACE VIEW originals AS {numbered}")
            described = log.engine.execute("DESCRIBE originals").fetchall()
        self.types = {
            name: kind for name, kind, *_ in described if name not in ("minirec_row", "minirec_file", "minirec")
        }
        by_prompt = on in (None, "prompt", log.columns.prompt)
        self.on = log.columns.prompt if by_prompt else str(on)
        if not by_prompt and on not in log.kept:
            raise InputError(f"--on is {on}, which is no column of the logged prompts; those are {', '.join(log.kept)}")
        prompts = [name for name in (log.columns.prompt, *PROMPTS) if name in self.types]
        self.prompt = prompts[0] if prompts else ""  # its column of prompts
        column = self.prompt if by_prompt else self.on
        if column in self.types:
            self.key = text_of(column, self.types)
        elif re.search(rf'[(,] ?"?{re.escape(self.on)}"? ', self.types.get("extra_info", "")):
            self.key = f"to_json(extra_info.{identifier(self.on)})"
        else:
            listed = ", ".join(self.types)
            raise InputError(f"{path} has no column {self.on}; name another with --on; its columns are {listed}")

    def _source(self) -> str:
        if (self.path / "dataset_dict.json").is_file():
            raise InputError(f"{self.path} holds several splits; name the folder of one, such as {self.path / 'train'}")
        if not (self.path / "state.json").is_file():
            return source_of(log_files(self.path))
        import datasets  # takes a second

        with self._one_sentence():
            table = datasets.load_from_disk(str(self.path)).data.table
            table.validate(full=True)  # DuckDB trusts its offsets
            self.log.engine.register("saved", table)
        return "saved"

    def _table(self, query: str) -> pa.Table:
        with self._one_sentence():
            return self.log.engine.sql(query).to_arrow_table()

    def _one_sentence(self) -> AbstractContextManager[None]:
        """Turn whatever a library raises while it reads the data set into an InputError of one sentence."""
        return one_sentence(f"{self.path} cannot be read: ", length=300)

    def rows(self, places: np.ndarray) -> tuple[pa.Table, int]:
        """All columns of the rows of these prompts [k] of the log, in this order; of equal keys the first row.

        Also returns how many of the prompts have several rows. Raises InputError if one has none.
        """
        keys = self._table(f"SELECT CAST({self.key} AS VARCHAR) AS key FROM originals ORDER BY minirec_row")["key"]
        with self._one_sentence():  # text that is not UTF-8
            texts = [_same(str(key)) for key in keys.to_pylist()]
        wanted = self.log.texts(places) if self.on == self.log.columns.prompt else self._ids(places)
        first: dict[str, int] = {}
        several = set()
        sought = {_same(key) for key in wanted}
        for row, key in enumerate(texts):
            if key in sought and first.setdefault(key, row) != row:
                several.add(key)
        missing = [key for key in wanted if _same(key) not in first]
        if missing:
            raise InputError(
                f"{self.path} has no row for {len(missing):,} of {len(wanted):,} picks, the first with the "
                f"{self.on} {missing[0][:80]!r}; name another column with --on"
            )
        matched = {"minirec_place": [first[_same(key)] for key in wanted], "minirec_turn": np.arange(len(wanted))}
        self.log.engine.register("matched", pa.table(matched))
        table = self._table(
            f"SELECT {', '.join(columns_of(self.types))} FROM matched m "
            "JOIN originals o ON o.minirec_row = m.minirec_place ORDER BY m.minirec_turn"
        )
        return table, len(several)

    def _ids(self, places: np.ndarray) -> Sequence[str]:
        return [str(value) for value in self.log.rows(places)[self.on].to_pylist()]


def _same(key: str) -> str:
    """A key, but for the order of the fields in JSON."""
    if not key.startswith(("[{", "{")):
        return key
    try:
        return json.dumps(json.loads(key), sort_keys=True)
    except (ValueError, RecursionError):
        return key
