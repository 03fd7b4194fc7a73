"""Picked prompts as files that trainers read: JSON lines, Parquet, ids, or a folder of `datasets`; verl's columns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minirec.errors import InputError
from minirec.storage.files import atomic_write, temporary

OUTPUTS = (".jsonl", ".parquet", ".txt", "")  # without an ending: a folder
ANSWERS = ("ground_truth", "answer", "solution", "gts", "label")  # usual names of the column of the right answer
PROMPT = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


def require_writable(out: Path, id: str | None, layout: str) -> None:
    """Raise InputError if `write` could not write a file of this name."""
    if out.suffix not in OUTPUTS or (out.suffix == ".txt" and not id):
        raise InputError(f"{out} must end in .jsonl, .parquet or, with --id, .txt, or be a folder, without an ending")
    if layout == "verl" and out.suffix != ".parquet":
        raise InputError(f"verl reads Parquet, but --out is {out}; let it end in .parquet")
    if out.suffix == "" and out.exists() and not (out / "dataset_info.json").is_file():
        raise InputError(f"{out} is there and no folder of a data set; remove it or name another")


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """The table with this column, in place of one of this name."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def verl(table: pa.Table, prompt: str, answer: str | None, source: str | None, places: list[int]) -> pa.Table:
    """The table in the columns of verl: prompt, data_source, reward_model and extra_info; others stay.

    Columns that verl's own data sets have stay as they are. prompt: column of the prompts, texts or conversations.
    answer: column of the right answers; None: recognised. source: data_source of all rows. places: number of each
    prompt, which becomes `extra_info.index`. Raises InputError where answer or source is needed and not known.
    """
    if prompt not in table.column_names:
        raise InputError(f"verl needs prompts, but the columns are {', '.join(table.column_names)}")
    conversations = [_messages(value) for value in table[prompt].to_pylist()]
    table = with_column(table, "prompt", pa.array(conversations, PROMPT))
    if source is not None or "data_source" not in table.column_names:
        if source is None:
            raise InputError(
                "verl chooses the reward by data_source, which the prompts do not have; add --data-source NAME"
            )
        table = with_column(table, "data_source", pa.array([source] * table.num_rows, pa.string()))
    if answer is not None or "reward_model" not in table.column_names:
        column = answer or next((name for name in ANSWERS if name in table.column_names), None)
        if column is None or column not in table.column_names:
            raise InputError(
                f"verl needs the right answers, but {column or 'no column of a usual name'} is not among "
                f"{', '.join(table.column_names)}; name theirs with --answer"
            )
        truth = [{"style": "rule", "ground_truth": value} for value in table[column].to_pylist()]
        table = with_column(table, "reward_model", pa.array(truth))
    extra = table["extra_info"].to_pylist() if "extra_info" in table.column_names else [{}] * table.num_rows
    extra = [{"split": "train", "index": place} | (given or {}) for place, given in zip(places, extra, strict=True)]
    return with_column(table, "extra_info", pa.array(extra))


def write(table: pa.Table, out: Path, id: str | None) -> None:
    """Write the rows atomically, by the ending of `out`; .txt: their column `id`, a line each; none: a folder."""
    if out.suffix == "":
        _write_folder(table, out)
        return
    with atomic_write(out) as partial:
        if out.suffix == ".txt":
            partial.write_text("".join(f"{value}\n" for value in table[id].to_pylist()), encoding="utf-8")
        elif out.suffix == ".parquet":
            pq.write_table(table, partial)
        else:
            with partial.open("w", encoding="utf-8") as stream:
                for row in table.to_pylist():
                    stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _write_folder(table: pa.Table, out: Path) -> None:
    """A folder for `datasets.load_from_disk`."""
    import datasets  # takes a second
    from datasets.table import InMemoryTable

    datasets.disable_progress_bars()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(out)
    try:
        datasets.Dataset(InMemoryTable(table)).save_to_disk(str(partial))
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _messages(prompt: Any) -> list[dict[str, str]]:
    """A prompt as a list of messages: a conversation as it is, NeMo-Gym's `input`, a text as what a user says."""
    if isinstance(prompt, dict) and "input" in prompt:
        prompt = prompt["input"]
    if isinstance(prompt, list) and all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in prompt):
        return [{"role": str(one["role"]), "content": str(one["content"])} for one in prompt]
    return [{"role": "user", "content": str(prompt)}]
