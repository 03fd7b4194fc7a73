"""Gradients as files: read, derived and written some samples at a time."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import PASSES

from minirec.errors import InputError
from minirec.model.whitening import Whitening
from minirec.stages import gradient
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance
from minirec.training import derivatives

N, G, D, K, M = 23, 3, 8, 5, 30


@pytest.fixture
def case(tmp_path):
    """Rollouts of the training samples 4, 7, 10, ... of a table that has others, too."""
    generator = np.random.default_rng(0)
    ids = 4 + 3 * np.arange(N)
    everyone = np.arange(ids[-1] + 9)
    count = len(everyone)
    columns = {
        "sample_id": everyone,
        "split": ["train"] * count,
        "user_id": ["u"] * count,
        "target_row": generator.integers(0, M, count).astype(np.int32),
        "history_rows": [generator.integers(0, M, size).tolist() for size in generator.integers(1, 6, count)],
        "history_rating": [[None]] * count,
        "history_age_ms": [[1]] * count,
        "timestamp": [1] * count,
    }
    samples = pa.table(columns, tables.TABLES["samples"].schema())
    tables.write("samples", samples, tmp_path / "samples.parquet", Provenance("prepare"))
    rows = [
        {"sample_id": int(i), "completion": c, "reward": 0.5, "ndcg": 0.5, "pi": 0.1, "hit": True, "rank": 3}
        | {"advantage": float(generator.normal()), "tokens": [1], "text": "a", "forced": False}
        for i in ids
        for c in range(G)
    ]
    table = pa.Table.from_pylist(rows, tables.TABLES["rollouts"].schema())
    tables.write("rollouts", table, tmp_path / "rollouts.parquet", Provenance("rollout"))
    states = generator.normal(size=(N, G, D)).astype(np.float32)
    tensors.write({"sample_id": ids, "hidden": states}, tmp_path / "hidden.safetensors", Provenance("rollout"))
    whiten = Whitening.fit(generator.normal(size=(60, D)), generator.normal(size=(40, D)), K)
    whiten.write(tmp_path / "whitening.safetensors", Provenance("embed"))
    items = generator.normal(size=(M, K)).astype(np.float32)
    tensors.write({"items": items, "row": np.arange(M)}, tmp_path / "items.safetensors", Provenance("embed"))
    return tmp_path, samples, table, states, whiten, items, ids


def run(folder, defaults, **changes):
    names = ("samples.parquet", "rollouts.parquet", "whitening.safetensors", "hidden.safetensors")
    out = {"gradients": folder / "gradients.safetensors", "embeddings": folder / "embeddings.safetensors"}
    files = {name.split(".")[0]: folder / name for name in names} | {"item_table": folder / "items.safetensors"}
    settings = {"policy": defaults.policy, "gradient": defaults.gradient.model_copy(update=changes), "passes": PASSES}
    gradient.run(**settings, **files, **out)
    return [tensors.read(file) for file in out.values()], [file.read_bytes() for file in out.values()]


@pytest.mark.parametrize(("advantage", "candidates"), [("group", None), ("group", 6), ("one", None)])
def test_g_hv_and_z_are_the_means_over_the_completions_of_each_sample(case, defaults, advantage, candidates):
    folder, samples, table, states, whiten, items, ids = case
    (found, embedded), _ = run(folder, defaults, advantage=advantage, candidates=candidates)
    assert found["sample_id"].tolist() == embedded["sample_id"].tolist() == ids.tolist()
    components = torch.from_numpy(whiten.arrays["user_components"])
    drawn = derivatives.sampled_candidates(ids, M, candidates, 0)
    for i, sample in enumerate(ids):
        row = samples.slice(int(sample), 1).to_pylist()[0]
        recorded = torch.tensor([one["advantage"] for one in table.slice(i * G, G).to_pylist()])
        x = whiten.user(torch.from_numpy(states[i]))
        g, hv = derivatives.gradient_and_hvp(
            x,
            torch.from_numpy(items),
            torch.tensor([row["target_row"]] * G),
            temperature=defaults.policy.tau,
            advantage=recorded if advantage == "group" else 1.0,
            exclude=torch.tensor([row["history_rows"]] * G),
            candidates=None if drawn is None else drawn[[i] * G],
            metric=components.T @ components,
        )
        for name, expected in (("gradient", g @ components.T), ("hvp", hv @ components.T)):
            assert np.allclose(found[name][i], expected.mean(0).numpy(), rtol=1e-4, atol=1e-5)
        assert np.allclose(embedded["embedding"][i], x.mean(0).numpy(), atol=1e-6)
        *_, error = derivatives.derivatives_and_error(
            x,
            torch.from_numpy(items),
            torch.tensor([row["target_row"]] * G),
            defaults.policy.tau,
            exclude=torch.tensor([row["history_rows"]] * G),
            candidates=None if drawn is None else drawn[[i] * G],
        )
        assert found["error_norm"][i] == pytest.approx(error.mean().item(), rel=1e-5)


@pytest.mark.parametrize("candidates", [None, 6])
def test_the_size_of_the_chunks_does_not_change_a_byte(case, defaults, monkeypatch, candidates):
    width = M if candidates is None else (candidates + 1) * K
    monkeypatch.setattr(derivatives, "CHUNK_SCORES", 9 * max(width, G * D))  # blocks of nine samples
    found = []
    for samples in (1, 7, N, 2 * N):
        monkeypatch.setattr(derivatives, "CHUNK_STATES", samples * G * D)
        found.append(run(case[0], defaults, candidates=candidates)[1])
    assert all(one == found[0] for one in found[1:])


@pytest.mark.parametrize(
    ("samples", "candidates", "block", "chunk"),  # of 30 items of 5 numbers, and 3 x 8 numbers a sample
    [
        (1000, None, 20, 40),  # 600 scores of all items; 1,000 numbers are those of 41 samples
        (1000, 6, 17, 34),  # 7 items of 5 numbers each
        (1000, 3, 25, 25),  # the states, 24 numbers, are more than 4 items of 5
        (7, None, 7, 35),
    ],
)
def test_blocks_and_chunks_are_as_large_as_the_numbers_in_memory_allow(
    defaults, monkeypatch, samples, candidates, block, chunk
):
    monkeypatch.setattr(derivatives, "CHUNK_SCORES", 600)
    monkeypatch.setattr(derivatives, "CHUNK_STATES", 1000)
    settings = defaults.gradient.model_copy(update={"candidates": candidates})
    sizes = derivatives.HiddenStateDerivatives(torch.ones(M, K), Whitening({}), 1.0, settings, (samples, G, D))
    assert (sizes.block, sizes.chunk) == (block, chunk)
    monkeypatch.setattr(derivatives, "CHUNK_SCORES", 1)
    monkeypatch.setattr(derivatives, "CHUNK_STATES", 1)
    assert (sizes.block, sizes.chunk) == (1, 1)


def test_rollouts_and_states_of_different_samples_are_refused(case, defaults):
    folder, _, table, states, *_, ids = case
    for kept in (table.slice(0, (N - 1) * G), table.slice(G)):
        tables.write("rollouts", kept, folder / "rollouts.parquet", Provenance("rollout"))
        with pytest.raises(InputError, match="hold different samples; run rollout again"):
            run(folder, defaults)
    tables.write("rollouts", table, folder / "rollouts.parquet", Provenance("rollout"))
    stored = {"sample_id": ids[:-1], "hidden": states[:-1]}
    tensors.write(stored, folder / "hidden.safetensors", Provenance("rollout"))
    with pytest.raises(InputError, match="hold different samples; run rollout again"):
        run(folder, defaults)
    assert not (folder / "gradients.safetensors").exists()
    assert not list(folder.glob(".*.part"))


def test_a_sample_without_its_facts_is_named(case, defaults):
    folder, samples, *_ = case
    tables.write("samples", samples.slice(0, 20), folder / "samples.parquet", Provenance("prepare"))
    with pytest.raises(InputError, match=r"samples\.parquet has no sample 22"):
        run(folder, defaults)


def test_an_item_table_that_is_too_short_is_refused(case, defaults):
    folder, samples, *_, items, _ = case
    last = max(max(row["target_row"], *row["history_rows"]) for row in samples.to_pylist())
    tensors.write({"items": items[:last], "row": np.arange(last)}, folder / "items.safetensors", Provenance("embed"))
    with pytest.raises(InputError, match=rf"refers to row \d+, beyond the {last} of .*items\.safetensors"):
        run(folder, defaults)


def test_damaged_states_are_refused(case, defaults):
    folder = case[0]
    content = bytearray((folder / "hidden.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "hidden.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"hidden\.safetensors is damaged"):
        run(folder, defaults)
