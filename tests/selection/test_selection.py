"""Selections as files: what select writes, and the budgets it refuses."""

import numpy as np
import pyarrow as pa
import pytest

from minirec.errors import InputError
from minirec.stages import select
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance

N = 6


def rollouts(ids, rewards) -> pa.Table:
    """One completion of each sample with this reward."""
    row = {
        "completion": 0,
        "ndcg": 0.5,
        "pi": 0.1,
        "hit": True,
        "rank": 3,
        "advantage": 0.0,
        "tokens": [1],
        "text": "a",
        "forced": False,
    }
    rows = [row | {"sample_id": int(i), "reward": float(reward)} for i, reward in zip(ids, rewards, strict=True)]
    return pa.Table.from_pylist(rows, tables.TABLES["rollouts"].schema())


@pytest.fixture
def run(tmp_path, defaults):
    """Six training samples with ids 10 to 15, of which 12 is the most valuable; rows of the files in another order."""
    ids = np.arange(10, 10 + N)
    columns = {
        "sample_id": ids,
        "split": ["train"] * N,
        "user_id": ["u"] * N,
        "target_row": [0] * N,
        "history_rows": [[0]] * N,
        "history_rating": [[None]] * N,
        "history_age_ms": [[1]] * N,
        "timestamp": [1] * N,
    }
    table = pa.table(columns, tables.TABLES["samples"].schema())
    tables.write("samples", table, tmp_path / "samples.parquet", Provenance("prepare"))
    value = np.array([0.1, 0.2, 0.9, 0.3, 0.4, 0.5])
    turned = ids[::-1]
    scores = dict.fromkeys(
        ("mean_reward", "reward_std", "representativeness", "gradient_norm", "error_norm"), np.zeros(N)
    )
    scores |= {"sample_id": turned, "learnability": value[::-1], "hits": np.zeros(N, dtype=np.int32)}
    tables.write("scores", pa.table(scores), tmp_path / "scores.parquet", Provenance("score"))
    stored = {"sample_id": turned, "embedding": np.eye(N, dtype=np.float32)[::-1].copy()}
    tensors.write(stored, tmp_path / "embeddings.safetensors", Provenance("gradient"))

    tables.write("rollouts", rollouts(turned, value[::-1]), tmp_path / "rollouts.parquet", Provenance("rollout"))

    def select_(budget, method="minirec", shard=None, shards_folder=None, out="selection.parquet", **changes):
        select.run(
            select=defaults.select.model_copy(update=changes),
            samples=tmp_path / "samples.parquet",
            scores=tmp_path / "scores.parquet" if method == "minirec" else None,
            rollouts=tmp_path / "rollouts.parquet" if method in ("hardest", "easiest", "learnable") else None,
            embeddings=tmp_path / "embeddings.safetensors" if method == "minirec" else None,
            method=method,
            budget=budget,
            seed=3,
            shard=shard,
            shards_folder=shards_folder,
            selection=tmp_path / out,
        )
        return tables.read("selection", tmp_path / out).sort_by("position")

    return select_


def test_picks_carry_the_ids_of_the_samples_whatever_the_order_of_the_files(run):
    picked = run("4")
    assert picked["sample_id"].to_pylist() == [12, 15, 14, 13]  # all equally far apart: by value
    assert picked["learnability"].to_pylist() == [0.9, 0.5, 0.4, 0.3]
    assert picked["diversity"].to_pylist() == [1.0] * 4


@pytest.mark.parametrize("method", ["minirec", "random"])
def test_a_budget_beyond_the_samples_stops_with_one_sentence(run, tmp_path, method):
    with pytest.raises(InputError, match=r"the budget is 7, but only 6 .*; lower the budget or roll out more samples"):
        run("7", method)
    assert not (tmp_path / "selection.parquet").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_full_takes_every_sample_once_and_random_as_many_as_asked(run):
    assert sorted(run("all", "full")["sample_id"].to_pylist()) == list(range(10, 16))
    assert len(set(run("3", "random")["sample_id"].to_pylist())) == 3


def test_hardest_and_easiest_go_by_the_mean_reward_of_the_rollouts(run):
    hardest, easiest = run("2", "hardest"), run("2", "easiest")
    assert hardest["sample_id"].to_pylist() == [10, 11]
    assert easiest["sample_id"].to_pylist() == [12, 15]
    assert np.allclose(easiest["mean_reward"].to_pylist(), [0.9, 0.5])
    assert easiest["value"].null_count == 2


def test_a_method_without_what_it_needs_says_which_file(run, tmp_path, defaults):
    with pytest.raises(InputError, match="select --method minirec needs --scores and --embeddings"):
        select.run(
            select=defaults.select,
            samples=tmp_path / "samples.parquet",
            rollouts=tmp_path / "rollouts.parquet",
            budget="2",
            selection=tmp_path / "s.parquet",
        )


def test_dealrec_reads_the_influence_of_its_own_table(run, tmp_path, defaults):
    def pick(**files):
        given = {"select": defaults.select, "samples": tmp_path / "samples.parquet", "method": "dealrec", "budget": "2"}
        select.run(**given, scores=tmp_path / "scores.parquet", selection=tmp_path / "s.parquet", **files)
        return tables.read("selection", tmp_path / "s.parquet")

    with pytest.raises(InputError, match="select --method dealrec needs --influences"):
        pick()
    influences = pa.table({"sample_id": np.arange(15, 9, -1), "influence": [0.0, 0.0, 0.0, 0.0, 0.0, 4.0]})
    tables.write("influences", influences, tmp_path / "i.parquet", Provenance("influence"))
    picked = pick(influences=tmp_path / "i.parquet")
    assert 10 in picked["sample_id"].to_pylist()  # alone in its range
    assert sorted(picked["value"].to_pylist()) == [1.0, 2.0]  # the efforts are equal: 1 for all


def test_an_unknown_method_is_refused_with_those_there_are(run):
    with pytest.raises(InputError, match="the method best is not among band, coverage"):
        run("2", "best")


def test_without_diversity_the_most_valuable_come_first(run):
    assert run("3", terms=["learnability"])["sample_id"].to_pylist() == [12, 15, 14]


def test_two_rounds_pick_in_each_shard_and_then_among_the_picks(run, tmp_path):
    names = [f"{shard}/selection.parquet" for shard in (1, 0)]
    picked = [run("2", shard=shard, shards=2, out=name) for shard, name in enumerate(names)]
    assert [table["sample_id"].to_pylist() for table in picked] == [[12, 11], [15, 14]]
    found = run("2", shards=2, shards_folder=tmp_path)
    assert found["sample_id"].to_pylist() == [12, 15]
    assert found["value"].to_pylist() == [0.9, 0.5]
    with pytest.raises(InputError, match="the budget is 5, but only 4"):
        run("5", shards=2, shards_folder=tmp_path)


@pytest.mark.parametrize("budget", ["4", "all"])
def test_a_shard_of_fewer_samples_than_the_budget_gives_all_it_has(run, budget):
    sizes = [len(run(budget, shard=shard, shards=4)) for shard in range(4)]
    assert sizes == [1, 2, 1, 2]


def test_a_shard_that_is_not_there_is_refused(run):
    with pytest.raises(InputError, match=r"--shard is 2, but select\.shards is 2"):
        run("2", shard=2, shards=2)


def test_one_shard_in_two_rounds_is_the_exact_choice(run, tmp_path):
    run("4", shard=0, out="0/selection.parquet")
    exact = run("4").to_pylist()
    assert run("4", shards_folder=tmp_path).to_pylist() == exact


def test_the_last_round_refuses_damaged_embeddings(run, tmp_path):
    run("2", shard=0, out="0/selection.parquet")
    file = tmp_path / "embeddings.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for shards_folder in (None, tmp_path):
        with pytest.raises(InputError, match="do not match its digest"):
            run("2", shards_folder=shards_folder)
