"""Picks become rows of the original data set, and files that trainers read, in the order of training."""

import json

import duckdb
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from transformers import AutoTokenizer

from minirec.data.logged import export
from minirec.data.logged.originals import Originals
from minirec.data.logged.rollouts import RolloutLog
from minirec.errors import InputError

CHATS = {text: [{"role": "user", "content": text}] for text in "abcd"}
ROWS = [  # of the original data set, in another order than in the logs
    {"prompt": CHATS[text], "answer": text.upper(), "level": level, "id": 10 * level}
    for level, text in enumerate("dcba")
]
PLACES = np.array([2, 0])  # the prompts c and a


@pytest.fixture
def log(tmp_path):
    """Logged rollouts of the prompts a to d, with their ids."""
    levels = {row["answer"].lower(): row["id"] for row in ROWS}
    lines = [{"messages": CHATS[text], "id": levels[text], "rewards": [0.0, 1.0]} for text in "abcd"]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with duckdb.connect() as engine:
        yield RolloutLog(engine, [path])


def parquet(path, rows=ROWS):
    pd.DataFrame(rows).to_parquet(path)
    return path


def lines(path):
    turned = [row | {"prompt": [dict(reversed(one.items())) for one in row["prompt"]]} for row in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in turned))
    return path


def parts(path):
    path.mkdir()
    parquet(path / "train-00000.parquet", ROWS[:2])
    parquet(path / "train-00001.parquet", ROWS[2:])
    return path


def saved(path):
    Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.parquet", parquet), ("a.jsonl", lines), ("parts", parts), ("saved", saved)],
    ids=["parquet", "jsonl-with-fields-in-another-order", "folder", "datasets"],
)
@pytest.mark.parametrize("on", [None, "prompt", "id"])
def test_picks_are_the_rows_of_the_data_set_with_every_column_in_the_order_asked_for(log, tmp_path, name, write, on):
    table, several = Originals(log, write(tmp_path / name), on).rows(PLACES)
    by_answer = {row["answer"]: row for row in ROWS}
    assert table.to_pylist() == [by_answer["C"], by_answer["A"]]
    assert several == 0


def test_of_equal_prompts_the_first_row_is_taken_and_they_are_counted(log, tmp_path):
    twice = [*ROWS, *[row | {"answer": "later"} for row in ROWS]]
    table, several = Originals(log, parquet(tmp_path / "a.parquet", twice), None).rows(PLACES)
    assert table["answer"].to_pylist() == ["C", "A"]
    assert several == 2


def test_an_id_may_lie_in_the_extra_info_of_verl(log, tmp_path):
    rows = [{"answer": row["answer"], "extra_info": {"split": "train", "id": row["id"]}} for row in ROWS]
    table, _ = Originals(log, parquet(tmp_path / "a.parquet", rows), "id").rows(PLACES)
    assert table["answer"].to_pylist() == ["C", "A"]


def test_what_cannot_be_joined_is_one_sentence(log, tmp_path):
    good = parquet(tmp_path / "a.parquet")
    few = parquet(tmp_path / "few.parquet", [row for row in ROWS if row["answer"] != "A"])
    bare = parquet(tmp_path / "bare.parquet", [{"x": 1}])
    broken = tmp_path / "broken.parquet"
    broken.write_text("no Parquet")
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "splits"))
    for (path, on), message in {
        (few, None): "has no row for 1 of 2 picks, the first with the messages",
        (few, "id"): "has no row for 1 of 2 picks, the first with the id '30'; name another column with --on",
        (good, "level"): "--on is level, which is no column of the logged prompts; those are messages, id",
        (bare, None): "has no column messages; name another with --on; its columns are x",
        (bare, "id"): "has no column id; name another with --on",
        (broken, None): "cannot be read",
        (tmp_path / "none.parquet", None): "does not exist",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            Originals(log, path, on).rows(PLACES)
        assert "\n" not in str(caught.value)


def test_a_folder_is_what_datasets_loads_has_the_same_bytes_again_and_takes_the_place_of_its_like_alone(tmp_path, log):
    table, out = log.rows(PLACES), tmp_path / "picks"
    contents = []
    for _ in range(2):
        export.require_writable(out, None, "logged")
        export.write(table, out, None)
        contents.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert contents[0] == contents[1]
    assert load_from_disk(str(out)).to_list() == table.to_pylist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "picks"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="mine is there and no folder of a data set; remove it or name another"):
        export.require_writable(tmp_path / "mine", None, "logged")


def test_verl_gets_its_columns_as_its_reader_takes_them(tmp_path, tiny_model):
    rows = [{"question": "How far?", "gts": "5", "topic": "x"}, {"question": "How long?", "gts": "6", "topic": "y"}]
    made = export.verl(Dataset.from_list(rows).data.table, "question", None, "mine", [7, 3])
    export.write(made, tmp_path / "a.parquet", None)
    read = load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), split="train", cache_dir=str(tmp_path))
    assert read[0] == rows[0] | {
        "prompt": [{"role": "user", "content": "How far?"}],
        "data_source": "mine",
        "reward_model": {"style": "rule", "ground_truth": "5"},
        "extra_info": {"split": "train", "index": 7},
    }
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert "How long?" in tokenizer.apply_chat_template(read[1]["prompt"], add_generation_prompt=True, tokenize=False)


def test_what_a_data_set_of_verl_says_stays(tmp_path):
    row = {"prompt": CHATS["a"], "data_source": "gsm8k", "reward_model": {"style": "rule", "ground_truth": "1"}}
    row["extra_info"] = {"split": "dev", "index": 4, "level": 2}
    table = Dataset.from_list([row]).data.table
    assert export.verl(table, "prompt", None, None, [9]).to_pylist() == [row]


@pytest.mark.parametrize(
    ("row", "more", "message"),
    [
        ({"prompt": "a", "answer": 1}, (None, None), "add --data-source NAME"),
        ({"prompt": "a", "x": 1}, (None, "mine"), "no column of a usual name is not among prompt, x"),
        ({"prompt": "a", "x": 1}, ("y", "mine"), "but y is not among prompt, x"),
        ({"text": "a", "answer": 1}, (None, "mine"), "verl needs prompts, but the columns are text, answer"),
    ],
)
def test_what_verl_needs_and_is_not_there_is_asked_for(row, more, message):
    with pytest.raises(InputError, match=message):
        export.verl(Dataset.from_list([row]).data.table, "prompt", *more, [0])
