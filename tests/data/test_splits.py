"""A split joins by catalogue row and sample id, never by the order of a file."""

import numpy as np
import pyarrow as pa
import pytest

from minirec.data import splits
from minirec.errors import InputError
from minirec.evaluation.breakdown import EvaluationSet
from minirec.storage import tables
from minirec.storage.artefact import Provenance

TITLES = ["zero", "one", "two", "three"]


@pytest.fixture
def load(tmp_path):
    """A function: a split of three samples, its files in any order of rows."""

    def loaded(split="train", order=(0, 1, 2, 3), histories=((0,), (1, 2), (3, 0, 1)), target=3, chosen=None):
        columns = {"row": pa.array(range(4), pa.int32()), "item_id": TITLES, "title": TITLES, "text": TITLES}
        catalogue = pa.table(columns | {"popularity": [0, 10, 20, 30]}).take(list(order))
        tables.write("catalogue", catalogue, tmp_path / "catalogue.parquet", Provenance("prepare"))
        rows = [
            {
                "sample_id": 10 - i,
                "split": "train",
                "user_id": "u",
                "target_row": target,
                "history_rows": list(history),
                "history_rating": [4.0] * len(history),
                "history_age_ms": [86_400_000] * len(history),
                "timestamp": 1,
            }
            for i, history in enumerate(histories)
        ]
        samples = pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())
        tables.write("samples", samples, tmp_path / "samples.parquet", Provenance("prepare"))
        return splits.load(tmp_path / "samples.parquet", tmp_path / "catalogue.parquet", split, 2, chosen)

    return loaded


def test_a_split_is_in_the_order_of_sample_ids_with_padded_histories(load):
    split = load()
    assert split.sample_id.tolist() == [8, 9, 10]
    assert split.history.tolist() == [[3, 0, 1], [1, 2, -1], [0, -1, -1]]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_a_prompt_names_the_last_titles_of_the_history_whatever_the_order_of_the_catalogue(load, order):
    bodies = load(order=order).bodies
    assert bodies[0] == "- 1 day: zero, rated 4\n- 1 day: one, rated 4"
    assert bodies[2] == "- 1 day: zero, rated 4"


def test_chosen_samples_come_in_their_order_and_a_missing_one_is_an_error(load):
    whole, chosen = load(), load(chosen=np.array([10, 8]))
    assert chosen.sample_id.tolist() == [10, 8]
    assert chosen.bodies == [whole.bodies[2], whole.bodies[0]]
    assert chosen.target.tolist() == whole.target[[2, 0]].tolist()
    for missing in (7, 11):
        with pytest.raises(InputError, match=rf"sample {missing} is not among the train samples of .*; select again"):
            load(chosen=np.array([8, missing]))


def test_a_breakdown_counts_the_items_of_each_history_and_knows_popularity_by_row(load, tmp_path):
    load(order=(3, 1, 0, 2), target=2)
    samples = tables.read("samples", tmp_path / "samples.parquet")
    test = samples.set_column(samples.column_names.index("split"), "split", pa.array(["test"] * len(samples)))
    tables.write("samples", test, tmp_path / "samples.parquet", Provenance("prepare"))
    found = EvaluationSet.load(tmp_path / "samples.parquet", tmp_path / "catalogue.parquet")
    assert found.history_length.tolist() == [3, 2, 1]
    assert found.target.tolist() == [2, 2, 2]
    assert found.popularity.tolist() == [0, 10, 20, 30]


def test_users_come_in_the_order_of_the_samples_and_a_missing_sample_is_named(load, tmp_path):
    load()
    assert splits.users(tmp_path / "samples.parquet", np.array([10, 8])).tolist() == [0, 0]
    for missing in (7, 11):
        with pytest.raises(InputError, match=f"has no sample {missing}; make it again"):
            splits.users(tmp_path / "samples.parquet", np.array([8, missing]))


def test_a_split_without_samples_is_named(load):
    with pytest.raises(InputError, match="has no test samples"):
        load("test")


@pytest.mark.parametrize("wrong", [{"target": 4}, {"histories": [(0, 7)]}])
def test_a_row_beyond_the_catalogue_is_named(load, wrong):
    with pytest.raises(InputError, match=r"refers to row [47], beyond"):
        load(**wrong)
