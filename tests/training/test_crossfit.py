"""Cross-fitted heads: no sample is rewarded by a head that has seen it, and the heads learn what there is to learn."""

import json

import numpy as np
import pytest
import torch

from minirec.data import splits
from minirec.data.splits import Split
from minirec.errors import InputError
from minirec.experiment import config
from minirec.experiment.sections import Generation, Passes
from minirec.model.whitening import Head, Whitening
from minirec.stages import crossfit as stage
from minirec.stages import embed_users, rollout
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance
from minirec.training import crossfit, rewards
from minirec.training.rewards import score_completions

N, ITEMS, K = 60, 12, 6
TAU = 0.1


@pytest.fixture
def case():
    """States that a linear map of the targets' vectors gives, so that a head can learn to undo it."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    target = generator.integers(0, ITEMS, N)
    history = np.stack([generator.choice([i for i in range(ITEMS) if i != t], 2, replace=False) for t in target])
    items = torch.randn(ITEMS, K)
    users = items[torch.from_numpy(target)] @ torch.randn(K, K) + 0.05 * torch.randn(N, K)
    return users, items, Split(np.arange(N) * 2, target, history, [""] * N)


@pytest.fixture
def proxy(defaults):
    changes = {"head": "separate", "head_learning_rate": 0.05, "batch_prompts": 10}
    return defaults.proxy.model_copy(update=changes | {"warmup_steps": 4, "extra_negatives": 8})


def rewarded(case, proxy, defaults, folds=2, seed=0):
    settings = defaults.crossfit.model_copy(update={"folds": folds, "head_epochs": 20})
    return crossfit.held_out_rewards(*case, proxy, settings, TAU, defaults.reward, seed)


def test_heads_learn_a_map_that_holds_for_samples_they_have_not_seen(case, proxy, defaults):
    users, items, samples = case
    before = score_completions(users[:, None], items, samples, Whitening.identity(), TAU, defaults.reward)
    assert before["rank"].float().mean() > 3
    assert rewarded(case, proxy, defaults)["rank"].mean() < 1.3


def test_each_part_is_rewarded_by_a_head_of_all_others(case, proxy, defaults, monkeypatch):
    trained, fit = [], crossfit.fit

    def noted(users, items, samples, batches, **settings):
        batches = list(batches)
        trained.append((sorted(set(np.concatenate(batches).tolist())), fit(users, items, samples, batches, **settings)))
        return trained[-1][1]

    monkeypatch.setattr(crossfit, "fit", noted)
    users, items, samples = case
    found = rewarded(case, proxy, defaults, folds=3)
    assert [len(seen) for seen, _ in trained] == [40] * 3
    held_out = [sorted(set(range(N)) - set(seen)) for seen, _ in trained]
    assert sorted(row for part in held_out for row in part) == list(range(N))
    for rows, (_, head) in zip(held_out, trained, strict=True):
        h = head.user(users[rows])[:, None].detach()
        vectors = head.item(items).detach()
        expected = score_completions(h, vectors, samples.take(rows), Whitening.identity(), TAU, defaults.reward)
        for name, values in expected.items():
            assert np.allclose(found[name][rows], values[:, 0].numpy(), atol=1e-5), name


def test_memory_does_not_change_the_rewards_but_the_seed_does(case, proxy, defaults, monkeypatch):
    whole = rewarded(case, proxy, defaults)["reward"]
    assert not np.array_equal(whole, rewarded(case, proxy, defaults, seed=1)["reward"])
    monkeypatch.setattr(rewards, "SCORES", 5 * ITEMS)
    assert np.allclose(whole, rewarded(case, proxy, defaults)["reward"], atol=1e-6)


def test_one_step_follows_the_gradient_of_the_mean_item_loss(case):
    """AdamW's first step moves every weight by the learning rate against the sign of its gradient."""
    users, items, samples = case
    rows, rate = np.array([3, 8, 5]), 1e-3
    head = crossfit.fit(
        users,
        items,
        samples,
        [rows],
        kind="separate",
        rate=rate,
        schedule=lambda optimiser: torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0),
        negatives=ITEMS,
        tau=TAU,
        max_grad_norm=1e9,
        generator=torch.Generator(),
    )
    one = Head(Whitening.identity(), K, "separate")
    cosine = torch.nn.functional.cosine_similarity(one.user(users[rows])[:, None], one.item(items)[None], dim=-1)
    for row, sample in enumerate(rows):
        cosine[row, samples.history[sample]] = -torch.inf
    torch.nn.functional.cross_entropy(cosine / TAU, torch.from_numpy(samples.target[rows])).backward()
    for name, weight in head.maps.items():
        moved, gradient = weight.detach() - torch.eye(K), one.maps[name].grad
        assert torch.allclose(moved, -rate * gradient.sign(), atol=rate / 100), name


@pytest.fixture(scope="module")
def users(judged, defaults, tmp_path_factory):
    """What embed_users writes."""
    file = tmp_path_factory.mktemp("users") / "users.safetensors"
    files = {name: judged[name] for name in ("samples", "catalogue", "whitening", "model")}
    embed_users.run(policy=defaults.policy, passes=Passes(batch_tokens=512), users=file, **files)
    return file


def test_a_warm_up_takes_at_most_half_of_a_heads_steps_so_that_few_samples_are_learned_too(case, proxy, defaults):
    def settings(warmup_steps):
        return proxy.model_copy(update={"warmup_steps": warmup_steps})

    steps = 20 * 3  # epochs, batches of 10 of the 30 samples of a fold
    long, half, short = (rewarded(case, settings(w), defaults)["pi"] for w in (10_000, steps // 2, steps // 2 - 1))
    assert np.array_equal(long, half)
    assert not np.array_equal(half, short)
    assert rewarded(case, settings(10_000), defaults)["rank"].mean() < 1.3


def run(judged, users, given, folder, **changes):
    """Run the stage; returns its table and its vectors by name."""
    files = {name: judged[name] for name in ("samples", "catalogue", "item_table")} | {"users": users}
    out = {"rollouts": folder / "rollouts.parquet", "embeddings": folder / "embeddings.safetensors"}
    parts = {name: getattr(given, name) for name in ("policy", "crossfit", "reward")} | {"train": given.proxy} | changes
    stage.run(**parts, **files, **out)
    return tables.read("rollouts", out["rollouts"]).to_pandas(), tensors.read(out["embeddings"])


def test_without_learning_the_rewards_are_those_of_rollouts_without_reasoning(judged, users, defaults, tmp_path):
    changes = {
        "proxy": {"head": "shared", "head_learning_rate": 1e-9},
        "sampling": {"max_new_tokens": 0, "completions": 1},
    }
    given = config.overlay(json.loads(defaults.model_dump_json()), changes)
    given = config.validate(
        config.overlay(given, {"train": {"item_advantage": "one"}, "proxy": {"item_advantage": "one"}})
    )
    found, vectors = run(judged, users, given, tmp_path)
    sections = {name: getattr(given, name) for name in ("policy", "sampling", "reward", "rollout")}
    out = {"rollouts": tmp_path / "written.parquet", "hidden": tmp_path / "hidden.safetensors"}
    files = {name: path for name, path in judged.items() if name != "adapter"}
    rollout.run(**sections, passes=Passes(batch_tokens=512), generation=Generation(), **files, **out)
    expected = tables.read("rollouts", out["rollouts"]).to_pandas()
    for name in ("sample_id", "completion", "rank", "hit", "text", "forced", "advantage"):
        assert found[name].tolist() == expected[name].tolist(), name
    for name in ("reward", "ndcg", "pi"):
        assert np.allclose(found[name], expected[name], atol=1e-4), name
    states = torch.from_numpy(tensors.read(out["hidden"])["hidden"][:, 0])
    whitened = Whitening.read(judged["whitening"]).user(states).numpy()
    assert np.allclose(vectors["embedding"], whitened, atol=1e-4)
    assert vectors["sample_id"].tolist() == splits.sample_ids(judged["samples"], "train").tolist()


def test_the_same_seed_gives_the_same_bytes(judged, users, defaults, tmp_path):
    proxy = defaults.proxy.model_copy(update={"head": "shared", "batch_prompts": 4})
    given = defaults.model_copy(update={"proxy": proxy})
    written = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        run(judged, users, given, tmp_path / name)
        written.append([file.read_bytes() for file in sorted((tmp_path / name).iterdir())])
    assert written[0] == written[1]


def test_too_few_samples_and_a_proxy_without_a_head_are_refused(judged, users, defaults, tmp_path):
    folds = defaults.crossfit.model_copy(update={"folds": 12})
    with pytest.raises(InputError, match=r"has 22 training samples, too few for crossfit\.folds 12"):
        run(judged, users, defaults, tmp_path, crossfit=folds)
    with pytest.raises(InputError, match=r"proxy\.head is none"):
        run(judged, users, defaults, tmp_path)
    assert not list(tmp_path.iterdir())


def test_states_and_items_of_two_models_are_refused(judged, users, defaults, tmp_path):
    given = defaults.model_copy(update={"proxy": defaults.proxy.model_copy(update={"head": "shared"})})
    wide, stored = tmp_path / "wide.safetensors", tensors.read(users)
    stored["embedding"] = np.pad(stored["embedding"], ((0, 0), (0, 1)))
    tensors.write(stored, wide, Provenance("embed_users"))
    with pytest.raises(
        InputError, match=r"wide\.safetensors has vectors of 33 numbers, but .*items\.safetensors of 32"
    ):
        run(judged, wide, given, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["wide.safetensors"]


def test_states_are_found_by_their_sample_and_states_of_other_samples_are_refused(judged, users, defaults, tmp_path):
    given = defaults.model_copy(update={"proxy": defaults.proxy.model_copy(update={"head": "shared"})})
    stored, folders = tensors.read(users), [tmp_path / name for name in ("in_order", "reversed", "lacking")]
    written = []
    for folder, rows in zip(folders, (slice(None), slice(None, None, -1), slice(1, None)), strict=True):
        folder.mkdir()
        file = tmp_path / f"{folder.name}.safetensors"
        tensors.write({name: values[rows] for name, values in stored.items()}, file, Provenance("embed_users"))
        if folder.name == "lacking":
            with pytest.raises(InputError, match=r"lacking\.safetensors has no sample 0"):
                run(judged, file, given, folder)
        else:
            written.append(run(judged, file, given, folder))
    assert written[0][0].equals(written[1][0])
    assert np.array_equal(written[0][1]["embedding"], written[1][1]["embedding"])
