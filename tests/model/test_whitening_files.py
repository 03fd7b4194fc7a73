"""Which whitening is read, and how many dimensions may be asked for."""

import numpy as np
import pytest
import torch

from minirec.errors import InputError
from minirec.model.whitening import WHITENING, Whitening
from minirec.storage.artefact import Provenance

RNG = np.random.default_rng(0)
USERS, ITEMS = RNG.normal(size=(40, 5)), RNG.normal(size=(50, 5))


def test_as_many_dimensions_as_the_states_span_are_allowed_and_one_more_is_refused():
    fitted = Whitening.fit(USERS, ITEMS, 5)
    assert fitted.user(torch.from_numpy(USERS)).shape == (40, 5)
    with pytest.raises(InputError, match=r"only 5 dimensions; set it to at most 5, or raise embed\.whiten_prompts"):
        Whitening.fit(USERS, ITEMS, 6)


def test_without_a_path_the_whitening_of_the_adapter_is_read_and_without_an_adapter_none(tmp_path):
    fitted = Whitening.fit(USERS, ITEMS, 3)
    fitted.write(tmp_path / WHITENING, Provenance("train"))
    found = Whitening.read(None, tmp_path)
    assert found.arrays.keys() == fitted.arrays.keys()
    assert all(np.array_equal(found.arrays[name], fitted.arrays[name]) for name in fitted.arrays)
    with pytest.raises(InputError, match="neither --whitening nor --adapter"):
        Whitening.read(None, None)


@pytest.mark.parametrize("of_adapter", [True, False])
def test_a_whitening_does_not_go_with_an_adapter_trained_without_one_nor_none_with_one_trained_with_it(
    tmp_path, of_adapter
):
    none, fitted = Whitening.identity(), Whitening.fit(USERS, ITEMS, 3)
    (tmp_path / "adapter").mkdir()
    (fitted if of_adapter else none).write(tmp_path / "adapter" / WHITENING, Provenance("train"))
    (none if of_adapter else fitted).write(tmp_path / "given.safetensors", Provenance("embed"))
    with pytest.raises(InputError, match=r"given\.safetensors is not the whitening of"):
        Whitening.read(tmp_path / "given.safetensors", tmp_path / "adapter")
