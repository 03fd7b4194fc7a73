"""A tiny project and runs of train on it, which several test files share."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from minirec.model.whitening import COMPONENTS, Whitening
from minirec.stages import embed, train
from minirec.storage import tables
from minirec.storage.artefact import Provenance

ITEMS, SAMPLES = 30, 34


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_model, defaults) -> dict[str, Path]:
    """Samples, a catalogue and what embed makes of them."""
    folder = tmp_path_factory.mktemp("project")
    words = ["Blue", "Train", "Kind", "Abbey", "Road", "Red", "Clay"]
    titles = [f"{words[i % 7]} {words[i // 7]} {i}" for i in range(ITEMS)]
    catalogue = {
        "row": pa.array(range(ITEMS), pa.int32()),
        "item_id": [f"i{i:02d}" for i in range(ITEMS)],
        "title": titles,
        "text": [f"Title: {t}" for t in titles],
        "popularity": pa.array([1] * ITEMS, pa.int64()),
    }
    tables.write("catalogue", pa.table(catalogue), folder / "catalogue.parquet", Provenance("prepare"))
    generator = np.random.default_rng(0)
    rows = []
    for i in range(SAMPLES):
        items = generator.choice(ITEMS, 4, replace=False).tolist()
        split = "train" if i < 22 else "valid" if i < 28 else "test"
        rows.append(
            {
                "sample_id": i,
                "split": split,
                "user_id": f"u{i}",
                "target": items[3],
                "history": items[:3],
                "history_rating": [4.0, None, 5.0],
                "history_age": [3000, 2000, 1000],
                "timestamp": 10**12 + i,
            }
        )
    table = pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())
    tables.write("samples", table, folder / "samples.parquet", Provenance("prepare"))
    order = [3, 1, 4, 15, 9, 2, 6, 5, 12, 8, 7]
    curriculum = {
        "position": pa.array(range(len(order)), pa.int32()),
        "sample_id": pa.array(order, pa.int64()),
        "group": pa.array([0] * len(order), pa.int32()),
        "mean_reward": pa.nulls(len(order), pa.float64()),
    }
    tables.write("curriculum", pa.table(curriculum), folder / "curriculum.parquet", Provenance("curriculum"))
    files = {name: folder / f"{name}.parquet" for name in ("samples", "catalogue", "curriculum")}
    files |= {name: folder / f"{name}.safetensors" for name in ("whitening", "frozen_states", "items")}
    embed.run(
        policy=policy(defaults),
        embed=defaults.embed.model_copy(update={"keep_frozen_states": True}),
        samples=files["samples"],
        catalogue=files["catalogue"],
        model=tiny_model,
        adapter=None,
        whitening=files["whitening"],
        frozen_states=files["frozen_states"],
        out=files["items"],
    )
    return files


def policy(defaults, **changes):
    usual = {"pooling": "mean", "whiten_dim": 8, "lora_layers": 1, "lora_alpha": 8}
    return defaults.policy.model_copy(update=usual | changes)


def run(
    project, tiny_model, defaults, out: Path, beta=0.05, of_policy=None, of_sampling=None, **changes
) -> tuple[dict, dict]:
    """Train; returns the weights of adapter and head, and the history's columns."""
    usual = {
        "batch_prompts": 4,
        "micro_batch_prompts": 4,
        "epochs": 2,
        "evaluations_per_epoch": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "head": "separate",
        "extra_negatives": 5,
        "proxy_size": 6,
    }
    sampling = defaults.sampling.model_copy(update={"max_new_tokens": 3, "completions": 2} | (of_sampling or {}))
    given = {name: path for name, path in project.items() if name != "curriculum"}
    train.run(
        policy=policy(defaults, **(of_policy or {})),
        sampling=sampling,
        reward=defaults.reward.model_copy(update={"beta": beta}),
        train=defaults.train.model_copy(update=usual | changes),
        **given,
        curriculum=None if "proxy_size" in changes else project["curriculum"],
        model=tiny_model,
        seed=0,
        history=out / "history.parquet",
        out=out / "adapter",
    )
    table = tables.read("history", out / "history.parquet")
    return trained(out / "adapter"), table.to_pydict()


def trained(adapter: Path) -> dict[str, torch.Tensor]:
    """The weights of an adapter, and the maps of its whitening with the head after it."""
    kept = Whitening.read(adapter / "whitening.safetensors").arrays
    maps = {name: torch.from_numpy(kept[name]) for name in COMPONENTS}
    return load_file(adapter / "adapter_model.safetensors") | maps


def gradients(trainer):
    """Of everything that is trained, by name."""
    return {name: p.grad.clone() for name, p in trainer.policy.model.named_parameters() if p.grad is not None}


def same(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    return all((a[name] - b[name]).abs().max() <= tolerance for name in a)
