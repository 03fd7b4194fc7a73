"""Rollouts that other libraries logged, read with DuckDB: rewards by prompt, whatever the columns are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import duckdb
import numpy as np
import pyarrow as pa

from minirec.errors import InputError, one_sentence
from minirec.storage.user_files import delimiter_of, identifier, inside, quoted

CSV = "read_csv({}, union_by_name = true, sample_size = -1, header = true, quote = '\"', delim = {})"
READERS = {  # ending: DuckDB's function and its options
    "parquet": "read_parquet({}, union_by_name = true)",
    "jsonl": "read_json({}, format = 'newline_delimited', union_by_name = true, sample_size = -1)",
    "json": "read_json({}, union_by_name = true, sample_size = -1)",
    "csv": CSV,
    "tsv": CSV,
}
COMPRESSED = ("", ".gz", ".zst")
PROMPTS = ("prompt", "input_prompt", "input", "question", "query", "instruction", "messages", "sample_id", "prompt_id")
REWARDS = ("reward", "rewards", "score", "scores")
STEPS = ("step", "global_step", "epoch", "iteration")
COMPLETIONS = (  # columns of a completion, which are no part of a prompt
    *("completion", "completions", "output", "outputs", "output_response", "response", "responses", "advantage"),
    *("advantages", "stop_reason", "text", "tokens"),
)
ADDED = ("minirec_row", "minirec_file")
NUMBER = r"(?:U?(?:TINY|SMALL|BIG|HUGE)?INT(?:EGER)?|FLOAT|DOUBLE|DECIMAL\(\d+,\d+\))"


@dataclass(frozen=True)
class Format:
    """The columns that a library writes, by which its logs are recognised."""

    name: str
    has: tuple[str, ...]
    prompt: str  # expression of SQL
    rewards: tuple[str, ...] = ()  # columns that add up; empty: all numeric ones that no other column explains


FORMATS = (  # the first whose columns are all there
    Format("minirec rollouts", ("sample_id", "completion", "reward", "ndcg"), "sample_id", ("reward",)),
    Format("TRL completion logs", ("step", "prompt", "completion", "advantage"), "prompt"),
    Format("a verl rollout dump", ("input", "output", "score", "step"), "input", ("score",)),
    Format("SkyRL trajectories", ("input_prompt", "output_response", "score"), "input_prompt", ("score",)),
    Format(
        "NeMo-Gym rollouts", ("responses_create_params", "response", "reward"), "responses_create_params", ("reward",)
    ),
    Format("OpenRLHF samples", ("input", "output", "reward"), "input", ("reward",)),
)


@dataclass(frozen=True)
class Columns:
    """Which columns say what: names given by the user, else recognised by content."""

    kind: str  # what the files are, for people
    prompt: str
    rewards: tuple[str, ...]
    wide: bool  # whether a row holds the rewards of all completions of a prompt, as a list
    step: str | None


class RolloutLog:
    """Prompts and rewards of logged rollouts, in the order in which the prompts first appear."""

    def __init__(
        self,
        engine: duckdb.DuckDBPyConnection,
        paths: Sequence[Path],
        prompt: str | None = None,
        rewards: Sequence[str] = (),
        which: Literal["all", "first", "last"] = "all",
    ) -> None:
        """paths: files, or folders of them. prompt, rewards: names of columns; without them they are recognised.

        which: of a prompt's rollouts in several steps, all, or those of the first or the last; without a column of
        steps each file is one, in the order of `files`. Raises InputError if the files cannot be read, or a reward is
        no finite number.
        """
        self.engine, self.files = engine, [file for path in paths for file in log_files(path)]
        self._execute(
            f"CREATE VIEW logged AS SELECT *, row_number() OVER () - 1 AS minirec_row FROM {source_of(self.files)}"
        )
        self.types = {name: kind for name, kind, *_ in self._execute("DESCRIBE logged") if name not in ADDED}
        self.columns = detect_columns(self.types, prompt, tuple(rewards), self.files[0])
        self._read(which)

    def _execute(self, query: str) -> list[tuple[Any, ...]]:
        with self._one_sentence():
            return self.engine.execute(query).fetchall()

    def _table(self, query: str) -> pa.Table:
        with self._one_sentence():
            return self.engine.sql(query).to_arrow_table()

    def _one_sentence(self) -> AbstractContextManager[None]:
        files, first = len(self.files), self.files[0]
        where = str(first) if files == 1 else f"the {files} files, {first} first,"
        return one_sentence(f"{where} cannot be read: ", length=300, kind=duckdb.Error)

    def _read(self, which: str) -> None:
        """Make the table by_prompt: first line and rewards of each prompt; and `kept`, the columns of a prompt."""
        of = self.columns
        files = "[" + ", ".join(quoted(str(file)) for file in self.files) + "]"
        step = identifier(of.step) if of.step else f"list_position({files}, minirec_file)"
        value = (
            f"{identifier(of.rewards[0])}::DOUBLE[]"
            if of.wide
            else " + ".join(_number(name, self.types[name]) for name in of.rewards)
        )
        others = [name for name in self.types if name not in (*COMPLETIONS, *STEPS, *of.rewards)]
        hashes = "".join(f", hash({identifier(name)}) AS h{place}" for place, name in enumerate(others))
        key = f"md5_number(CAST({text_of(of.prompt, self.types)} AS VARCHAR))"
        self._execute(
            f"CREATE TABLE rollouts AS "
            f"SELECT minirec_row AS line, {key} AS key, {value} AS value, {step} AS step{hashes} FROM logged"
        )
        bad = "len(value) = 0 OR len([x for x in value if x IS NULL OR NOT isfinite(x)]) > 0"
        bad = bad if of.wide else "NOT isfinite(value)"
        wrong = self._execute(f"SELECT count(*), min(line) FROM rollouts WHERE value IS NULL OR {bad}")[0]
        if wrong[0]:
            names, (file, row) = " or ".join(of.rewards), self._place(wrong[1])
            raise InputError(
                f"{wrong[0]:,} rows have no finite number in {names}, the first is row {row} of {file}; take them out"
            )
        kept = {"all": "", "first": "QUALIFY step = min(step) OVER (PARTITION BY key)"}
        kept["last"] = "QUALIFY step = max(step) OVER (PARTITION BY key)"
        listed = "flatten(list(value ORDER BY line))" if of.wide else "list(value ORDER BY line)"
        same = "".join(f", min(h{place}) = max(h{place}) AS c{place}" for place in range(len(others)))
        self._execute(
            f"CREATE TABLE by_prompt AS SELECT min(line) AS line, {listed}::DOUBLE[] AS rewards{same} "
            f"FROM (SELECT * FROM rollouts {kept[which]}) GROUP BY key ORDER BY line"
        )
        constant = self._execute(
            "SELECT " + ", ".join([f"bool_and(c{place})" for place in range(len(others))] or ["1"]) + " FROM by_prompt"
        )[0]
        self.kept = [name for name, is_constant in zip(others, constant, strict=False) if is_constant]
        self._execute("DROP TABLE rollouts")
        if not len(self):
            raise InputError(f"{self.files[0]} holds no rollouts")

    def _place(self, line: int) -> tuple[str, int]:
        """The file of a line of all files, and the line's row in it, from 0."""
        starts = self._execute("SELECT minirec_file, min(minirec_row) FROM logged GROUP BY minirec_file")
        file, start = max((one for one in starts if one[1] <= line), key=lambda one: int(one[1]))
        return str(file), line - int(start)

    def __len__(self) -> int:
        return int(self._execute("SELECT count(*) FROM by_prompt")[0][0])

    @cached_property
    def rewards(self) -> pa.ListArray:
        """The rewards of each prompt's completions, a list a prompt."""
        column = self._table("SELECT rewards FROM by_prompt ORDER BY line")["rewards"]
        return cast(pa.ListArray, column.combine_chunks())

    def rows(self, places: np.ndarray) -> pa.Table:
        """What the logs say of these prompts [k], in this order: the columns that all completions of a prompt share."""
        return self._of(places, ", ".join(columns_of({name: self.types[name] for name in self.kept})))

    def texts(self, places: np.ndarray | None = None) -> list[str]:
        """The text of each prompt, or of these [k] in this order; of a conversation, its JSON."""
        text = f"CAST({text_of(self.columns.prompt, self.types)} AS VARCHAR) AS text"
        if places is not None:
            return [str(value) for value in self._of(places, text)["text"].to_pylist()]
        rows = self._execute(f"SELECT {text} FROM by_prompt p JOIN logged l ON l.minirec_row = p.line ORDER BY line")
        return [str(row[0]) for row in rows]

    def _of(self, places: np.ndarray, columns: str) -> pa.Table:
        """Expressions of SQL about the first rows of these prompts [k], in this order."""
        wanted = {"minirec_place": places, "minirec_turn": np.arange(len(places))}
        self.engine.register("wanted", pa.table(wanted))
        numbered = "SELECT line AS minirec_line, row_number() OVER (ORDER BY line) - 1 AS minirec_place FROM by_prompt"
        return self._table(
            f"SELECT {columns} FROM ({numbered}) n JOIN wanted w ON n.minirec_place = w.minirec_place "
            "JOIN logged l ON l.minirec_row = n.minirec_line ORDER BY w.minirec_turn"
        )


def columns_of(types: Mapping[str, str]) -> list[str]:
    """Columns as expressions of SQL; of 128 bits, which DuckDB takes for integers of both signs, 64 remain."""
    names = {name: identifier(name) for name in types}
    wide = {name: kind.replace("HUGEINT", "BIGINT") for name, kind in types.items() if "HUGEINT" in kind}
    return [f"{name}::{wide[key]} AS {name}" if key in wide else name for key, name in names.items()]


def source_of(files: Sequence[Path]) -> str:
    """Files of one format as an expression of SQL, with a column minirec_file."""
    kinds = {ending_of(file) for file in files}
    if len(kinds) > 1:
        raise InputError(f"the files end in .{' and .'.join(sorted(kinds))}; give files of one format")
    listed = "[" + ", ".join(quoted(str(file)) for file in files) + "]"
    kind = kinds.pop()
    delimiter = delimiter_of(files[0]) if READERS[kind] is CSV else ""
    return READERS[kind].format(listed, quoted(delimiter)).replace("union", "filename = 'minirec_file', union")


def log_files(path: Path) -> list[Path]:
    """The file, or the files of a folder in the order of their names, numbers by value; hidden ones are left out."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_dir():
        ending_of(path)
        return [path]
    files = [file for file in inside(path) if _ending(file)]
    if not files:
        raise InputError(f"{path} holds no file that ends in .{', .'.join(READERS)}")
    return sorted(files, key=lambda file: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", str(file))])


def ending_of(path: Path) -> str:
    """Which of the READERS a file needs; raises InputError if its name ends otherwise."""
    if ending := _ending(path):
        return ending
    raise InputError(f"{path} is in no known format; its name must end in .{', .'.join(READERS)}, also with .gz")


def _ending(path: Path) -> str | None:
    name = path.name.lower()
    return next((end for end in READERS if name.endswith(tuple(f".{end}{more}" for more in COMPRESSED))), None)


def detect_columns(types: Mapping[str, str], prompt: str | None, rewards: tuple[str, ...], file: Path) -> Columns:
    """What the columns of these types mean; raises InputError that lists them where they say nothing.

    >>> detect_columns({"question": "VARCHAR", "score": "DOUBLE[]"}, None, (), Path("a.jsonl"))
    Columns(kind='prompts with lists of rewards', prompt='question', rewards=('score',), wide=True, step=None)
    """
    listed = f"its columns are {', '.join(types)}"
    for flag, name in [("--prompt", prompt), *[("--reward", reward) for reward in rewards]]:
        if name is not None and name not in types:
            raise InputError(f"{flag} is {name}, which {file} does not have; {listed}")
    step = next((name for name in STEPS if name in types), None)
    known = next((one for one in FORMATS if set(one.has) <= set(types)), None)
    if known and not prompt and not rewards:
        taken = (*known.has, *STEPS, *COMPLETIONS)
        rewards = known.rewards or tuple(n for n, kind in types.items() if n not in taken and _is(kind, NUMBER))
        if rewards:
            return Columns(known.name, known.prompt, rewards, False, step)
    prompt = prompt or next((name for name in PROMPTS if name in types), None)
    if prompt is None:
        raise InputError(f"{file} has no column that is called like a prompt; name it with --prompt; {listed}")
    rewards = rewards or tuple(name for name in REWARDS if name in types)[:1]
    if not rewards:
        raise InputError(f"{file} has no column that is called like a reward; name it with --reward; {listed}")
    wide = len(rewards) == 1 and _is(types[rewards[0]], NUMBER + r"\[\]")
    for name in rewards:
        if not wide and not _is(types[name], NUMBER):
            raise InputError(
                f"{file}: the column {name} holds {types[name].strip(chr(34))}, not rewards; name another with --reward"
            )
    return Columns("prompts with lists of rewards" if wide else "a row a completion", prompt, rewards, wide, step)


def _is(kind: str, pattern: str) -> bool:
    return re.fullmatch(pattern, kind) is not None


def _number(name: str, kind: str) -> str:
    """A reward of a completion as DOUBLE; a list of numbers, one a token, adds up."""
    return f"list_sum({identifier(name)})::DOUBLE" if kind.endswith("[]") else f"{identifier(name)}::DOUBLE"


def text_of(prompt: str, types: Mapping[str, str]) -> str:
    """An expression of SQL for the prompt as text."""
    return identifier(prompt) if types[prompt] == "VARCHAR" else f"to_json({identifier(prompt)})"
