"""The paper's own intermediate results are reproduced (METHOD 7)."""

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED

from minirec.selection import curriculum_order, learnability

PUBLISHED = SHARED / "published"
pytestmark = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the paper's published results are not on this machine")


def test_learnability_of_the_published_rollouts_equals_the_published_scores():
    rollouts = pd.read_parquet(PUBLISHED / "rollouts.parquet")
    scores = pd.read_parquet(PUBLISHED / "scores.parquet")
    merged = rollouts.merge(scores, on="sample_id", validate="1:1")
    found = learnability(np.array([np.mean(r) for r in merged["rewards"]]), mu=0.5)
    assert len(merged) == 10_748
    assert np.abs(found - merged["learnability"].to_numpy()).max() < 1e-9


def test_the_published_training_order_is_reproduced_exactly():
    rollouts = pd.read_parquet(PUBLISHED / "rollouts.parquet").set_index("sample_id")
    picks = pd.read_parquet(PUBLISHED / "selection_256.parquet")["sample_id"].to_numpy()
    published = pd.read_parquet(PUBLISHED / "curriculum_256_groups_4.parquet").sort_values("position")
    rewards = np.array([np.mean(rollouts.loc[i, "rewards"]) for i in picks])
    found = curriculum_order(picks, rewards, group_size=64, seed=42)
    assert found.tolist() == published["sample_id"].tolist()


def test_the_published_share_of_samples_without_a_hit():
    before = pd.read_parquet(PUBLISHED / "rollouts_before_2048.parquet")
    assert (sum(not any(hit) for hit in before["hit"]), len(before)) == (1728, 2048)
