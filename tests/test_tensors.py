"""Tensors: a damaged or foreign file is refused in one sentence, a failed write leaves what was there."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from minirec import tensors
from minirec.artefact import Made
from minirec.errors import InputError

MADE = Made("gradient", {"seed": 0}, {"rollouts": "12"})


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {"g": generator.normal(size=(30, 8)).astype(np.float32), "sample_id": np.arange(30)}


@pytest.fixture
def file(tmp_path, arrays):
    tensors.write(arrays, tmp_path / "g.safetensors", MADE)
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
    found = tensors.read(file)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
    assert list(tensors.read(file, "sample_id")) == ["sample_id"]


def test_a_transposed_view_and_an_empty_array_come_back(tmp_path):
    view = np.arange(6.0).reshape(2, 3).T
    tensors.write({"view": view, "none": np.zeros((0, 4))}, tmp_path / "t.safetensors", MADE)
    found = tensors.read(tmp_path / "t.safetensors")
    assert found["view"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["none"].shape == (0, 4)


def test_the_same_content_gives_the_same_bytes_in_any_order(tmp_path, file, arrays):
    again = tmp_path / "again.safetensors"
    for _ in range(8):
        tensors.write(dict(reversed(arrays.items())), again, MADE)
        assert again.read_bytes() == file.read_bytes()
    arrays["g"][0, 0] += 1
    tensors.write(arrays, again, MADE)
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
        tensors.write({"g": np.array(["text"])}, file, MADE)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_samples_are_found_by_id_whatever_their_order(tmp_path):
    found = tensors.rows_of(np.array([7, 3, 9]), np.array([9, 7, 7, 3]), tmp_path)
    assert found.tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize(
    ("there", "wanted", "missing"),
    [([7, 3, 9], [3, 4], 4), ([7, 3, 9], [10], 10), ([7, 3, 9], [0, 7], 0), ([], [5], 5)],
)
def test_a_sample_that_is_missing_is_an_error_not_another_sample(tmp_path, there, wanted, missing):
    path = tmp_path / "g.safetensors"
    with pytest.raises(InputError, match=f"has no sample {missing}; make it again"):
        tensors.rows_of(np.array(there, dtype=np.int64), np.array(wanted), path)


def test_nothing_wanted_is_nothing_found(tmp_path):
    assert tensors.rows_of(np.array([], dtype=np.int64), np.array([], dtype=np.int64), tmp_path).tolist() == []
