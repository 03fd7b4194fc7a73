"""The paper's own intermediate results are reproduced (METHOD 7); where they come from: published/README.md."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from minirec import curriculum_order, hit, learnability, ndcg
from minirec.selection.methods.registry import find
from minirec.selection.signals import Signals

PUBLISHED = Path(__file__).parent / "published"
CUTOFF = 1000  # a lower rank is no hit (METHOD 3)


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    """Mean reward, learnability and representativeness of the 10,748 published samples, by sample_id."""
    table = pd.read_parquet(PUBLISHED / "scores.parquet").set_index("sample_id")
    rewards = table[[f"reward_{g}" for g in range(4)]].to_numpy(np.float64)
    return table.assign(mean_reward=rewards.mean(1), learnability=table["learnability_e9"] / 1e9)


@pytest.fixture(scope="module")
def picks() -> pd.DataFrame:
    return pd.read_csv(PUBLISHED / "picks_256.csv")


def test_learnability_of_the_published_rewards_equals_the_published_one(scores):
    found = learnability(scores["mean_reward"].to_numpy(), mu=0.5)
    assert len(found) == 10_748
    assert np.abs(found - scores["learnability"].to_numpy()).max() < 1e-9


def test_the_most_valuable_of_all_published_samples_is_picked_first_as_published(scores, picks):
    signals = Signals(
        sample_id=scores.index.to_numpy(),
        learnability=scores["learnability"].to_numpy(),
        representativeness=scores["representativeness"].to_numpy(np.float64),
        embeddings=np.ones((len(scores), 1)),
    )
    rows = find("minirec").pick(signals, 1, np.random.default_rng(0)).rows
    assert signals.sample_id[rows].tolist() == picks["pick"].tolist()[:1]


def test_the_published_training_order_is_reproduced_exactly(scores, picks):
    rewards = scores.loc[picks["pick"], "mean_reward"].to_numpy()
    found = curriculum_order(picks["pick"].to_numpy(), rewards, group_size=64, seed=42)
    assert found.tolist() == picks["trained"].tolist()


def test_the_published_ndcg_and_hits_are_those_of_whole_ranks_and_1728_of_2048_samples_have_no_hit():
    before = pd.read_parquet(PUBLISHED / "before.parquet")
    gain = before[[f"ndcg_{g}" for g in range(3)]].to_numpy(np.float64)
    with np.errstate(divide="ignore", over="ignore"):
        rank = np.round(2 ** (1 / gain) - 1)  # the inverse of 1 / log2(1 + rank); infinite where there is no hit
    assert np.abs(ndcg(rank, CUTOFF) - gain).max() < 1e-7
    hits = hit(rank, CUTOFF)
    assert (hits == before[[f"hit_{g}" for g in range(3)]].to_numpy()).all()
    assert ((hits.sum(1) == 0).sum(), len(hits)) == (1728, 2048)
