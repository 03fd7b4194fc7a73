"""minirec why: five samples by hand, of which two are picked, and what the command says of each."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pytest

from minirec.cli import main, why
from minirec.experiment.sections import Select
from minirec.stages import select
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance

IDS = [10, 20, 30, 40, 50]
REWARD = np.array([0.5, 0.6, 0.3, 0.2, 0.0])
ALIKE = np.array([1.0, 0.9, 0.2, 0.2, 0.0])  # representativeness
VECTORS = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
LEAST = math.exp(-(0.5**2) / 0.08)  # of the bell with mu 0.5 and sigma 0.2: that of sample 50
BELL = np.maximum((np.exp(-((REWARD - 0.5) ** 2) / 0.08) - LEAST) / (1 - LEAST), 0)  # 0: of rounding
VALUE = BELL + ALIKE  # pick 1 is sample 10; at turn 2 the gains are VALUE x (.2, 1, 1), so that pick 2 is sample 30
NEEDED = VALUE[2]


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """Results of a data set with selections by several methods."""
    top = tmp_path_factory.mktemp("why") / "results" / "shop"
    signals = top / "signals" / "tiny" / "seed0"
    names = [f"Record {row}" for row in range(8)]
    catalogue = {"row": pa.array(range(8), pa.int32()), "item_id": names, "title": names, "text": names}
    catalogue["popularity"] = pa.array([1] * 8, pa.int64())
    tables.write("catalogue", pa.table(catalogue), top / "catalogue.parquet", Provenance("prepare"))
    rows = [
        {
            "sample_id": sample,
            "split": "train" if sample <= 50 else "test",
            "user_id": "u",
            "target_row": number,
            "history_rows": [7, 6],
            "history_rating": [None, None],
            "history_age_ms": [2, 1],
            "timestamp": sample,
        }
        for number, sample in enumerate([*IDS, 60])
    ]
    table = pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())
    tables.write("samples", table, top / "samples.parquet", Provenance("prepare"))
    rollouts = [
        {"sample_id": sample, "completion": number, "reward": reward, "hit": True, "rank": 3, "text": "so\nso"}
        | {"ndcg": 0.0, "pi": 0.0, "advantage": 0.0, "tokens": [1], "forced": False}
        for sample, reward in zip(IDS, REWARD.tolist(), strict=True)
        for number in range(2)
    ]
    table = pa.Table.from_pylist(rollouts, tables.TABLES["rollouts"].schema())
    tables.write("rollouts", table, signals / "rollouts.parquet", Provenance("rollout"))
    scores = {"sample_id": IDS, "mean_reward": REWARD, "learnability": BELL, "representativeness": ALIKE}
    scores |= dict.fromkeys(("reward_std", "gradient_norm", "error_norm"), np.zeros(5))
    made = Provenance("score", {"mu": 0.5, "sigma": 0.2}, {"rollouts": signals / "rollouts.parquet"})
    hits = pa.array([2] * 5, pa.int32())
    tables.write("scores", pa.table(scores | {"hits": hits}), signals / "scores.parquet", made)
    arrays = {"sample_id": np.array(IDS), "embedding": VECTORS.astype(np.float32)}
    tensors.write(arrays, signals / "embeddings.safetensors", Provenance("gradient"))
    by_scores = {"scores": signals / "scores.parquet", "embeddings": signals / "embeddings.safetensors"}
    for method, files in {
        "minirec": by_scores,
        "kmeans": {"rollouts": signals / "rollouts.parquet", "embeddings": signals / "embeddings.safetensors"},
        "hardest": {"rollouts": signals / "rollouts.parquet"},
        "random": {},
    }.items():
        folder = top / "selections" / ("tiny" if files else "none") / f"{method}-2" / "seed0"
        out = folder / "selection.parquet"
        select.run(select=Select(), samples=top / "samples.parquet", method=method, budget="2", selection=out, **files)
    return top


def folder_of(top, method="minirec"):
    return top / "selections" / ("none" if method == "random" else "tiny") / f"{method}-2" / "seed0"


def said(capsys, *words, code=0):
    assert main.main(["why", *map(str, words)]) == code
    out, error = capsys.readouterr()
    return error if code else out


def facts(capsys, top, sample, method="minirec"):
    return json.loads(said(capsys, folder_of(top, method), sample, "--json"))


def test_a_pick_is_shown_with_its_signals_at_its_turn(top, capsys):
    found = facts(capsys, top, 30)
    assert (found["pick"], found["budget"], found["samples"]) == (2, 2, 5)
    assert (found["history"], found["target"]) == (["Record 7", "Record 6"], "Record 2")
    assert found["diversity"] == 1  # of the distances .2, 1, 1 and 0
    assert found["value"] == pytest.approx(VALUE[2])
    assert found["signals"]["learnability"]["sample"] == pytest.approx(BELL[2])
    assert found["signals"]["mean_reward"] == pytest.approx({"sample": 0.3, "picks": 0.4, "all": 0.3}, abs=1e-6)
    assert found["nearest"] == {"pick": 1, "sample_id": 10, "target": "Record 0", "distance": 1.0}
    assert [one["reward"] for one in found["completions"]] == pytest.approx([0.3, 0.3])
    assert found["change"]["least_value"] == pytest.approx(VALUE[3])  # else sample 40 is pick 2


def test_a_sample_too_close_to_a_pick_is_told_which_and_how_far_it_must_be(top, capsys):
    change = facts(capsys, top, 20)["change"]
    assert (change["least_value"], change["turn"]) == (pytest.approx(VALUE[0]), 1)  # turn 2 asks NEEDED / .2
    near = change["closest"]
    assert (near["turn"], near["distance"], near["needed"]) == pytest.approx((2, 0.2, NEEDED / VALUE[1]), abs=1e-6)
    text = said(capsys, folder_of(top), 20)
    assert "sample 20 is not among the 2 picks by minirec" in text
    assert f"Its value is large enough (the last pick has only {VALUE[2]:.3f})" in text
    assert "too close to pick 1 (sample 10, Record 0)" in text
    assert f"is 0.200; above {NEEDED / VALUE[1]:.3f} it would be picked" in text


def test_the_mean_reward_that_would_be_enough_is_that_of_the_formula(top, capsys):
    learnable = NEEDED - ALIKE[3]
    width = math.sqrt(-0.08 * math.log(LEAST + learnable * (1 - LEAST)))
    (span,) = facts(capsys, top, 40)["change"]["ranges"]["mean_reward"]
    assert span == pytest.approx((0.5 - width, 0.5 + width), abs=1e-3)
    text = said(capsys, folder_of(top), 40)
    assert f"It would be picked with mean reward {0.5 - width:.3f} to {0.5 + width:.3f}." in text
    assert "With a budget of 3 it would be picked." in text


def test_the_screen_is_narrow_and_short_and_a_completion_stays_on_its_line(top, capsys):
    lines = said(capsys, folder_of(top), 10).splitlines()
    assert len(lines) < 45
    assert max(map(len, lines)) <= 140
    assert any(line.split() == ["1", "0.500", "3", "so", "so"] for line in lines)


def test_a_small_value_is_not_rounded_to_nothing():
    change = {"value": 2e-8, "least_value": 3e-7, "ranges": {}}
    text = " ".join(why.sentences({"change": change, "method": "minirec", "pick": 1, "places": []}))
    assert "is 2e-08; it is picked with any above 3e-07" in text


def test_places_are_those_of_the_methods_orders(top, capsys):
    places = {one["method"]: one["place"] for one in facts(capsys, top, 20)["places"]}
    assert (places["easiest"], places["hardest"], places["representative"]) == (1, 5, 2)
    assert "random" not in places


def test_a_method_without_vectors_says_which_rewards_it_would_take(top, capsys):
    assert facts(capsys, top, 10, "hardest")["change"]["ranges"] == {"mean_reward": [pytest.approx([0, 0.2], abs=1e-3)]}
    assert "It would be picked with mean reward 0 to 0.200." in said(capsys, folder_of(top, "hardest"), 10)


@pytest.mark.parametrize(("method", "sentence"), [("random", "random draws"), ("kmeans", "compares the embeddings")])
def test_where_no_number_of_a_sample_decides_a_sentence_says_so(top, capsys, method, sentence):
    assert sentence in said(capsys, folder_of(top, method), 10)


def test_a_run_is_explained_by_its_selection(top, capsys):
    run = top / "runs" / "big" / "tiny" / "minirec-2" / "seed0"
    assert said(capsys, run, 20) == said(capsys, folder_of(top), 20)


def test_without_a_sample_picks_and_others_are_listed_by_id(top, capsys):
    lines = said(capsys, folder_of(top)).splitlines()
    assert [line.split()[:2] for line in lines[1:6]] == [
        ["10", "pick"],
        ["30", "pick"],
        ["20", "not"],
        ["40", "not"],
        ["50", "not"],
    ]


def test_where_no_run_or_sample_is_one_sentence_says_what_to_do(top, capsys):
    for words, message in {
        (folder_of(top), 11): "has no sample 11; its ids are 10 to 60",
        (folder_of(top), 60): "sample 60 belongs to test; only samples of train can be picked",
        (top, 10): "is no run and no selection; name a folder like",
        (top / "selections/tiny/minirec-3/seed0", 10): "has no selection yet; minirec status",
    }.items():
        error = said(capsys, *words, code=1)
        assert message in error
        assert "Traceback" not in error


def test_signals_that_have_changed_since_the_selection_are_refused(top, capsys, tmp_path):
    copy = tmp_path / "shop"
    shutil.copytree(top, copy)
    scores = copy / "signals" / "tiny" / "seed0" / "scores.parquet"
    tables.write("scores", tables.read("scores", scores), scores, Provenance("score"))
    assert "scores.parquet from which" in said(capsys, folder_of(copy), 10, code=1)


def test_a_sample_that_its_shard_did_not_pick_is_said_to_be_lost_there(top, capsys):
    folder, signals = top / "selections" / "tiny" / "minirec-1" / "seed0", top / "signals" / "tiny" / "seed0"
    files = {"scores": signals / "scores.parquet", "embeddings": signals / "embeddings.safetensors"}
    files |= {"samples": top / "samples.parquet", "method": "minirec", "budget": "1", "select": Select(shards=2)}
    for shard in (0, 1):  # samples 10 and 20, then 30, 40 and 50
        select.run(**files, shard=shard, selection=folder / "shards" / str(shard) / "selection.parquet")
    select.run(**files, shards_folder=folder / "shards", selection=folder / "selection.parquet")
    assert "not among the picks of its shard" in said(capsys, folder, 20)
    assert "of 2 samples" in said(capsys, folder, 30)


def test_influences_that_have_changed_since_the_selection_are_refused(top, capsys, tmp_path):
    copy = tmp_path / "shop"
    shutil.copytree(top, copy)
    influences, signals = copy / "surrogate" / "influences.parquet", copy / "signals" / "tiny" / "seed0"
    files = {name: signals / f"{name}.parquet" for name in ("scores",)} | {"influences": influences}
    table = pa.table({"sample_id": IDS, "influence": [0.1, 0.4, 0.3, 0.2, 0.0]})
    tables.write("influences", table, influences, Provenance("influence"))
    out = copy / "selections" / "tiny" / "dealrec-2" / "seed0" / "selection.parquet"
    kept = {
        "select": Select(),
        "samples": copy / "samples.parquet",
        "method": "dealrec",
        "budget": "2",
        "selection": out,
    }
    select.run(**kept, **files)
    assert "influence" in said(capsys, out.parent, 20)
    tables.write("influences", table, influences, Provenance("influence", {"damping": 1.0}))
    assert "influences.parquet has changed since" in said(capsys, out.parent, 20, code=1)
    influences.unlink()
    assert "influences.parquet has changed since" in said(capsys, out.parent, 20, code=1)
