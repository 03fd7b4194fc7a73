"""Scores as files: derivatives are read some samples at a time."""

import numpy as np
import pyarrow as pa
import pytest

from minirec.errors import InputError
from minirec.stages import score
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance

N, G, D = 23, 2, 6


@pytest.fixture
def files(tmp_path):
    """Rollouts of 23 samples, and their derivatives in another order with two samples more."""
    generator = np.random.default_rng(0)
    ids = 5 + 2 * np.arange(N)
    facts = {"ndcg": 0.5, "pi": 0.1, "hit": True, "rank": 3, "advantage": 0.0}
    facts |= {"tokens": [1], "text": "a", "forced": False}
    rows = [
        facts | {"sample_id": int(i), "completion": c, "reward": float(generator.random())}
        for i in ids
        for c in range(G)
    ]
    table = pa.Table.from_pylist(rows, tables.TABLES["rollouts"].schema())
    tables.write("rollouts", table, tmp_path / "rollouts.parquet", Provenance("rollout"))
    turned = generator.permutation(np.concatenate([ids, [1, 400]]))
    arrays = {name: generator.normal(size=(N + 2, D)).astype(np.float32) for name in ("gradient", "hvp")}
    arrays["hvp"][3] = 0
    arrays["error_norm"] = generator.random(N + 2).astype(np.float32)
    tensors.write({"sample_id": turned, **arrays}, tmp_path / "gradients.safetensors", Provenance("gradient"))
    rows_of = [int(np.flatnonzero(turned == i)[0]) for i in ids]
    return tmp_path, ids, {name: array[rows_of].astype(np.float64) for name, array in arrays.items()}


def run(folder, defaults, **changes):
    score.run(
        score=defaults.score.model_copy(update=changes),
        rollouts=folder / "rollouts.parquet",
        gradients=folder / "gradients.safetensors",
        scores=folder / "scores.parquet",
    )
    return tables.read("scores", folder / "scores.parquet")


@pytest.mark.parametrize("block", [1, 7, N, 2 * N])
@pytest.mark.parametrize("direction", ["hvp", "grad", "lookahead"])
def test_scores_are_those_of_all_samples_together_whatever_the_block(files, defaults, monkeypatch, block, direction):
    folder, ids, exact = files
    monkeypatch.setattr(score, "BLOCK", block)
    found = run(folder, defaults, direction=direction, eta=0.5)
    g, hv = exact["gradient"], exact["hvp"]
    u = {"hvp": hv, "grad": g, "lookahead": g - 0.5 * hv}[direction]
    mean = u.mean(0)
    cosine = [float(row @ mean / (np.linalg.norm(row) * np.linalg.norm(mean))) if row.any() else 0.0 for row in u]
    expected = (np.array(cosine) - min(cosine)) / (max(cosine) - min(cosine))
    assert found["sample_id"].to_pylist() == ids.tolist()
    assert np.allclose(tables.numpy(found, "representativeness"), expected, atol=1e-6)
    assert np.allclose(tables.numpy(found, "gradient_norm"), np.linalg.norm(g, axis=1), rtol=1e-6)
    assert tables.numpy(found, "error_norm").tolist() == exact["error_norm"].tolist()


def test_damaged_derivatives_and_missing_samples_are_refused(files, defaults):
    folder, ids, exact = files
    file = folder / "gradients.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="do not match its digest"):
        run(folder, defaults)
    arrays = {name: array[1:].astype(np.float32) for name, array in exact.items()}
    tensors.write({"sample_id": ids[1:], **arrays}, file, Provenance("gradient"))
    with pytest.raises(InputError, match="has no sample 5"):
        run(folder, defaults)
