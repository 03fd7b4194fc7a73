"""Tensors: a damaged or foreign file is refused in one sentence, a failed write leaves what was there."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from minirec.errors import InputError
from minirec.storage import tensors
from minirec.storage.artefact import Provenance

PROVENANCE = Provenance("gradient", {"seed": 0}, {"rollouts": "12"})


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {"g": generator.normal(size=(30, 8)).astype(np.float32), "sample_id": np.arange(30)}


@pytest.fixture
def file(tmp_path, arrays):
    tensors.write(arrays, tmp_path / "g.safetensors", PROVENANCE)
    return tmp_path / "g.safetensors"


def refusal(path, *names: str) -> str:
    """The sentence of a failed read."""
    with pytest.raises(InputError) as caught:
        tensors.read(path, *names)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def test_tensors_come_back_as_they_were_written(file, arrays):
    read = tensors.read(file)
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array)
    assert list(tensors.read(file, "sample_id")) == ["sample_id"]


def test_a_transposed_view_and_an_empty_array_come_back(tmp_path):
    view = np.arange(6.0).reshape(2, 3).T
    tensors.write({"view": view, "none": np.zeros((0, 4))}, tmp_path / "t.safetensors", PROVENANCE)
    read = tensors.read(tmp_path / "t.safetensors")
    assert read["view"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert read["none"].shape == (0, 4)


def test_the_same_content_gives_the_same_bytes_in_any_order(tmp_path, file, arrays):
    again = tmp_path / "again.safetensors"
    for _ in range(8):
        tensors.write(dict(reversed(arrays.items())), again, PROVENANCE)
        assert again.read_bytes() == file.read_bytes()
    arrays["g"][0, 0] += 1
    tensors.write(arrays, again, PROVENANCE)
    assert again.read_bytes() != file.read_bytes()


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert "is not a readable safetensors file" in refusal(file)


def test_a_file_without_a_digest_is_refused(tmp_path):
    save_file({"g": np.ones(3)}, tmp_path / "g.safetensors")
    assert "digest" in refusal(tmp_path / "g.safetensors")


def test_a_tensor_that_is_missing_is_named(file):
    assert "has no tensor hv" in refusal(file, "g", "hv")


def test_a_file_that_is_missing_is_named(tmp_path):
    assert "does not exist" in refusal(tmp_path / "g.safetensors")


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(file, arrays):
    before = file.read_bytes()
    with pytest.raises(Exception):  # noqa: B017  of the library's own kind
        tensors.write({"g": np.array(["text"])}, file, PROVENANCE)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("rows", [1, 7, 30])
def test_a_file_written_some_rows_at_a_time_has_the_bytes_of_one_written_at_once(tmp_path, rows):
    generator = np.random.default_rng(0)
    whole = {"sample_id": np.arange(30), "g": generator.normal(size=(30, 8)), "a": generator.normal(size=(30, 2, 3))}
    whole = {name: array if name == "sample_id" else array.astype(np.float32) for name, array in whole.items()}
    provenance = Provenance("gradient", {"name": "Größe"}, {"rollouts": "12"})
    tensors.write(whole, tmp_path / "whole.safetensors", provenance)
    shapes = {name: array.shape for name, array in whole.items() if name != "sample_id"}
    with tensors.writer(shapes, tmp_path / "parts.safetensors", provenance) as append:
        for begin in range(0, 30, rows):
            append(**{name: array[begin : begin + rows] for name, array in whole.items()})
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_an_empty_file_may_be_written_in_no_parts(tmp_path):
    with tensors.writer({"g": (0, 4)}, tmp_path / "g.safetensors", PROVENANCE):
        pass
    assert tensors.read(tmp_path / "g.safetensors")["g"].shape == (0, 4)


IDS, ROWS = np.arange(3), np.zeros((3, 4), dtype=np.float32)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"sample_id": IDS, "g": ROWS}, "got 3 rows, not 6"),
        ({"sample_id": IDS, "g": ROWS[:, :3]}, "has rows of"),
        ({"sample_id": IDS, "g": ROWS[:2]}, "as many rows"),
        ({"sample_id": IDS}, "as many rows"),
    ],
)
def test_rows_that_are_missing_or_of_another_shape_are_refused_and_leave_nothing(tmp_path, rows, sentence):
    with (
        pytest.raises(ValueError, match=sentence),
        tensors.writer({"g": (6, 4)}, tmp_path / "g.safetensors", PROVENANCE) as append,
    ):
        append(**rows)
    assert list(tmp_path.iterdir()) == []


def test_some_rows_are_read_alone_and_the_whole_is_compared_with_its_digest_in_blocks(file, arrays, monkeypatch):
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 100)
    assert tensors.shapes(file, "g") == {"g": (30, 8)}
    assert np.array_equal(tensors.read_rows(file, "g", 5, 9), arrays["g"][5:9])
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="do not match its digest"):
        tensors.shapes(file)


@pytest.mark.parametrize("block", [1, 100, 10_000])
def test_rows_are_taken_by_number_in_any_order_and_twice(file, arrays, monkeypatch, block):
    monkeypatch.setattr(tensors, "BLOCK_BYTES", block)
    for rows in ([29, 0, 7, 7, 3], [], list(range(30)), [13]):
        assert np.array_equal(tensors.take(file, "g", np.array(rows, dtype=np.int64)), arrays["g"][rows])
