"""`show` says what any artefact is, what made it and what its columns mean; a damaged one is named."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minirec import __version__
from minirec.cli import show
from minirec.errors import InputError
from minirec.storage import artefact, tables, tensors
from minirec.storage.artefact import Provenance

MADE = Provenance("score", {"mu": 0.5, "sigma": None}, {"rollouts": "0123456789abcdef" * 4})


@pytest.fixture
def scores(tmp_path):
    columns = {name: [0.0, 0.25, 0.5] for name in ("mean_reward", "reward_std", "learnability")}
    columns |= {
        "representativeness": [0.125, 0.5, 1.0],
        "gradient_norm": [1.0, 1234.5, 2.0],
        "error_norm": [1.0, 0.5, 0.0],
    }
    table = pa.table({"sample_id": [30, 4, 7], **columns, "hits": pa.array([0, 4, 4], pa.int32())})
    tables.write("scores", table, tmp_path / "scores.parquet", MADE)
    return tmp_path / "scores.parquet"


@pytest.fixture
def gradients(tmp_path):
    tensors.write(
        {"g": np.array([[1.5, -2.5]], np.float32), "sample_id": np.array([7])}, tmp_path / "g.safetensors", MADE
    )
    return tmp_path / "g.safetensors"


def line(text: str, start: str) -> str:
    """The one line that starts with a word."""
    (found,) = [found for found in text.splitlines() if found.split()[:1] == [start]]
    return " ".join(found.split())


def test_a_table_is_shown_with_its_name_its_maker_and_every_column(scores):
    text = show.describe(scores, rows=0)
    assert f"{scores}: scores, 3 rows" in text
    assert f"made by minirec {__version__}, stage score" in text
    assert "mu: 0.5" in text
    assert "sigma: null" in text
    assert "rollouts 0123456789ab" in text
    for name, column in tables.TABLES["scores"].columns.items():
        described = [found for found in text.splitlines() if found.split()[:1] == [name] and column.meaning in found]
        assert len(described) == 1, name


def test_the_range_and_the_nulls_of_a_column_are_those_of_its_values(scores, tmp_path):
    described = show.describe(scores, rows=0)
    assert line(described, "gradient_norm").startswith("gradient_norm double 0 1 to 1234.5 ")
    columns = {"position": pa.array([0, 1], pa.int32()), "sample_id": [5, 6], "group": pa.array([0, 0], pa.int32())}
    table = pa.table(columns | {"mean_reward": pa.array([None, 0.5])})
    tables.write("curriculum", table, tmp_path / "curriculum.parquet", MADE)
    described = show.describe(tmp_path / "curriculum.parquet", rows=0)
    assert line(described, "mean_reward").startswith("mean_reward double 1 0.5 to 0.5 ")


@pytest.mark.parametrize(("rows", "shown"), [(0, 0), (1, 1), (2, 2), (99, 3)])
def test_as_many_rows_are_shown_as_asked_for_and_there_are(scores, rows, shown):
    text = show.describe(scores, rows)
    assert ("first" in text) == (shown > 0)
    data = text.split("first")[1].split("\n\n")[0].splitlines()[2:] if shown else []
    assert [int(row.split()[0]) for row in data] == [30, 4, 7][:shown]


def test_a_folder_of_results_is_listed_with_the_rows_of_its_tables(scores, gradients):
    assert line(show.describe(scores.parent, 5), "scores.parquet").endswith(" bytes 3 rows")
    assert line(show.describe(scores.parent, 5), "g.safetensors").endswith(" bytes")


def test_the_data_come_before_what_made_them(scores):
    text = show.describe(scores, rows=1)
    assert text.index("gradient_norm") < text.index("first 1 rows") < text.index("made by minirec")


def test_an_empty_table_is_shown(tmp_path):
    empty = tables.TABLES["scores"].schema().empty_table()
    tables.write("scores", empty, tmp_path / "scores.parquet", MADE)
    assert "scores, 0 rows" in show.describe(tmp_path / "scores.parquet", 5)


def test_lists_are_shown_with_the_range_of_their_lengths(tmp_path):
    columns = {n: pa.array([1, 2], pa.int32()) for n in ("rank", "rank_without_reasoning")}
    table = pa.table({"sample_id": [1, 2], **columns, "top": pa.array([[1], [3, 4, 5]], pa.list_(pa.int32()))})
    tables.write("ranks", table, tmp_path / "ranks.parquet", MADE)
    assert "1 to 3 long" in show.describe(tmp_path / "ranks.parquet", 5)


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_known_by_its_columns_whatever_its_file_is_called(name):
    required = [n for n, c in tables.TABLES[name].columns.items() if not c.optional]
    assert show.table_name(Path("mine.parquet"), list(tables.TABLES[name].columns)) == name
    assert show.table_name(Path(f"{name}.parquet"), required) == name


def test_a_table_of_others_is_shown_as_unknown_and_made_elsewhere(tmp_path):
    pq.write_table(pa.table({"colour": ["red", None]}), tmp_path / "x.parquet")
    text = show.describe(tmp_path / "x.parquet", 5)
    assert "a table unknown to minirec, 2 rows" in text
    assert "made elsewhere" in text


def test_a_title_cannot_write_to_the_terminal(tmp_path):
    pq.write_table(
        pa.table({"item_id": ["a"], "title": ["\x1b[31mred\x07\n" + "long" * 50]}), tmp_path / "items.parquet"
    )
    text = show.describe(tmp_path / "items.parquet", 5)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert max(map(len, text.splitlines())) < 200


def test_tensors_are_shown_with_shape_and_range(gradients):
    text = show.describe(gradients, 5)
    assert "2 tensors, 3 numbers" in text
    assert "stage score" in text
    assert line(text, "g") == "g F32 1 x 2 -2.5 to 1.5"
    assert line(text, "sample_id") == "sample_id I64 1 7 to 7"


def test_json_is_shown_with_dotted_keys(tmp_path):
    content = {"samples": 9, "metrics": {"ndcg@10": {"mean": 0.25}}}
    artefact.write_json(content, tmp_path / "metrics.json", MADE)
    text = show.describe(tmp_path / "metrics.json", 5)
    assert line(text, "metrics.ndcg@10.mean") == "metrics.ndcg@10.mean 0.25"
    assert line(text, "samples") == "samples 9"
    assert "stage score" in text


def test_a_model_is_shown_with_its_files_and_weights(tiny_model):
    text = show.describe(tiny_model, 5)
    assert f"{tiny_model}: model, " in text
    assert "tokenizer.json" in text
    assert "model.embed_tokens.weight" in text


def test_an_adapter_is_shown_with_its_settings_and_weights(tmp_path):
    from safetensors.numpy import save_file

    save_file({"lora_A": np.zeros((4, 32))}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    text = show.describe(tmp_path, 5)
    assert f"{tmp_path}: adapter, 2 files" in text
    assert line(text, "r") == "r 4"
    assert line(text, "lora_A").startswith("lora_A F64 4 x 32")


@pytest.fixture
def adapter(tmp_path):
    """An adapter as `train` writes it."""
    from safetensors.numpy import save_file

    with artefact.atomic_folder(tmp_path / "adapter", Provenance("train", {"learning_rate": 0.125})) as folder:
        save_file({"lora_A": np.zeros((4, 32))}, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"r": 4}))
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", ["", "provenance.json", "adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_of_train_says_what_made_it_and_so_does_each_of_its_files(adapter, name):
    text = show.describe(adapter / name, 5)
    assert text.count(f"made by minirec {__version__}, stage train") == 1
    assert "learning_rate: 0.125" in text
    assert "made elsewhere" not in text


def test_a_file_beside_a_record_that_does_not_list_it_is_made_elsewhere(adapter):
    (adapter / "mine.json").write_text('{"mine": 1}')
    assert "made elsewhere" in show.describe(adapter / "mine.json", 5)


def test_a_file_that_differs_from_the_record_of_its_folder_is_named(adapter):
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 5}))
    assert "is damaged" in refusal(adapter / "adapter_config.json")


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        show.describe(path, 5)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("share", [0, 0.3, 0.95])
def test_a_truncated_artefact_of_any_kind_is_named(scores, gradients, tmp_path, share):
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"metrics": {"ndcg@10": 1}}))
    for file in (scores, gradients, metrics):
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        assert "is not" in refusal(file)


def test_a_flipped_byte_of_any_artefact_is_named(scores, gradients):
    for file, place in ((scores, 40), (gradients, -3)):
        content = bytearray(file.read_bytes())
        content[place] ^= 255
        file.write_bytes(content)
        refusal(file)


def test_json_of_others_is_shown_as_it_is(tmp_path):
    (tmp_path / "x.json").write_text('{"provenance": 5, "list": [1, 2]}')
    text = show.describe(tmp_path / "x.json", 5)
    assert "made elsewhere" in text
    assert "  provenance  5" in text
    assert line(text, "list") == "list [1, 2]"


@pytest.mark.parametrize("content", ["[1, 2", "\xff", ""])
def test_json_that_is_none_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content.encode("latin-1"))
    assert "is not readable JSON" in refusal(tmp_path / "x.json")


@pytest.mark.parametrize("record", [b"{", b"[]", b"7", b"\xff"])
def test_a_damaged_record_of_the_making_is_named(tmp_path, record):
    table = pa.table({"a": [1]}).replace_schema_metadata({tables.METADATA_KEY: record})
    pq.write_table(table, tmp_path / "x.parquet")
    assert "damaged record" in refusal(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["missing.parquet", "notes.txt", "folder"])
def test_what_is_no_artefact_is_named(tmp_path, name):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    refusal(tmp_path / name)


def test_the_columns_of_a_text_are_aligned():
    assert show.align([["a", "bb", "c"], ["aaa", "b", ""]]) == "  a    bb  c\n  aaa  b\n"
    assert show.align([]) == ""


def test_rows_about_samples_come_with_the_titles_of_history_and_target(scores, tmp_path):
    assert "their samples" not in show.describe(scores, rows=2)  # the data set is not there
    titles = ["Heat", "Alien", "\x1b[31mUp", "Brazil"]
    catalogue = {"row": pa.array(range(4), pa.int32()), "item_id": titles, "title": titles, "text": titles}
    catalogue["popularity"] = pa.array(range(4), pa.int64())
    tables.write("catalogue", pa.table(catalogue), tmp_path / "catalogue.parquet", MADE)
    row = {"split": "train", "user_id": "u", "timestamp": 1, "history_rating": [None] * 3, "history_age_ms": [1] * 3}
    rows = [row | {"sample_id": i, "target_row": i % 4, "history_rows": [0, 1, 2]} for i in (4, 7, 30)]
    samples = pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())
    tables.write("samples", samples, tmp_path / "samples.parquet", MADE)
    below = tmp_path / "signals" / "a" / "seed0" / "scores.parquet"
    below.parent.mkdir(parents=True)
    scores.rename(below)
    found = show.describe(below, rows=2).partition("their samples\n")[2].splitlines()
    assert [" ".join(one.split()) for one in found[1:3]] == ["30 Alien; [31mUp [31mUp", "4 Alien; [31mUp Heat"]
