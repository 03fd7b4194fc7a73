"""What a mean hides, on samples small enough for pencil and paper."""

import numpy as np
import pytest

from minirec.evaluation.breakdown import EvaluationSet, by_group
from minirec.evaluation.rank_tables import Ranks


@pytest.fixture
def tested() -> EvaluationSet:
    popularity = np.array([0, 4, 5, 30])
    return EvaluationSet(np.arange(4), np.zeros(4, int), np.array([1, 1, 4, 12]), np.array([0, 1, 3, 3]), popularity)


def test_every_sample_is_in_one_group_of_its_history_and_one_of_its_target(tested):
    found = tested.breakdown(Ranks(tested.sample_id, np.array([1, 11, 3, 1]), np.zeros((4, 1), int)))
    assert found["by_history_length"] == {
        "1": {"samples": 2, "ndcg@10": 0.5},
        "2-4": {"samples": 1, "ndcg@10": 0.5},
        "10+": {"samples": 1, "ndcg@10": 1.0},
    }
    assert found["by_target_popularity"] == {
        "0": {"samples": 1, "ndcg@10": 1.0},
        "1-4": {"samples": 1, "ndcg@10": 0.0},
        "20+": {"samples": 2, "ndcg@10": 0.75},
    }


def test_a_group_reaches_from_its_start_to_before_the_next(tested):
    assert list(by_group(np.ones(4), np.array([1, 4, 5, 9]), (1, 5, 9))) == ["1-4", "5-8", "9+"]


def test_coverage_counts_items_once_and_popularity_every_recommendation(tested):
    found = tested.recommended(np.array([[1, 3], [1, 3], [1, 2], [1, 2]]))
    assert found["coverage@10"] == 3 / 4
    assert found["popularity@10"] == (4 * 4 + 2 * 30 + 2 * 5) / 8
    assert found["popularity_of_targets"] == (0 + 4 + 30 + 30) / 4


def test_only_the_first_ten_recommendations_count():
    tested = EvaluationSet(np.array([0]), np.array([0]), np.array([1]), np.array([0]), np.arange(12))
    found = tested.breakdown(Ranks(tested.sample_id, np.array([1]), np.arange(12)[None]))
    assert found["recommended"]["coverage@10"] == 10 / 12
    assert found["recommended"]["popularity@10"] == 4.5


def test_a_list_that_the_history_leaves_short_counts_what_it_has(tested):
    found = tested.recommended(np.array([[1, 3], [1, -1]]))
    assert found["coverage@10"] == 2 / 4
    assert found["popularity@10"] == (4 + 30 + 4) / 3
