"""Vectors that users bring are matched with the prompts of a log by key or by order, never by chance."""

import json

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from minirec.data.logged.rollouts import RolloutLog
from minirec.data.logged.vectors import vectors
from minirec.errors import InputError

PROMPTS, IDS = ["b", "a", "c"], [7, 5, 9]
MATRIX = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)  # of the prompts in this order
MIXED = [2, 0, 1]  # rows of the same in another order


@pytest.fixture
def log(tmp_path):
    rows = [{"prompt": p, "id": i, "rewards": [0.0, 1.0]} for p, i in zip(PROMPTS, IDS, strict=True)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with duckdb.connect() as engine:
        yield RolloutLog(engine, [path])


def parquet(path, keys, matrix=MATRIX[MIXED]):
    pq.write_table(pa.table(keys | {"z": [row.tolist() for row in matrix]}), path)


PROMPT_KEYS, ID_KEYS = np.array(PROMPTS)[MIXED], np.array(IDS)[MIXED]
FILES = {  # how each is written, and the --id with which it is read
    "order.npy": (lambda path: np.save(path, MATRIX), None),
    "order.npz": (lambda path: np.savez(path, z=MATRIX), None),
    "order.safetensors": (lambda path: save_file({"z": MATRIX}, path), None),
    "order.parquet": (lambda path: parquet(path, {}, MATRIX), None),
    "prompt.npz": (lambda path: np.savez(path, z=MATRIX[MIXED], prompt=PROMPT_KEYS), None),
    "prompt.parquet": (lambda path: parquet(path, {"prompt": PROMPT_KEYS.tolist()}), None),
    "id.npz": (lambda path: np.savez_compressed(path, z=MATRIX[MIXED].astype(np.float16), id=ID_KEYS), "id"),
    "id.safetensors": (lambda path: save_file({"z": MATRIX[MIXED], "id": ID_KEYS}, path), "id"),
    "id.parquet": (lambda path: parquet(path, {"id": ID_KEYS.tolist()}), "id"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_vectors_in_the_order_of_the_prompts(log, tmp_path, name):
    write, id = FILES[name]
    write(tmp_path / name)
    found = vectors(log, tmp_path / name, id)
    assert found.dtype == np.float32
    assert found.tolist() == MATRIX.tolist()


def test_vectors_of_other_prompts_do_no_harm(log, tmp_path):
    more = np.vstack([[[9.0, 9.0]], MATRIX, [[np.nan, 8.0]]])
    np.savez(tmp_path / "a.npz", z=more, prompt=["x", *PROMPTS, "y"])
    assert vectors(log, tmp_path / "a.npz").tolist() == MATRIX.tolist()


def test_conversations_are_keys_too(tmp_path):
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    rows = [{"prompt": chat, "rewards": [0.0, 1.0]} for chat in chats]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(
        pa.table({"prompt": [chats[row] for row in MIXED], "z": MATRIX[MIXED].tolist()}), tmp_path / "z.parquet"
    )
    with duckdb.connect() as engine:
        found = vectors(RolloutLog(engine, [path]), tmp_path / "z.parquet")
    assert found.tolist() == MATRIX.tolist()


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npz", lambda p: np.savez(p, z=MATRIX[:2], prompt=PROMPTS[:2]), "has no vector for 1 of 3 prompts, the fi"),
        ("a.npz", lambda p: np.savez(p, z=MATRIX, prompt=["b", "a", "a"]), "holds the prompt 'a' twice"),
        ("a.npz", lambda p: np.savez(p, z=MATRIX, prompt=["b", "a"]), r"prompt has the shape \(2,\), but there are 3"),
        ("a.npz", lambda p: np.savez(p, z=MATRIX, y=MATRIX), "must hold one matrix of numbers with a row a prompt, bu"),
        ("a.npy", lambda p: np.save(p, MATRIX[0]), "must hold one matrix of numbers"),
        ("a.npy", lambda p: np.save(p, MATRIX[:2]), "holds 2 vectors without a key, but there are 3 prompts"),
        ("a.npy", lambda p: np.save(p, np.array([[{}]], dtype=object)), "holds no vectors that can be read"),
        (
            "a.npy",
            lambda p: np.save(p, np.where(MATRIX == 4, np.inf, MATRIX)),
            "the vector of prompt 1 holds NaN, infin",
        ),
        ("a.npy", lambda p: p.write_text("nothing"), "holds no vectors that can be read"),
        ("a.safetensors", lambda p: p.write_text("nothing"), "holds no vectors that can be read"),
        ("a.parquet", lambda p: p.write_text("nothing"), "holds no vectors that can be read"),
        ("a.parquet", lambda p: parquet(p, {"y": [[1]] * 3}), "must hold one column of lists of numbers, but has 2"),
        (
            "a.parquet",
            lambda p: pq.write_table(pa.table({"z": [[1.0], [1.0, 2.0], [1.0]]}), p),
            "the lists of z must have one length and no nulls",
        ),
        ("a.pt", lambda p: p.write_text("nothing"), "is in no known format; its name must end in .npy"),
        ("a.npy", lambda p: None, "does not exist"),
    ],
)
def test_what_does_not_fit_is_one_sentence_that_names_the_file(log, tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        vectors(log, tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
