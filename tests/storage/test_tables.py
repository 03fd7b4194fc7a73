"""Tables: what breaks its schema is neither written nor read, and the error is one sentence."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minirec.errors import InputError
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance

PROVENANCE = Provenance("score", {"mu": 0.5})
KINDS = {
    "str": "x",
    "bool": True,
    "list<i32>": [1, 2],
    "list<i64>": [1, 2],
    "list<i64?>": [1, None],
    "list<f32?>": [0.5, None],
}


def scores(**changes) -> pa.Table:
    columns = {
        "sample_id": [3, 5, 8],
        "mean_reward": [0.0, 0.5, 1.0],
        "reward_std": [0.0, 0.1, 0.0],
        "learnability": [0.2, 1.0, 0.0],
        "representativeness": [0.0, 0.3, 1.0],
        "gradient_norm": [0.1, 2.0, 3.0],
        "error_norm": [0.0, 0.5, 1.4],
        "hits": pa.array([0, 4, 4], pa.int32()),
    }
    return pa.table({name: column for name, column in (columns | changes).items() if column is not None})


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_anything(table: pa.Table, path) -> None:
    """Write a table with a record and a digest, but without a check."""
    with (
        artefact.writing_with_digest(path, PROVENANCE) as (partial, record),
        pq.ParquetWriter(partial, table.schema) as out,
    ):
        out.add_key_value_metadata({tables.METADATA_KEY: record})
        out.write_table(table)


def refusal(path, name: str = "scores", columns=None) -> str:
    """The sentence of a failed read."""
    with pytest.raises(InputError) as caught:
        tables.read(name, path, columns)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


BROKEN = [
    (scores(mean_reward=[0.0, None, 1.0]), "column mean_reward has 1 nulls, the first in row 1"),
    (scores(sample_id=[3, 5, 3]), "sample_id 3 occurs twice"),
    (scores(colour=["a", "b", "c"]), "differ in the column colour"),
    (scores(hits=None), "differ in the column hits"),
    (scores(learnability=[0.2, 1.0, 1.5]), "column learnability is 1.5 in row 2; allowed is 0 to 1"),
    (scores(reward_std=[0.0, -0.5, 0.0]), "column reward_std is -0.5 in row 1"),
    (scores(gradient_norm=[0.1, np.nan, 3.0]), "column gradient_norm is nan in row 1; only finite"),
    (scores(gradient_norm=[0.1, 2.0, np.inf]), "column gradient_norm is inf in row 2; only finite"),
    (scores(sample_id=["a", "b", "c"]), "column sample_id is string, not int64"),
    (scores(hits=[0.5, 1.0, 2.0]), "column hits is double, not int32"),
    (scores(hits=[0, 2**40, 1]), "column hits is int64, not int32"),
]
IDS = [sentence.split(";")[0] for _, sentence in BROKEN]


@pytest.mark.parametrize(("table", "sentence"), BROKEN, ids=IDS)
def test_a_table_that_breaks_its_schema_is_not_written_and_leaves_nothing(tmp_path, table, sentence):
    with pytest.raises(ValueError) as caught:
        tables.write("scores", table, tmp_path / "scores.parquet", PROVENANCE)
    assert sentence in str(caught.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize(("table", "sentence"), BROKEN, ids=IDS)
def test_a_table_that_breaks_its_schema_is_not_read(tmp_path, table, sentence):
    path = tmp_path / "scores.parquet"
    write_anything(table, path)
    message = refusal(path)
    column = sentence.rsplit(" ", 1)[1]
    assert any(text in message for text in (sentence, f"has no column {column}", f"has the column {column}"))


@pytest.mark.parametrize(("table", "sentence"), BROKEN, ids=IDS)
def test_a_failed_write_keeps_the_old_file(tmp_path, table, sentence):
    path = tmp_path / "scores.parquet"
    tables.write("scores", scores(), path, PROVENANCE)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        tables.write("scores", table, path, PROVENANCE)
    assert path.read_bytes() == before
    assert files(tmp_path) == ["scores.parquet"]


def test_a_write_that_fails_half_way_keeps_the_old_file(tmp_path):
    path = tmp_path / "scores.parquet"
    tables.write("scores", scores(), path, PROVENANCE)

    def write_in_parts():
        with tables.writer("scores", path, PROVENANCE) as append:
            append(scores(sample_id=[9, 10, 11]))
            append(scores(sample_id=[12, None, 14]))

    with pytest.raises(ValueError, match="has 1 nulls"):
        write_in_parts()
    assert tables.read("scores", path)["sample_id"].to_pylist() == [3, 5, 8]
    assert files(tmp_path) == ["scores.parquet"]


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_comes_back_as_it_was_written(tmp_path, name):
    spec = tables.TABLES[name]
    row = {}
    for column, c in spec.columns.items():
        row[column] = c.values[0] if c.values else None if c.nullable else KINDS.get(c.type, 1)
    table = pa.Table.from_pylist([row], spec.schema())
    tables.write(name, table, tmp_path / "t.parquet", PROVENANCE)
    assert tables.read(name, tmp_path / "t.parquet").to_pylist() == [row]


def test_columns_come_back_in_the_order_of_the_schema_whatever_the_order_given(tmp_path):
    path = tmp_path / "scores.parquet"
    tables.write("scores", scores().select(sorted(scores().column_names, reverse=True)), path, PROVENANCE)
    assert tables.read("scores", path).column_names == list(tables.TABLES["scores"].columns)
    assert tables.read("scores", path, ["hits", "sample_id"]).column_names == ["hits", "sample_id"]


def test_a_value_outside_a_closed_set_is_refused(tmp_path):
    row = {
        "sample_id": 0,
        "split": "tset",
        "user_id": "u",
        "target_row": 1,
        "history_rows": [0],
        "history_rating": [None],
        "history_age_ms": [5],
        "timestamp": 7,
    }
    table = pa.Table.from_pylist([row], tables.TABLES["samples"].schema())
    with pytest.raises(ValueError, match="split is 'tset' in row 0; allowed is train, valid, test"):
        tables.write("samples", table, tmp_path / "samples.parquet", PROVENANCE)


def test_a_key_of_two_columns_may_repeat_in_one_of_them(tmp_path):
    columns = {"baseline": ["a", "a", "b"], "sample_id": [1, 2, 1], "rank": pa.array([1, 1, 1], pa.int32())}
    columns["top"] = pa.array([[1]] * 3, pa.list_(pa.int32()))
    tables.write("baselines", pa.table(columns), tmp_path / "r.parquet", PROVENANCE)
    twice = pa.table(columns | {"sample_id": [1, 1, 1]})
    with pytest.raises(ValueError, match="baseline a / sample_id 1 occurs twice"):
        tables.write("baselines", twice, tmp_path / "r.parquet", PROVENANCE)


def test_a_table_of_others_may_have_further_columns_and_lack_optional_ones(tmp_path):
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": ["a"], "title": ["A"], "colour": ["red"]}), path)
    assert tables.read("items", path, ["item_id", "price"]).to_pylist() == [{"item_id": "a", "price": None}]


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "items.parquet"
    title = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"], pa.binary()).buffers())
    pq.write_table(pa.table({"item_id": ["a"], "title": title}), path)
    assert "title holds text that is not UTF-8" in refusal(path, "items")


def test_a_file_that_is_missing_is_named(tmp_path):
    assert "does not exist" in refusal(tmp_path / "scores.parquet")


def test_a_table_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "scores.parquet"
    write_anything(pa.table({"step": [1]}), path)
    assert "has no column sample_id" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"sample_id,hits\n1,2\n"], ids=str)
def test_a_file_that_is_no_parquet_is_refused(tmp_path, content):
    path = tmp_path / "scores.parquet"
    path.write_bytes(content)
    assert "is not a readable Parquet file" in refusal(path)


def test_rollouts_of_another_library_are_sent_to_the_command_that_reads_them(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "rewards": [0, 1]}\n')
    assert "for rollouts in other formats there is minirec pick" in refusal(path)


@pytest.fixture
def noisy(tmp_path):
    """A table of some pages of random numbers, so that most of the file is data."""
    generator, n = np.random.default_rng(0), 400
    columns = {name: generator.random(n) for name in ("mean_reward", "reward_std", "learnability")}
    columns |= {name: generator.random(n) for name in ("representativeness", "gradient_norm", "error_norm")}
    table = pa.table({"sample_id": np.arange(n), **columns, "hits": np.zeros(n, np.int32)})
    tables.write("scores", table, tmp_path / "scores.parquet", PROVENANCE)
    return tmp_path / "scores.parquet"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(noisy, share):
    content = noisy.read_bytes()
    noisy.write_bytes(content[: int(share * len(content))])
    assert "is not a readable Parquet file" in refusal(noisy)


def test_a_table_without_a_record_is_refused(tmp_path):
    pq.write_table(scores(), tmp_path / "scores.parquet")
    assert "carries no digest" in refusal(tmp_path / "scores.parquet")


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        tables.write("scores", scores(), tmp_path / name, Provenance("score", {"mu": 0.5}, {"x": "12"}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    tables.write("scores", scores(), tmp_path / "b", Provenance("score", {"mu": 0.25}, {"x": "12"}))
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_a_file_says_what_made_it(tmp_path):
    (tmp_path / "input").write_bytes(b"abc")
    provenance = Provenance("score", {"mu": 0.5}, {"rollouts": tmp_path / "input"})
    tables.write("scores", scores(), tmp_path / "scores.parquet", provenance)
    record = tables.read_provenance(tmp_path / "scores.parquet")
    sha256_of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (record["stage"], record["settings"], record["inputs"]) == (
        "score",
        {"mu": 0.5},
        {"rollouts": sha256_of_abc},
    )
    assert json.loads(Provenance.parse(record).json()) == record


def test_the_digest_of_a_folder_sees_names_and_contents(tmp_path):
    seen = set()
    for name, content in [("a", b"1"), ("a", b"2"), ("b", b"1"), ("sub/a", b"1")]:
        folder = tmp_path / str(len(seen))
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
        seen.add(artefact.digest(folder))
    assert len(seen) == 4


def test_samples_are_found_by_id_whatever_their_order(tmp_path):
    rows = tables.rows_of(np.array([7, 3, 9]), np.array([9, 7, 7, 3]), tmp_path)
    assert rows.tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize(
    ("there", "wanted", "missing"),
    [([7, 3, 9], [3, 4], 4), ([7, 3, 9], [10], 10), ([7, 3, 9], [0, 7], 0), ([], [5], 5)],
)
def test_a_sample_that_is_missing_is_an_error_not_another_sample(tmp_path, there, wanted, missing):
    path = tmp_path / "g.safetensors"
    with pytest.raises(InputError, match=f"has no sample {missing}; make it again"):
        tables.rows_of(np.array(there, dtype=np.int64), np.array(wanted), path)


def test_nothing_wanted_is_nothing_found(tmp_path):
    assert tables.rows_of(np.array([], dtype=np.int64), np.array([], dtype=np.int64), tmp_path).tolist() == []
