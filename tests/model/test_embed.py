"""What the whitening is fitted on."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import PASSES

from minirec.data import splits
from minirec.model.policy import Policy
from minirec.stages import embed
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance


@pytest.fixture
def samples(judged) -> list[dict]:
    """22 training samples, 4 of valid and 4 of test."""
    rows = sorted(tables.read("samples", judged["samples"]).to_pylist(), key=lambda row: row["sample_id"])
    return [row | {"split": "valid"} if 22 <= i < 26 else row for i, row in enumerate(rows)]


@pytest.fixture
def fitted(tmp_path, judged, defaults):
    """A function: the whitening that `run` fits on these samples, in three dimensions."""

    def arrays(samples, whiten_prompts=None, power=1.0):
        table = pa.Table.from_pylist(samples, tables.TABLES["samples"].schema())
        tables.write("samples", table, tmp_path / "s", Provenance("prepare"))
        embed.run(
            policy=defaults.policy.model_copy(update={"whiten_dim": 3, "whiten_power": power}),
            passes=PASSES,
            embed=defaults.embed.model_copy(update={"whiten_prompts": whiten_prompts}),
            samples=tmp_path / "s",
            catalogue=judged["catalogue"],
            model=judged["model"],
            whitening=tmp_path / "whitening",
            frozen_states=tmp_path / "frozen_states",
            item_table=tmp_path / "items",
        )
        return tensors.read(tmp_path / "whitening")

    return arrays


def test_what_valid_and_test_users_read_does_not_change_the_whitening(fitted, samples):
    before = fitted(samples)
    for split in ("valid", "test", "train"):
        other = [
            row | {"history_rows": [(v + 1) % 30 for v in row["history_rows"]]} if row["split"] == split else row
            for row in samples
        ]
        after = fitted(other)
        same = all(np.array_equal(before[name], after[name]) for name in before)
        assert same == (split != "train"), split


@pytest.mark.parametrize(
    ("prompts", "rows"), [(4, [0, 7, 14, 21]), (2, [0, 21]), (None, list(range(22))), (99, list(range(22)))]
)
@torch.no_grad()
def test_the_users_are_so_many_training_prompts_spread_over_time(fitted, samples, judged, defaults, prompts, rows):
    found = fitted(samples, prompts)["user_mean"]
    policy = Policy.load(judged["model"], defaults.policy)
    bodies = splits.load(judged["samples"], judged["catalogue"], "train", defaults.policy.prompt_history).bodies
    states = []
    for row in rows:
        ids = policy.user_prompts.prefix + policy.user_prompts.encode(bodies[row]) + policy.marker_ids
        states.append(policy.decoder(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])
    np.testing.assert_allclose(found, torch.stack(states).mean(0), atol=1e-4)


@pytest.mark.parametrize("power", [0, 0.5, 1])
def test_an_axis_is_divided_by_its_spread_to_the_power(fitted, samples, judged, power):
    """Items and users weigh the same, so the mean of their variances on an axis is spread ** 2 before the division."""
    rotation, found = fitted(samples, power=0)["item_components"], fitted(samples, power=power)["item_components"]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-4)
    spread = 1 / np.linalg.norm(fitted(samples, power=1)["item_components"], axis=0)
    assert spread.max() > 1.1 * spread.min()
    np.testing.assert_allclose(found * spread**power, rotation, atol=1e-4)
