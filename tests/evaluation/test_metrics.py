import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from minirec import evaluation


@pytest.mark.parametrize("k", [1, 5, 10])
def test_ndcg_equals_scikit_learn(k):
    for place in range(1, 13):
        relevance, scores = np.zeros((1, 12)), -np.arange(12.0)[None]
        relevance[0, place - 1] = 1
        assert evaluation.ndcg(np.array([place]), k)[0] == pytest.approx(ndcg_score(relevance, scores, k=k))


def test_hit_counts_ranks_up_to_k():
    assert evaluation.hit(np.array([1, 10, 11]), 10).tolist() == [1, 1, 0]
