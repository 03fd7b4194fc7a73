"""Every kind of artefact carries a digest of all its bytes: whatever changes afterwards is noticed by its reader."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from minirec.errors import InputError
from minirec.storage import artefact, code_digest, tables, tensors
from minirec.storage.artefact import Provenance

PROVENANCE = Provenance("score", {"mu": 0.5, "system": 'a "quoted" \\ text, <answer>'}, {"rollouts": "12"})
ROWS = 40


def table(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    columns = {name: generator.random(ROWS) for name in ("mean_reward", "reward_std", "learnability")}
    columns |= {name: generator.random(ROWS) for name in ("representativeness", "gradient_norm", "error_norm")}
    whole = pa.table({"sample_id": np.arange(ROWS), **columns, "hits": np.zeros(ROWS, np.int32)})
    tables.write("scores", whole, folder / "scores.parquet", PROVENANCE)
    return folder / "scores.parquet"


def fetched(folder: Path) -> Path:
    """A table that could be anybody's, but was written here."""
    tables.write("items", tables.read("items", own(folder)), folder / "fetched.parquet", PROVENANCE)
    return folder / "fetched.parquet"


def own(folder: Path) -> Path:
    pq.write_table(pa.table({"item_id": ["a", "b"], "title": ["A", "B"]}), folder / "items.parquet")
    return folder / "items.parquet"


def arrays(folder: Path) -> Path:
    values = {"g": np.arange(24, dtype=np.float32).reshape(6, 4), "sample_id": np.arange(6)}
    tensors.write(values, folder / "g.safetensors", PROVENANCE)
    return folder / "g.safetensors"


def metrics(folder: Path) -> Path:
    artefact.write_json({"ndcg@10": {"mean": 0.25}, "title": "Délice"}, folder / "metrics.json", PROVENANCE)
    return folder / "metrics.json"


def adapter(folder: Path) -> Path:
    for name, content in (("adapter_model.safetensors", b"weights"), ("adapter_config.json", b"{}")):
        (folder / name).write_bytes(content)
    artefact.write_manifest(folder, PROVENANCE)
    return folder


KINDS = {
    "table": (table, lambda path: tables.read("scores", path)),
    "column": (table, lambda path: tables.read("scores", path, ["hits"])),
    "fetched": (fetched, lambda path: tables.read("items", path)),
    "tensors": (arrays, lambda path: tensors.read(path, "sample_id")),
    "json": (metrics, artefact.read_json),
    "folder": (adapter, artefact.verify_folder),
}


def files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def refused(read, path: Path, file: Path) -> bool:
    """Whether a read ends in one sentence that names the file and says what to do."""
    try:
        read(path)
    except InputError as error:
        sentence = str(error)
        return str(file) in sentence and "\n" not in sentence and "again" in sentence
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_bit_of_any_byte_is_noticed(kind, tmp_path):
    make, read = KINDS[kind]
    path = make(tmp_path)
    read(path)
    for file in files(path):
        content = file.read_bytes()
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] ^= 1 << (place % 8)
            file.write_bytes(changed)
            artefact._sha256.cache_clear()  # a change within the clock's grain
            assert refused(read, path, file), f"bit {place % 8} of byte {place} of {file.name}"
        file.write_bytes(content)
    artefact._sha256.cache_clear()
    read(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_or_longer_file_and_a_block_of_zeros_are_noticed(kind, tmp_path):
    make, read = KINDS[kind]
    path = make(tmp_path)
    for file in files(path):
        content = file.read_bytes()
        n = len(content)
        for changed in (
            *(content[: n * share // 8] for share in range(8)),
            content + b"\0",
            content + content,
            content[: n // 2] + bytes(n - n // 2),
        ):
            file.write_bytes(changed)
            artefact._sha256.cache_clear()
            assert refused(read, path, file), len(changed)
        file.write_bytes(content)


def test_a_missing_file_of_a_folder_is_named_and_files_beside_them_do_not_count(tmp_path):
    adapter(tmp_path)
    (tmp_path / ".snakemake_timestamp").write_text("")
    artefact.verify_folder(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config\.json does not exist; run the stage"):
        artefact.verify_folder(tmp_path)


def test_a_folder_without_a_record_is_taken_from_others_only(tmp_path):
    artefact.verify_folder(tmp_path, foreign=True)
    with pytest.raises(InputError, match=r"provenance\.json does not exist"):
        artefact.verify_folder(tmp_path)


def test_a_table_of_a_user_needs_no_digest(tmp_path):
    assert tables.read("items", own(tmp_path))["item_id"].to_pylist() == ["a", "b"]


def test_the_digest_covers_files_of_many_blocks_wherever_the_record_falls(tmp_path, monkeypatch):
    for block in range(64, 400, 7):
        monkeypatch.setattr(artefact, "BLOCK", block)
        artefact.read_json(metrics(tmp_path))


def test_digests_of_many_block_sizes_agree(tmp_path, monkeypatch):
    path = metrics(tmp_path)
    for block in (*range(1, 200, 13), 1000):
        monkeypatch.setattr(artefact, "BLOCK", block)
        artefact.read_json(path)


def test_a_text_that_looks_like_a_record_changes_nothing(tmp_path):
    lookalike = '{"digest": "' + "0" * 64 + '"}'
    other = artefact.read_json(metrics(tmp_path))["provenance"]
    provenance = Provenance("score", {"a": lookalike, "b": json.dumps(other)}, {"metrics": other["digest"]})
    artefact.write_json({"text": lookalike}, tmp_path / "m.json", provenance)
    assert artefact.read_json(tmp_path / "m.json")["text"] == lookalike
    tensors.write({"x": np.zeros(3)}, tmp_path / "x.safetensors", provenance)
    assert tensors.read(tmp_path / "x.safetensors")["x"].tolist() == [0, 0, 0]
    spec = tables.TABLES["items"]
    row = {name: lookalike if column.type == "str" else None for name, column in spec.columns.items()}
    tables.write("items", pa.Table.from_pylist([row], spec.schema()), tmp_path / "items.parquet", provenance)
    assert tables.read("items", tmp_path / "items.parquet")["title"].to_pylist() == [lookalike]


def test_other_programs_open_the_files_as_before(tmp_path):
    path = table(tmp_path)
    assert len(pd.read_parquet(path)) == ROWS
    assert duckdb.sql(f"SELECT count(*) FROM '{path}'").fetchall() == [(ROWS,)]
    assert set(load_file(arrays(tmp_path))) == {"g", "sample_id"}
    assert json.loads(metrics(tmp_path).read_text(encoding="utf-8"))["title"] == "Délice"


def test_the_record_says_what_made_the_file_and_nothing_of_the_time(tmp_path):
    first = metrics(tmp_path).read_bytes()
    assert metrics(tmp_path).read_bytes() == first
    record = json.loads(first)["provenance"]
    assert (record["stage"], record["settings"], record["inputs"]) == ("score", PROVENANCE.settings, {"rollouts": "12"})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    before = metrics(tmp_path).read_bytes()

    def write_badly(error: type[Exception] | None) -> None:
        with artefact.writing_with_digest(tmp_path / "metrics.json", PROVENANCE) as (partial, _):
            partial.write_text("no record")
            if error:
                raise error

    for error, seen in ((RuntimeError, RuntimeError), (None, ValueError)):
        with pytest.raises(seen):
            write_badly(error)
    assert (tmp_path / "metrics.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_hidden_files_which_snakemake_adds_do_not_change_the_digest_of_a_folder(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "a").write_text("a")
    before = artefact.digest(tmp_path)
    (tmp_path / ".snakemake_timestamp").touch()
    (tmp_path / "part" / ".hidden").write_text("b")
    assert artefact.digest(tmp_path) == before
    (tmp_path / "part" / "b").write_text("b")
    assert artefact.digest(tmp_path) != before


UNFINISHED = Provenance("rollout", {"seed": 0}, {"samples": "12"})


@pytest.mark.parametrize(
    ("provenance", "more", "kept"),
    [
        (UNFINISHED, {"shard": 1}, True),
        (Provenance("rollout", {"seed": 1}, {"samples": "12"}), {"shard": 1}, False),
        (Provenance("rollout", {"seed": 0}, {"samples": "13"}), {"shard": 1}, False),
        (UNFINISHED, {"shard": 2}, False),
        (UNFINISHED, {}, False),
    ],
    ids=["the same", "another setting", "another input", "another shard", "no shard"],
)
def test_unfinished_work_is_kept_only_where_the_same_inputs_and_settings_made_it(tmp_path, provenance, more, kept):
    work = tmp_path / "unfinished"
    artefact.keep_unfinished(work, UNFINISHED, shard=1)
    (work / "batch.parquet").touch()
    artefact.keep_unfinished(work, provenance, **more)
    assert (work / "batch.parquet").exists() is kept
    (work / "batch.parquet").touch()
    artefact.keep_unfinished(work, provenance, **more)
    assert (work / "batch.parquet").exists()  # what is begun anew is kept the next time


def test_a_record_has_the_versions_of_the_libraries_that_its_stage_uses_and_no_others():
    score, train, measure = (json.loads(Provenance(stage).json()) for stage in ("score", "train", "measure"))
    assert set(score["libraries"]) == {"numpy"}
    assert score["libraries"]["numpy"] == np.__version__
    assert {"torch", "transformers", "tokenizers", "peft", "trl", "numpy"} <= set(train["libraries"])
    assert "trl" not in json.loads(Provenance("rollout").json())["libraries"]
    assert set(measure["libraries"]) == {"numpy", "scipy"}
    assert "+" not in train["libraries"]["torch"]  # the build for a device is no other version
    assert "device" not in score
    assert train["device"] == ("cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name())


def test_another_version_of_a_library_is_other_code_for_the_stages_that_use_it(tmp_path, monkeypatch):
    before = {stage: code_digest.code_digest(stage) for stage in ("score", "train")}
    work = tmp_path / "unfinished"
    artefact.keep_unfinished(work, Provenance("train"))
    (work / "batch").touch()
    real = code_digest.version
    monkeypatch.setattr(code_digest, "version", lambda name: "9.9" if name == "peft" else real(name))
    code_digest.libraries.cache_clear()
    assert code_digest.code_digest("score") == before["score"]
    assert code_digest.code_digest("train") != before["train"]
    artefact.keep_unfinished(work, Provenance("train"))
    assert not (work / "batch").exists()
    monkeypatch.undo()
    code_digest.libraries.cache_clear()


def test_unfinished_work_goes_on_on_another_device(tmp_path, monkeypatch):
    artefact.keep_unfinished(tmp_path / "unfinished", Provenance("train"))
    (tmp_path / "unfinished" / "batch").touch()
    monkeypatch.setattr(artefact, "device", lambda: "another GPU")
    artefact.keep_unfinished(tmp_path / "unfinished", Provenance("train"))
    assert (tmp_path / "unfinished" / "batch").exists()


def test_unfinished_work_of_other_code_or_of_unknown_origin_is_removed(tmp_path, monkeypatch):
    work = tmp_path / "unfinished"
    work.mkdir()
    for unlike in (lambda: None, lambda: monkeypatch.setattr(artefact, "code_digest", lambda stage: f"other {stage}")):
        (work / "batch.parquet").touch()
        unlike()
        artefact.keep_unfinished(work, UNFINISHED)
        assert [file.name for file in work.iterdir()] == [artefact.FOLDER_RECORD]
