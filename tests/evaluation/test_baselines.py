"""Recommenders without a language model, against plain loops on data small enough for pencil and paper."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics.pairwise import linear_kernel

from minirec.errors import InputError
from minirec.evaluation import baselines
from minirec.evaluation.breakdown import EvaluationSet
from minirec.evaluation.rank_tables import read_baselines
from minirec.evaluation.sequences import training_sequences
from minirec.experiment.sections import SASRec
from minirec.stages import baselines as stage
from minirec.storage import tables
from minirec.storage.artefact import Provenance

TEXTS = ["blue train jazz", "kind of blue jazz", "abbey road rock", "red clay jazz", "abbey rock live", "silence"]
POPULARITY = [3, 3, 1, 0, 2, 0]
HOUR = 3_600_000


def sample(sample_id, split, user, target, history, time=None, ages=None):
    time = 10**12 + sample_id * HOUR if time is None else time
    ages = ages or [HOUR * (len(history) - i) for i in range(len(history))]
    return {
        "sample_id": sample_id,
        "split": split,
        "user_id": user,
        "target_row": target,
        "history_rows": history,
        "history_rating": [None] * len(history),
        "history_age_ms": ages,
        "timestamp": time,
    }


def table(rows) -> pa.Table:
    return pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())


TEST = [
    sample(10, "test", "u", 1, [0]),
    sample(11, "test", "v", 4, [0, 2]),
    sample(12, "test", "w", 5, [3, 1, 0]),
    sample(13, "test", "x", 3, [5]),
]
TRAIN = [
    sample(0, "train", "u", 1, [0]),
    sample(1, "train", "v", 4, [0, 2]),
    sample(2, "train", "w", 2, [4, 0]),
    sample(3, "valid", "x", 5, [3]),
]


@pytest.fixture
def ranks(tmp_path):
    """A function: the rank by (baseline, sample) of what `run` writes for these samples."""

    def found(rows=(*TRAIN, *TEST), popularity=POPULARITY, texts=TEXTS, order=None):
        catalogue = pa.table(
            {
                "row": pa.array(range(len(texts)), pa.int32()),
                "item_id": [f"i{row}" for row in range(len(texts))],
                "title": texts,
                "text": texts,
                "popularity": pa.array(popularity, pa.int64()),
            }
        )
        tables.write(
            "catalogue", catalogue.take(order or list(range(len(texts)))), tmp_path / "c.parquet", Provenance("prepare")
        )
        tables.write("samples", table(rows), tmp_path / "s.parquet", Provenance("prepare"))
        stage.run(
            sasrec=SASRec(width=8, epochs=3),
            samples=tmp_path / "s.parquet",
            catalogue=tmp_path / "c.parquet",
            baselines=tmp_path / "baselines.parquet",
        )
        rows = tables.read("baselines", tmp_path / "baselines.parquet").to_pylist()
        return {(row["baseline"], row["sample_id"]): row["rank"] for row in rows}

    return found


def rank_by_loops(scores, row) -> int:
    """Place of the target among the items outside the history, better first, then the lower row."""
    left = [item for item in range(len(scores)) if item not in row["history_rows"]]
    return sorted(left, key=lambda item: (-round(scores[item], 9), item)).index(row["target_row"]) + 1


def tfidf(texts) -> np.ndarray:
    """Cosines between texts by the textbook: (1 + ln tf) (1 + ln((1 + n) / (1 + df))), rows of length 1."""
    words = sorted({word for text in texts for word in text.split()})
    weight = np.zeros((len(texts), len(words)))
    for column, word in enumerate(words):
        spread = sum(word in text.split() for text in texts)
        for row, text in enumerate(texts):
            if count := text.split().count(word):
                weight[row, column] = (1 + math.log(count)) * (1 + math.log((1 + len(texts)) / (1 + spread)))
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    return linear_kernel(weight)


def test_popularity_ranks_by_counts_and_ties_by_the_lower_row(ranks):
    found = ranks()
    assert found["popularity", 10] == 1  # 0 is in the history; 1 is next
    assert found["popularity", 11] == 2  # after 1; 0 and 2 are masked
    assert found["popularity", 12] == 3  # 4, 2, then 5
    assert found["popularity", 13] == 5  # 0 and 1 with 3, 4 with 2, 2 with 1, then 3


def test_the_cosines_are_those_of_the_textbook():
    texts = [*TEXTS, "jazz jazz jazz train"]
    words = baselines.tfidf(texts)
    np.testing.assert_allclose((words @ words.T).toarray(), tfidf(texts), atol=1e-12)


@pytest.mark.parametrize("name", ["tfidf_last", "tfidf_history"])
def test_tfidf_ranks_by_the_cosine_to_the_last_item_or_to_the_mean_history(ranks, name):
    found, cosine = ranks(), tfidf(TEXTS)
    for row in TEST:
        scores = cosine[row["history_rows"][-1]] if name == "tfidf_last" else cosine[row["history_rows"]].mean(0)
        assert found[name, row["sample_id"]] == rank_by_loops(scores, row)


def test_the_last_item_and_the_mean_history_disagree_where_the_tastes_differ(ranks):
    rows = [*TRAIN, sample(10, "test", "u", 1, [0, 3, 2])]  # jazz, jazz, then rock
    found = ranks(rows)
    assert found["tfidf_history", 10] == 1
    assert found["tfidf_last", 10] > 1


def transition_counts(rows) -> Counter:
    """(from, to) of the train samples, each event of a user (item, next item and its time) once."""
    events = set()
    for row in rows:
        if row["split"] == "train":
            chain = [*row["history_rows"], row["target_row"]]
            times = [row["timestamp"] - age for age in row["history_age_ms"]] + [row["timestamp"]]
            events |= {(row["user_id"], *step) for step in zip(times[1:], chain[:-1], chain[1:], strict=True)}
    return Counter((a, b) for _, _, a, b in events)


def transitions(rows, items) -> np.ndarray:
    return baselines.transitions(training_sequences(table(rows)), items).toarray()


def test_transitions_rank_by_how_often_an_item_followed_then_by_popularity(ranks):
    found, counts = ranks(), transition_counts(TRAIN)
    assert counts == {(0, 1): 1, (0, 2): 2, (2, 4): 1, (4, 0): 1}
    for row in TEST:
        scores = [counts[row["history_rows"][-1], item] + POPULARITY[item] / 1000 for item in range(len(TEXTS))]
        assert found["transitions", row["sample_id"]] == rank_by_loops(scores, row)
    assert found["transitions", 10] == 2  # 2 followed 0 twice, 1 once
    assert found["transitions", 11] == 1  # 4 followed 2


def test_no_popularity_outweighs_one_transition(ranks):
    assert ranks(popularity=[0, 10**9, 0, 0, 0, 0])["transitions", 11] == 1


def test_transitions_equal_plain_loops_on_random_overlapping_histories():
    generator = np.random.default_rng(0)
    rows = []
    for user in range(8):
        items, times = generator.integers(0, 6, 12).tolist(), np.cumsum(generator.integers(0, 3, 12)).tolist()
        for i in range(1, 12):
            start = max(0, i - 4)
            ages = [times[i] - time for time in times[start:i]]
            split = "train" if i < 9 else "test"
            rows.append(sample(len(rows), split, f"u{user}", items[i], items[start:i], 10**6 + times[i], ages))
    counts = transition_counts(rows)
    found = transitions(rows, 6)
    assert found.tolist() == [[counts[a, b] for b in range(6)] for a in range(6)]
    assert found.sum() > 30


def test_without_times_a_step_counts_once_at_each_place_of_a_sequence():
    places = [("u", [0, 1], 2, 2), ("u", [0, 1, 2], 0, 3), ("u", [1, 2, 0], 1, 4), ("v", [0], 1, 1)]
    rows = [
        sample(number, "train", user, target, history, place, [None] * len(history))
        for number, (user, history, target, place) in enumerate(places)
    ]
    found = transitions(rows, 3)  # u: 0 1 2 0 1, v: 0 1
    assert found.tolist() == [[0, 3, 0], [0, 0, 1], [1, 0, 0]]


def test_the_same_step_of_another_user_or_time_counts_again_but_a_repeated_sample_does_not():
    again = sample(
        3, "train", "u", 2, [0, 1], time=10**12 + HOUR, ages=[2 * HOUR, HOUR]
    )  # 0 -> 1 at the time of TRAIN[0]
    rows = [TRAIN[0], again]
    assert transitions(rows, 6)[0, 1] == 1
    other = [TRAIN[0], again | {"user_id": "another"}]
    assert transitions(other, 6)[0, 1] == 2


def test_valid_and_test_samples_teach_nothing(ranks):
    more = [*TRAIN, *TEST, sample(4, "valid", "y", 4, [2, 0]), sample(14, "test", "z", 4, [2, 0])]
    before, after = ranks(), ranks(more)
    assert {key: after[key] for key in before if key[0] != "sasrec"} == {
        key: rank for key, rank in before.items() if key[0] != "sasrec"
    }
    tested = ranks([*TRAIN, *TEST, sample(14, "test", "z", 4, [2, 0, 1, 3])])  # valid says when SASRec stops
    assert {key: tested[key] for key in before} == before


def test_every_baseline_ranks_every_test_sample(ranks):
    names = ["popularity", "tfidf_last", "tfidf_history", "transitions", "sasrec"]
    assert list(ranks()) == [(name, row["sample_id"]) for name in names for row in TEST]


def test_the_order_of_rows_in_the_files_does_not_matter(ranks):
    assert ranks(order=[5, 2, 0, 4, 1, 3]) == ranks()


def test_the_breakdown_is_that_of_the_ranks_and_of_lists_without_the_history(ranks, tmp_path):
    favourites = [40, 20, 5, *[1] * 9, 0]
    rows = [
        sample(10, "test", "u", 1, [0]),  # rank 1, recommended are 1 to 10
        sample(11, "test", "v", 12, [0, 1]),  # rank 11, 2 to 11
        sample(12, "test", "w", 2, [12]),  # rank 3, 0 to 9
    ]
    ranks([*TRAIN, *rows], favourites, ["jazz"] * 13)
    test = EvaluationSet.load(tmp_path / "s.parquet", tmp_path / "c.parquet")
    popularity = test.breakdown(read_baselines(tmp_path / "baselines.parquet", test.sample_id)["popularity"])
    assert popularity["by_history_length"] == {
        "1": {"samples": 2, "ndcg@10": 0.75},
        "2-4": {"samples": 1, "ndcg@10": 0.0},
    }
    assert popularity["by_target_popularity"] == {
        "0": {"samples": 1, "ndcg@10": 0.0},
        "5-19": {"samples": 1, "ndcg@10": 0.5},
        "20+": {"samples": 1, "ndcg@10": 1.0},
    }
    assert popularity["recommended"] == pytest.approx(
        {
            "coverage@10": 12 / 13,
            "popularity@10": ((20 + 5 + 8) + (5 + 9) + (40 + 20 + 5 + 7)) / 30,
            "popularity_of_targets": (20 + 0 + 5) / 3,
        }
    )


def test_samples_without_a_test_split_are_refused(ranks):
    with pytest.raises(InputError, match="has no test samples"):
        ranks(rows=TRAIN)


def test_a_catalogue_without_a_word_still_has_baselines(ranks):
    found = ranks(texts=["", "", "!", "?", "", ""])
    assert found["tfidf_last", 10] == 1  # all cosines 0: the lowest row outside the history
    assert found["transitions", 11] == 1


def test_the_history_is_not_recommended_even_where_nothing_else_is_left():
    scores = np.array([[0.5, 0.9, 0.1, 0.7]])
    rank, top = baselines.rank(scores, np.array([2]), np.array([[1, 3]]))
    assert rank.tolist() == [2]
    assert top.tolist() == [[0, 2, -1, -1]]


def test_baselines_rank_like_a_full_sort():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 4, (50, 9)).astype(float)
    target = generator.integers(0, 9, 50)
    history = generator.integers(-1, 9, (50, 2))
    history[history == target[:, None]] = -1
    for row, found in enumerate(baselines.rank(scores, target, history)[0]):
        left = [v for v in range(9) if v not in history[row]]
        assert found == sorted(left, key=lambda v: (-scores[row, v], v)).index(target[row]) + 1
