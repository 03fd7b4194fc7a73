import math
import random
from threading import current_thread

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

from minirec.selection import distances
from minirec.selection.curriculum import curriculum_order, groups
from minirec.selection.greedy import greedy, greedy_with_diversity


def brute_force(points, value, budget):
    """METHOD 4.6 in plain loops over exact cosines."""

    def distance(a, b):
        la, lb = math.hypot(*a), math.hypot(*b)
        if la == 0 or lb == 0:
            return 1.0
        found = 1 - sum(x * y for x, y in zip(a, b, strict=True)) / (la * lb)
        return found if found >= 1e-6 else 0.0

    n = len(points)
    picks = []
    for _ in range(budget):
        if picks:
            near = [0.0 if i in picks else min(distance(points[i], points[j]) for j in picks) for i in range(n)]
            top = max(near)
            gain = [near[i] / top * value[i] if top > 0 else 0.0 for i in range(n)]
        else:
            gain = list(value)
        left = [i for i in range(n) if i not in picks]
        best = max(gain[i] for i in left)
        picks.append(next(i for i in left if gain[i] >= best - 1e-12))
    return picks


def test_greedy_equals_a_brute_force_on_thousands_of_cases_with_ties_duplicates_and_zeros():
    generator = random.Random(0)
    for _ in range(3000):
        n, d = generator.randint(1, 9), generator.randint(2, 3)
        points = [[generator.choice([-1, 0, 0, 1, 2]) for _ in range(d)] for _ in range(n)]
        value = [generator.choice([0.0, 0.5, 0.5, 1.0, 2.0]) for _ in range(n)]
        budget = generator.randint(0, n)
        found = greedy(np.array(points, dtype=float), np.array(value), budget)
        assert found.tolist() == brute_force(points, value, budget), (points, value, budget)


def test_greedy_equals_a_brute_force_on_random_points():
    generator = np.random.default_rng(0)
    for _ in range(200):
        points, value = generator.normal(size=(30, 4)), generator.random(30)
        assert greedy(points, value, 12).tolist() == brute_force(points.tolist(), value.tolist(), 12)


def one_by_one(embeddings, value, budget):
    """METHOD 4.6 with every distance of every row at every pick: (picks, D~)."""
    rows = np.asarray(embeddings, dtype=np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    near, left, picks, diversity = np.full(len(rows), np.inf), np.ones(len(rows), dtype=bool), [], []
    for position in range(budget):
        largest = near.max()
        relative = (near / largest if largest > 0 else np.zeros(len(rows))) if position else np.ones(len(rows))
        gain = np.where(left, relative * value, -np.inf)
        pick = int(np.flatnonzero(gain >= gain.max() - 1e-12)[0])
        picks.append(pick)
        diversity.append(relative[pick])
        left[pick] = False
        distance = 1 - unit @ unit[pick]
        distance[distance < 1e-6] = 0
        distance[pick] = 0
        near = np.minimum(near, distance)
    return np.array(picks), np.array(diversity)


def clustered(n, d, seed):
    """Gaussian clusters with copies, all but copies, zero vectors and zero values in between."""
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(12, d))[generator.integers(0, 12, n)]
    points += generator.choice([0, 1e-4, 0.3, 1], n)[:, None] * generator.normal(size=(n, d))
    points[generator.choice(n, n // 50)] = 0
    value = generator.random(n) + generator.random(n)
    value[generator.choice(n, n // 10)] = 0
    return points.astype(np.float32), value


@pytest.mark.parametrize(("n", "d", "budget"), [(400, 3, 400), (1500, 16, 300), (6000, 24, 200)])
def test_greedy_and_its_diversity_equal_what_comparing_everything_gives(n, d, budget, monkeypatch):
    for seed, pool in ((0, 512), (1, 16), (2, 2)):
        monkeypatch.setattr(distances, "POOL_NUMBERS", pool * d)
        monkeypatch.setattr(distances, "BLOCK_NUMBERS", pool * 1000)
        points, value = clustered(n, d, seed)
        picks, diversity = greedy_with_diversity(points, value, budget)
        expected, relative = one_by_one(points, value, budget)
        assert picks.tolist() == expected.tolist()
        assert diversity == pytest.approx(relative, abs=1e-9)
        assert greedy(points, value, budget).tolist() == expected.tolist()


def test_any_number_of_threads_gives_the_same_bits_and_a_matrix_product_has_one(monkeypatch):
    points, value = clustered(2000, 24, 0)
    found, used, compare = {}, {}, distances.NearestDistances.compare

    def watched(self, rows, *block):
        blas = libraries.select(user_api="blas").info()
        used[threads] |= {(current_thread().name, library["num_threads"]) for library in blas}
        return compare(self, rows, *block)

    libraries = ThreadpoolController()
    monkeypatch.setattr(distances, "POOL_NUMBERS", 24 * 64)
    monkeypatch.setattr(distances, "BLOCK_NUMBERS", 24 * 64)
    monkeypatch.setattr(distances.NearestDistances, "compare", watched)
    for threads in (1, 2, 3):
        used[threads] = set()
        with threadpool_limits(threads, "blas"):
            found[threads] = greedy_with_diversity(points, value, 100)
    assert len(used[1]) == 1
    assert len(used[3]) > 1  # this thread, for the pools, and others
    assert {number for names in used.values() for _, number in names} == {1}
    for picks, diversity in (found[2], found[3]):
        assert picks.tolist() == found[1][0].tolist()
        assert diversity.tobytes() == found[1][1].tobytes()


def test_greedy_compares_few_rows_with_few_picks(monkeypatch):
    monkeypatch.setattr(distances, "POOL_NUMBERS", 24 * 256)
    points, value = clustered(6000, 24, 0)
    nearest = distances.NearestDistances(points, 200)
    best = distances.ArgmaxCache(nearest, value)
    nearest.pick(int(value.argmax()))
    for _ in range(199):
        nearest.pick(int(best.find()[1][0]))
    assert nearest.similarities < 0.5 * 6000 * 200


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_greedy_reads_a_mapped_file_and_a_tensor_as_it_reads_an_array(tmp_path, kind):
    points, value = clustered(1500, 16, 3)
    mapped = np.memmap(tmp_path / "points", dtype=kind, mode="w+", shape=points.shape)
    mapped[:] = points
    expected = one_by_one(mapped, value, 150)[0].tolist()
    assert (
        greedy(np.memmap(tmp_path / "points", dtype=kind, mode="r", shape=points.shape), value, 150).tolist()
        == expected
    )
    assert greedy(torch.from_numpy(points.astype(kind)), value, 150).tolist() == expected


def test_greedy_refuses_values_below_zero_and_embeddings_that_are_not_numbers():
    with pytest.raises(ValueError, match="negative"):
        greedy(np.eye(2), np.array([1.0, -1.0]), 1)
    with pytest.raises(ValueError, match="not a number"):
        greedy(np.array([[1.0, 0.0], [np.nan, 1.0], [0.0, 1.0]]), np.ones(3), 2)


def test_a_duplicate_is_passed_over_for_a_weaker_but_new_sample():
    embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert greedy(embeddings, value=np.array([0.9, 0.8, 0.1]), budget=2).tolist() == [0, 2]


@pytest.mark.parametrize("budget", [-1, 3])
def test_greedy_refuses_a_budget_below_none_or_beyond_the_samples(budget):
    with pytest.raises(ValueError, match=f"budget {budget} is not within"):
        greedy(np.eye(2), np.ones(2), budget)


@pytest.mark.parametrize("pool", [2, 5, 16])
def test_of_many_equal_rows_the_lowest_is_picked_however_few_are_compared(pool, monkeypatch):
    monkeypatch.setattr(distances, "POOL_NUMBERS", pool * 64)
    assert greedy(np.eye(64), np.ones(64), 64).tolist() == list(range(64))
    turned = np.eye(64)[::-1].copy()
    turned[10:20] = turned[9]  # copies of the tenth row come last
    expected = [*range(10), *range(20, 64), *range(10, 20)]
    assert greedy(turned, np.ones(64), 64).tolist() == expected


def test_the_highest_rows_and_the_highest_other_value_equal_those_of_sorting():
    generator = np.random.default_rng(0)
    for size in (1, 2, 3, 20, 50, 200):
        for count in generator.integers(1, size + 2, 300):
            values = generator.permutation(size).astype(float) + 1
            rows, beyond = distances._highest(values, count)
            assert rows.tolist() == sorted(np.argsort(-values)[:count].tolist())
            assert beyond == max(size - count, 0)


def test_the_last_group_takes_the_rest():
    assert np.bincount(groups(150, 64)).tolist() == [75, 75]
    assert np.bincount(groups(133, 44)).tolist() == [44, 44, 45]
    assert np.bincount(groups(10, 64)).tolist() == [10]
    assert np.bincount(groups(5, 2)).tolist() == [2, 3]
    assert groups(3, 1).tolist() == [0, 1, 2]


def test_a_reward_too_many_is_refused_and_not_left_out():
    with pytest.raises(ValueError, match="longer"):
        curriculum_order(np.arange(3), np.zeros(4), 2, 0)


def test_a_group_runs_from_easy_to_hard_and_holds_a_seeded_shuffle():
    ids = np.arange(8)
    found = curriculum_order(ids, np.linspace(0, 1, 8), group_size=4, seed=42)
    shuffled = list(range(8))
    random.Random(42).shuffle(shuffled)
    assert found.tolist() == sorted(shuffled[:4], reverse=True) + sorted(shuffled[4:], reverse=True)


def test_the_order_does_not_depend_on_the_order_of_the_input():
    ids, reward = np.arange(100), np.random.default_rng(0).random(100)
    turned = np.random.default_rng(1).permutation(100)
    assert (curriculum_order(ids, reward, 16, 0) == curriculum_order(ids[turned], reward[turned], 16, 0)).all()
