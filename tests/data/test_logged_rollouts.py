"""Logs of other libraries are recognised by their columns, and say the same rewards in every form."""

import gzip
import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from minirec.data.logged.rollouts import FORMATS, RolloutLog, log_files
from minirec.errors import InputError

PROMPTS = ["b", "a", "c"]
REWARDS = {"b": [0.0, 1.0], "a": [0.5, 0.25], "c": [1.0, 1.0]}
LONG = [(prompt, reward) for prompt in PROMPTS for reward in REWARDS[prompt]]
CHAT = [{"role": "user", "content": "hello"}]


def read(*paths, **options):
    return RolloutLog(duckdb.connect(), list(paths), **options)


def said(log):
    """Rewards by prompt, in the order of the prompts."""
    return dict(zip(log.texts(), log.rewards.to_pylist(), strict=True))


def lines(path, rows):
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def trl(prompt, reward, step=1):
    rewards = {"reward_format": reward / 2, "reward_length": reward / 2}
    return {"step": step, "prompt": prompt, "completion": "x", **rewards, "advantage": 0.1}


MADE = {  # what each library writes of one completion
    "minirec rollouts": lambda p, r: {"sample_id": ord(p), "completion": 0, "reward": r, "ndcg": r, "text": "x"},
    "TRL completion logs": trl,
    "a verl rollout dump": lambda p, r: {"input": p, "output": "x", "gts": "y", "score": r, "step": 1, "acc": r},
    "SkyRL trajectories": lambda p, r: {"input_prompt": p, "output_response": "x", "score": r, "stop_reason": "stop"},
    "NeMo-Gym rollouts": lambda p, r: {"responses_create_params": {"input": p}, "response": {"id": "x"}, "reward": r},
    "OpenRLHF samples": lambda p, r: {"input": p, "output": "x", "reward": r},
}


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_the_logs_of_a_library_are_recognised(tmp_path, one):
    log = read(lines(tmp_path / "a.jsonl", [MADE[one.name](*row) for row in LONG]))
    assert log.columns.kind == one.name
    assert log.rewards.to_pylist() == [REWARDS[prompt] for prompt in PROMPTS]
    assert "output" not in log.kept
    assert "completion" not in log.kept


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "csv", "csv.gz", "tsv", "parquet", "json"])
def test_every_format_says_the_same(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    table = pd.DataFrame([{"prompt": p, "reward": r, "answer": p + "!"} for p, r in LONG])
    if ending == "parquet":
        table.to_parquet(path)
    elif ending == "json":
        table.to_json(path, orient="records")
    elif "json" in ending:
        lines(path, table.to_dict("records"))
    else:
        table.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    log = read(path)
    assert said(log) == REWARDS
    assert list(said(log)) == PROMPTS
    assert log.rows(np.array([2, 0])).to_pylist() == [{"prompt": "c", "answer": "c!"}, {"prompt": "b", "answer": "b!"}]


def test_lists_of_rewards_are_a_row_a_prompt_and_rows_of_a_prompt_are_joined(tmp_path):
    rows = [{"question": prompt, "scores": rewards} for prompt, rewards in REWARDS.items()]
    log = read(lines(tmp_path / "a.jsonl", [*rows, {"question": "a", "scores": [0.75]}]))
    assert log.columns.kind == "prompts with lists of rewards"
    assert said(log) == REWARDS | {"a": [0.5, 0.25, 0.75]}


def test_conversations_are_prompts_and_stay_as_they_are(tmp_path):
    log = read(lines(tmp_path / "a.jsonl", [{"messages": CHAT, "reward": reward} for reward in (0.0, 1.0)]))
    assert json.loads(log.texts()[0]) == CHAT
    assert log.rows(np.array([0])).to_pylist() == [{"messages": CHAT}]


def test_positive_and_negative_integers_stay_integers(tmp_path):
    rows = [{"prompt": p, "reward": r, "level": {"a": -1, "b": 2}[p], "more": [-1, 1]} for p, r in LONG if p != "c"]
    log = read(lines(tmp_path / "a.jsonl", rows))
    expected = [{"prompt": "b", "level": 2, "more": [-1, 1]}, {"prompt": "a", "level": -1, "more": [-1, 1]}]
    found_rows = log.rows(np.array([0, 1])).to_pylist()
    assert found_rows == expected
    assert {type(row["level"]) for row in found_rows} == {int}


def test_what_differs_between_completions_is_no_part_of_a_prompt(tmp_path):
    rows = [{"prompt": p, "reward": r, "length": n, "topic": p * 2} for n, (p, r) in enumerate(LONG)]
    assert read(lines(tmp_path / "a.jsonl", rows)).kept == ["prompt", "topic"]


def test_the_files_of_a_folder_are_read_by_number_and_one_step_can_be_taken(tmp_path):
    for step in (10, 9, 2):
        rewards = {"a": [step / 100] * 2, f"only{step}": [0.0, 1.0]}
        rows = [trl(prompt, reward, step) for prompt, both in rewards.items() for reward in both]
        pd.DataFrame(rows).to_parquet(tmp_path / f"completions_{step}.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "_temporary").mkdir()
    (tmp_path / "_temporary" / "part.parquet").write_text("half written")
    assert [file.name for file in log_files(tmp_path)] == [f"completions_{step}.parquet" for step in (2, 9, 10)]
    every = said(read(tmp_path))
    assert list(every) == ["a", "only2", "only9", "only10"]
    assert every["a"] == pytest.approx([0.02, 0.02, 0.09, 0.09, 0.1, 0.1])
    assert said(read(tmp_path, which="first"))["a"] == pytest.approx([0.02, 0.02])
    last = said(read(tmp_path, which="last"))
    assert last["a"] == pytest.approx([0.1, 0.1])
    assert last["only2"] == [0.0, 1.0]


def test_without_a_step_files_are_steps_by_number_or_as_given(tmp_path):
    files = [lines(tmp_path / f"{n}.jsonl", [{"prompt": "a", "reward": n / 100}] * 2) for n in (9, 10, 2)]
    assert said(read(tmp_path, which="first")) == {"a": [0.02, 0.02]}
    assert said(read(tmp_path, which="last")) == {"a": [0.1, 0.1]}
    assert said(read(*files, which="last")) == {"a": [0.02, 0.02]}


def test_named_columns_win_and_several_rewards_add_up(tmp_path):
    rows = [{"prompt": "x", "text_in": p, "good": r, "bad": -0.5} for p, r in LONG]
    log = read(lines(tmp_path / "a.jsonl", rows), prompt="text_in", rewards=["good", "bad"])
    assert said(log)["a"] == [0.0, -0.25]


def test_a_reward_a_token_adds_up(tmp_path):
    rows = [{"input_prompt": "a", "output_response": "x", "score": [0.0, 0.5, 0.25]}] * 2
    assert said(read(lines(tmp_path / "a.jsonl", rows))) == {"a": [0.75, 0.75]}


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"text": "a", "reward": 1}, {}, "has no column that is called like a prompt; name it with --prompt; its col"),
        ({"prompt": "a", "responses": ["x"]}, {}, "has no column that is called like a reward; name it with --reward"),
        ({"prompt": "a", "reward": "good"}, {}, "the column reward holds VARCHAR, not rewards"),
        ({"prompt": "a", "reward": None}, {}, "the column reward holds NULL, not rewards"),
        ({"prompt": "a", "reward": 1}, {"prompt": "promt"}, "--prompt is promt, which"),
        ({"prompt": "a", "reward": 1}, {"rewards": ["r"]}, "--reward is r, which"),
    ],
)
def test_columns_that_say_nothing_are_refused_in_one_sentence(tmp_path, row, options, message):
    with pytest.raises(InputError) as caught:
        read(lines(tmp_path / "a.jsonl", [row]), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_named(tmp_path, bad):
    pd.DataFrame({"prompt": ["a", "b"], "reward": [1.0, bad]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="1 rows have no finite number in reward, the first is row 1 of "):
        read(tmp_path / "a.parquet")
    lists = pd.DataFrame({"prompt": ["a", "b", "c"], "rewards": [[1.0], [1.0, bad], []]})
    lists.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(InputError, match="2 rows have no finite number in rewards, the first is row 1"):
        read(tmp_path / "b.parquet")
    lists[:1].to_parquet(tmp_path / "good.parquet")
    with pytest.raises(InputError, match=r"the first is row 1 of .*b\.parquet; take them out"):
        read(tmp_path / "good.parquet", tmp_path / "b.parquet")


def test_files_that_cannot_be_read_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "reward": 1}\n{"prompt": "b"')
    (tmp_path / "b.parquet").write_text("no Parquet")
    (tmp_path / "c.csv").write_text("")
    (tmp_path / "d.xlsx").write_text("")
    for name, message in {
        "empty": "holds no file that ends in",
        "a.jsonl": "cannot be read",
        "b.parquet": "cannot be read",
        "c.csv": "cannot be read|has no column",
        "d.xlsx": "is in no known format",
        "e.jsonl": "does not exist",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert Path(tmp_path / name).name in str(caught.value)
