"""Evaluation ranks what a plain loop over the samples ranks."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from conftest import PASSES

from minirec.data import splits
from minirec.errors import InputError
from minirec.evaluation.breakdown import POPULARITY, EvaluationSet
from minirec.evaluation.rank_tables import read_ranks
from minirec.experiment.sections import Generation
from minirec.model.completions import marker_missing, with_marker
from minirec.model.policy import Policy
from minirec.model.whitening import COMPONENTS, MEANS, Whitening
from minirec.stages import evaluate
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance

WORDS = 6


@pytest.fixture(params=["last", "context"])
def policy(request, defaults):
    return defaults.policy.model_copy(update={"pooling": request.param})


@pytest.fixture
def sides(tmp_path):
    """A whitening whose sides differ, as after a trained head."""
    draw, shapes = np.random.default_rng(0), [(MEANS, 32), (COMPONENTS, (32, 16))]
    arrays = {name: draw.normal(size=shape).astype(np.float32) for names, shape in shapes for name in names}
    Whitening(arrays).write(tmp_path / "whitening.safetensors", Provenance("train"))
    return tmp_path / "whitening.safetensors"


def evaluated(judged, defaults, policy, whitening, folder, **more):
    given = {"samples": judged["samples"], "catalogue": judged["catalogue"], "model": judged["model"]}
    given |= {"adapter": judged["adapter"], "frozen_states": None}
    evaluate.run(
        policy=policy,
        sampling=defaults.sampling.model_copy(update={"max_new_tokens": WORDS}),
        passes=PASSES,
        generation=Generation(),
        whitening=whitening,
        ranks=folder / "ranks.parquet",
        **(given | more),
    )
    return tables.read("ranks", folder / "ranks.parquet").sort_by("sample_id")


def state(policy, prompts, body, text):
    """The pooled state of one text by a pass over nothing else."""
    ids = [*prompts.prefix, *body, *text]
    with torch.no_grad():
        states = policy.decoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return (states[-1] if policy.settings.pooling == "last" else states[len(prompts.prefix) :].mean(0)), states[-1]


def greedy(policy, body):
    """What the policy writes after a prompt, the marker included, one likeliest token at a time."""
    text = []
    while (forced := marker_missing(policy, text, WORDS) if text else None) is None:
        text.append(policy.logits(state(policy, policy.user_prompts, body, text)[1]).argmax().item())
    return with_marker(policy, text) if forced else text


def order_of(user, items, history):
    """Catalogue rows outside the history, nearest first."""
    cosine = torch.nn.functional.cosine_similarity(items, user[None])
    return sorted(set(range(len(items))) - set(history), key=lambda row: -cosine[row])


def test_the_ranks_are_those_of_a_plain_loop(judged, defaults, policy, sides, tmp_path):
    found = evaluated(judged, defaults, policy, sides, tmp_path).to_pylist()
    loaded, whiten = Policy.load(judged["model"], policy, judged["adapter"]), Whitening.read(sides)
    texts = [loaded.item_prompts.encode(text) for text in splits.catalogue_texts(judged["catalogue"])]
    items = whiten.item(torch.stack([state(loaded, loaded.item_prompts, text, [])[0] for text in texts]))
    samples = tables.read("samples", judged["samples"])
    tested = samples.filter(pc.equal(samples["split"], "test")).sort_by("sample_id").to_pylist()
    bodies = splits.load(judged["samples"], judged["catalogue"], "test", policy.prompt_history).bodies
    assert [row["sample_id"] for row in found] == [sample["sample_id"] for sample in tested]
    for row, sample, body in zip(found, tested, loaded.user_bodies(bodies), strict=True):
        with_words, without = (
            order_of(whiten.user(state(loaded, loaded.user_prompts, body, text)[0]), items, sample["history_rows"])
            for text in (greedy(loaded, body), loaded.marker_ids)
        )
        assert row["rank"] == with_words.index(sample["target_row"]) + 1
        assert row["rank_without_reasoning"] == without.index(sample["target_row"]) + 1
        assert row["top"] == with_words[:10]
    assert any(row["rank"] != row["rank_without_reasoning"] for row in found)


def test_the_history_is_not_recommended_even_where_nothing_else_is_left(judged, defaults, policy, tmp_path):
    few = tables.read("catalogue", judged["catalogue"])
    samples = tables.read("samples", judged["samples"])
    row = samples.filter(pc.equal(samples["split"], "test")).slice(0, 1).to_pylist()[0]
    row |= {"history_rows": list(range(8)), "history_rating": [None] * 8, "history_age_ms": [1] * 8, "target_row": 11}
    tables.write("catalogue", few.slice(0, 12), tmp_path / "catalogue.parquet", Provenance("prepare"))
    one = pa.Table.from_pylist([row], tables.TABLES["samples"].schema())
    tables.write("samples", one, tmp_path / "samples.parquet", Provenance("prepare"))
    files = {name: tmp_path / f"{name}.parquet" for name in ("samples", "catalogue")}
    (found,) = evaluated(judged, defaults, policy, judged["whitening"], tmp_path, **files).to_pylist()
    assert sorted(found["top"]) == [8, 9, 10, 11]
    test = EvaluationSet.load(files["samples"], files["catalogue"])
    ranks = read_ranks(tmp_path / "ranks.parquet", test.sample_id)
    assert test.breakdown(ranks)["recommended"]["coverage@10"] == 4 / 12


def test_the_breakdown_is_of_the_ranks_with_reasoning(judged, defaults, policy, sides, tmp_path):
    found = evaluated(judged, defaults, policy, sides, tmp_path)
    test = EvaluationSet.load(judged["samples"], judged["catalogue"])
    groups = test.breakdown(read_ranks(tmp_path / "ranks.parquet"))["by_target_popularity"]
    rank = tables.numpy(found, "rank")
    assert groups == {"1-4": {"samples": 8, "ndcg@10": pytest.approx(np.mean((rank <= 10) / np.log2(1 + rank)))}}
    assert POPULARITY[:3] == (0, 1, 5)


@pytest.mark.parametrize("count", [29, 31])
def test_an_item_table_of_another_catalogue_is_refused(judged, defaults, policy, tmp_path, count):
    table = np.resize(tensors.read(judged["item_table"], "items")["items"], (count, 32))
    tensors.write({"items": table, "row": np.arange(count)}, tmp_path / "items.safetensors", Provenance("embed"))
    with pytest.raises(InputError, match=f"items.safetensors has {count} items, but .*catalogue.parquet has 30"):
        evaluated(judged, defaults, policy, judged["whitening"], tmp_path, item_table=tmp_path / "items.safetensors")
