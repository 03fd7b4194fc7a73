"""The registry of methods, and `pick` on rewards alone."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from minirec.errors import InputError
from minirec.selection import pick
from minirec.selection.methods import registry
from minirec.selection.methods.registry import Picks, methods
from minirec.selection.signals import FREE, NEEDS, Signals, learnability


def test_selection_loads_no_torch_and_no_pydantic():
    code = "import sys, minirec, minirec.selection; print(*[m for m in ('torch', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_method_is_named_after_its_file_and_says_in_a_sentence_what_it_does():
    for name, method in methods().items():
        assert method.module == f"selection.methods.{name}"
        assert len(method.sentence.split()) >= 3
        assert (method.function.__doc__ or "").startswith(method.sentence[:20])
        assert set(method.needs + method.uses) <= {*NEEDS, *FREE}


def test_random_and_full_wait_for_nothing_and_hardest_for_rewards_alone():
    assert [methods()[name].reads for name in ("random", "full", "hardest")] == [(), (), ("rewards",)]


def test_dealrec_alone_waits_for_the_influence():
    assert [name for name, one in methods().items() if "influence" in one.reads] == ["dealrec"]


def test_a_new_method_is_a_function_and_its_settings_are_read_from_its_signature(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    @registry.method(needs=("rewards",))
    def lowest(signals, budget, generator, *, above: registry.Share = 0.2):
        """The lowest mean rewards above a threshold."""
        rows = np.argsort(signals.mean_reward, kind="stable")
        return rows[signals.mean_reward[rows] > above][:budget]

    method = registry._registered["lowest"]
    assert method.settings == {"above": (registry.Share, 0.2)}
    signals = Signals(np.arange(4), mean_reward=np.array([0.1, 0.9, 0.3, 0.4]))
    picks = method.pick(signals, 2, np.random.default_rng(0), above=0.35)
    assert isinstance(picks, Picks)
    assert picks.rows.tolist() == [3, 1]
    with pytest.raises(InputError, match="mu is not a setting of the method lowest; its settings are: above"):
        method.pick(signals, 2, np.random.default_rng(0), mu=1.0)


def test_two_methods_may_share_a_setting_but_not_its_name_for_two_things(monkeypatch):
    monkeypatch.setattr(registry, "methods", lambda: registry._registered)
    monkeypatch.setattr(registry, "_registered", {})

    @registry.method()
    def one(signals, budget, generator, *, mu: registry.Share = 0.5):
        """One."""

    @registry.method()
    def other(signals, budget, generator, *, mu: registry.Share = 0.5):
        """Other."""

    assert registry.settings() == {"mu": (registry.Share, 0.5, ["one", "other"])}

    @registry.method()
    def third(signals, budget, generator, *, mu: registry.Share = 0.7):
        """Third."""

    with pytest.raises(TypeError, match="mu of the method third"):
        registry.settings()
    registry._registered["third"] = replace(registry._registered["third"], settings={"mu": (registry.Share, 0.3)})
    with pytest.raises(TypeError, match="mu of the method third"):
        registry.settings()


REWARDS = np.array([[0.0, 0.0], [0.5, 0.5], [0.0, 0.9], [1.0, 1.0]])


def test_pick_goes_by_the_mean_reward():
    assert pick(REWARDS, 2, method="hardest").tolist() == [0, 2]
    assert pick(REWARDS, 2, method="easiest").tolist() == [3, 1]
    assert pick(REWARDS, 2).tolist() == [1, 2]  # learnable: nearest to a half


def test_pick_with_embeddings_passes_over_a_copy():
    embeddings = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    # learnability 1, .96 and 0, 0: after 1, its copy 2 is at distance 0, and the others are worth nothing
    assert pick(REWARDS, 2, embeddings=embeddings).tolist() == [1, 0]
    assert pick(REWARDS[[0, 1, 2, 1]], 2, embeddings=embeddings).tolist() == [1, 3]


def test_pick_hands_a_method_the_mean_the_sample_spread_and_the_number_of_hits(monkeypatch):
    monkeypatch.setattr(registry, "methods", lambda: registry._registered)
    monkeypatch.setattr(registry, "_registered", {})
    seen = []

    @registry.method(needs=("rewards",))
    def looks(signals, budget, generator):
        """Look at the signals and take the first."""
        seen.append(signals)
        return np.arange(budget)

    assert pick(np.array([[0.0, 0.4, 0.8], [-0.5, 0.0, 0.5]]), 1, method="looks").tolist() == [0]
    pick(np.array([[0.5], [0.0]]), 1, method="looks")
    several, single = seen
    assert several.mean_reward.tolist() == pytest.approx([0.4, 0])
    assert several.reward_std.tolist() == pytest.approx([0.4, 0.5])
    assert several.hits.tolist() == [2, 1]
    assert single.reward_std.tolist() == [0, 0]


VALUED = Signals(
    sample_id=np.arange(4),
    learnability=np.array([0.9, 0.5, 0.0, 0.0]),
    representativeness=np.array([0.0, 0.5, 0.8, 0.0]),
    embeddings=np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.1], [-1.0, 0.0]]),
)


@pytest.mark.parametrize(
    ("settings", "rows", "value"),
    [
        ({"terms": ["learnability", "representativeness"]}, [1, 0, 2, 3], [1.0, 0.9, 0.8, 0.0]),
        ({"terms": ["learnability", "representativeness"], "alpha": 2.0}, [0, 1, 2, 3], [1.8, 1.5, 0.8, 0.0]),
        ({"terms": ["representativeness"]}, [2, 1, 0, 3], [0.8, 0.5, 0.0, 0.0]),
        ({"terms": ["learnability"]}, [0, 1, 2, 3], [0.9, 0.5, 0.0, 0.0]),
        # with diversity alone: the first, the one opposite, then by the cosine to the nearer of the two
        ({"terms": ["diversity"]}, [0, 3, 1, 2], [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_each_term_of_minirec_counts_alone_and_with_the_others_as_by_hand(settings, rows, value):
    picks = methods()["minirec"].pick(VALUED, 4, np.random.default_rng(0), **settings)
    assert picks.rows.tolist() == rows
    assert picks.value.tolist() == pytest.approx(value)


@pytest.mark.parametrize("name", ["learnable", "product", "diversity"])
def test_a_greedy_method_says_the_value_and_the_distance_of_every_pick(name):
    signals = replace(VALUED, mean_reward=np.array([0.5, 0.4, 0.2, 0.0]))
    picks = methods()[name].pick(signals, 4, np.random.default_rng(0))
    unit = signals.embeddings / np.linalg.norm(signals.embeddings, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    for place, row in enumerate(picks.rows):
        to_picks = distance[:, picks.rows[:place]].min(1) if place else np.ones(4)
        assert picks.diversity[place] == pytest.approx(to_picks[row] / to_picks.max())
    if name == "diversity":
        assert picks.value is None
    else:
        value = signals.learnability * signals.representativeness
        if name == "learnable":
            value = learnability(signals.mean_reward, 0.5)
        assert picks.value.tolist() == pytest.approx((value[picks.rows] * picks.diversity).tolist())


def test_minirec_measures_distances_from_the_mean_embedding_on_request():
    points = np.array([[3.0, 0.0], [3.0, 2.0], [1.0, 0.0], [1.0, -2.0]])  # minus their mean: 0 and 2 are opposite
    signals = Signals(np.arange(4), embeddings=points, learnability=np.ones(4), representativeness=np.ones(4))
    minirec, generator = methods()["minirec"], np.random.default_rng(0)
    assert minirec.pick(signals, 4, generator, terms=["diversity"], centre=True).rows.tolist() == [0, 2, 1, 3]
    assert minirec.pick(signals, 2, generator, terms=["diversity"]).rows.tolist() == [0, 3]


def test_the_value_of_a_pick_of_minirec_is_its_weighted_sum_times_its_relative_distance():
    points = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    signals = Signals(np.arange(3), learnability=np.array([1.0, 0.6, 0.2]), embeddings=points)
    signals = replace(signals, representativeness=np.array([0.5, 0.6, 0.3]))
    picks = methods()["minirec"].pick(signals, 3, np.random.default_rng(0))
    # distances to the first: 1 and 2, so D~ = 1/2 and 1; values 1.2 / 2 and 0.5; then 0.5 x (1 / 1)
    assert picks.rows.tolist() == [0, 1, 2]
    assert picks.diversity.tolist() == pytest.approx([1, 0.5, 1])
    assert picks.value.tolist() == pytest.approx([1.5, 0.6, 0.5])


@pytest.mark.parametrize(
    ("setting", "good", "bad"),
    [
        ("mu", [0, 0.3, 1], [-0.1, 1.1]),
        ("alpha", [0, 0.5, 7], [-0.1]),
        ("terms", [["learnability"], ["diversity", "representativeness"]], [[], ["luck"]]),
    ],
)
def test_a_setting_of_a_method_has_bounds(setting, good, bad):
    kind = TypeAdapter(registry.settings()[setting][0])
    for value in good:
        assert kind.validate_python(value) == value
    for value in bad:
        with pytest.raises(ValidationError):
            kind.validate_python(value)


def test_every_method_that_needs_rewards_alone_ranks_as_by_hand_and_keeps_ties_in_order():
    rewards = np.array([[0.2], [0.9], [0.2], [0.6], [0.9], [0.0]])
    assert pick(rewards, 6, method="hardest").tolist() == [5, 0, 2, 3, 1, 4]
    assert pick(rewards, 6, method="easiest").tolist() == [1, 4, 3, 0, 2, 5]
    assert pick(rewards, 6, method="learnable").tolist() == [3, 0, 2, 1, 4, 5]
    for budget in (1, 99):  # whatever it is
        assert sorted(pick(rewards, budget, method="full").tolist()) == list(range(6))


def test_pick_at_random_is_repeated_by_its_seed():
    first, same, other = (pick(REWARDS.repeat(25, 0), 50, method="random", seed=seed) for seed in (1, 1, 2))
    assert first.tolist() == same.tolist()
    assert pick(REWARDS, 2, method="random").tolist() == pick(REWARDS, 2, method="random", seed=0).tolist()
    assert first.tolist() != other.tolist()
    assert len(set(first.tolist())) == 50


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"budget": 5}, "the budget is 5, but there are 4 samples"),
        ({"budget": 0}, "the budget is 0"),
        ({"budget": -1}, "the budget is -1"),
        ({"method": "minirec"}, "minirec needs gradients and embeddings"),
        ({"method": "best"}, "the method best is not among band, coverage"),
        ({"rewards": np.array([[np.nan]])}, "rewards have NaN or infinity in row 0"),
        ({"rewards": np.zeros(4)}, r"rewards must be numbers \[n, G\], but they have the shape \(4,\)"),
        ({"rewards": np.zeros((4, 2, 2))}, r"have the shape \(4, 2, 2\)"),
        ({"embeddings": np.r_[np.eye(4)[:3], [[0, np.inf, 0, 0]]]}, "embeddings have NaN or infinity in row 3"),
        ({"embeddings": np.zeros(4)}, r"embeddings must be numbers \[n, d\], but they have the shape \(4,\)"),
        ({"embeddings": np.eye(3)}, "4 rows of rewards, but 3 of embeddings"),
        ({"embeddings": np.eye(5)}, "4 rows of rewards, but 5 of embeddings"),
    ],
)
def test_pick_refuses_what_does_not_fit_in_one_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        pick(**{"rewards": REWARDS, "budget": 2, **change})
    assert "\n" not in str(caught.value)


def test_pick_takes_lists_as_well_as_arrays():
    vectors = np.eye(len(REWARDS))
    listed = pick(REWARDS.tolist(), 2, embeddings=vectors.tolist())
    assert listed.tolist() == pick(REWARDS, 2, embeddings=vectors).tolist()


def picked(name: str, budget: int, *, generator: int = 0, **signals) -> list[int]:
    settings = {key: signals.pop(key) for key in list(signals) if key in methods()[name].settings}
    columns = {key: np.asarray(values) for key, values in signals.items()}
    count = len(next(iter(columns.values())))
    picks = methods()[name].pick(
        Signals(np.arange(count), **columns), budget, np.random.default_rng(generator), **settings
    )
    return picks.rows.tolist()


def test_variance_takes_the_largest_and_top_p_draws_from_those_that_hold_the_share():
    std = [1.0, 2.0, 3.0, 1.0]  # variances 1, 4, 9, 1 of 15: the first two hold 13 / 15
    assert picked("variance", 2, reward_std=std) == [2, 1]
    assert picked("variance", 1, reward_std=std, top_p=0.5) == [2]  # 9 / 15 is enough
    drawn = {picked("variance", 1, reward_std=std, top_p=0.8, generator=seed)[0] for seed in range(50)}
    assert drawn == {1, 2}
    assert picked("variance", 3, reward_std=std, top_p=0.5) == [2, 1, 0]  # too few hold it: the next follow
    with pytest.raises(InputError, match="variance cannot tell samples apart"):
        picked("variance", 2, reward_std=[0.0, 0.0, 0.0])


def test_band_draws_from_the_band_and_then_takes_the_nearest():
    reward = [0.0, 0.3, 0.7, 0.9, 0.8]
    assert {tuple(sorted(picked("band", 2, mean_reward=reward, generator=seed))) for seed in range(9)} == {(1, 2)}
    assert set(picked("band", 3, mean_reward=reward)) == {1, 2, 4}
    firsts = {picked("band", 1, mean_reward=reward, generator=seed)[0] for seed in range(50)}
    assert firsts == {1, 2}


def test_hit_draws_from_the_samples_with_a_hit_first():
    hits = [0, 1, 0, 3, 0]
    assert {tuple(sorted(picked("hit", 2, hits=hits, generator=seed))) for seed in range(9)} == {(1, 3)}
    assert {frozenset(picked("hit", 3, hits=hits, generator=seed)) for seed in range(50)} == {
        frozenset({1, 3, other}) for other in (0, 2, 4)
    }


def test_product_wants_both_signals_where_the_sum_of_minirec_takes_one():
    signals = {"learnability": [0.0, 0.6, 0.5], "representativeness": [1.0, 0.3, 0.5]}
    columns = {**signals, "embeddings": np.eye(3)}
    assert picked("product", 2, **columns) == [2, 1]  # .25 and .18
    assert picked("minirec", 1, **columns) == [0]  # 1.0 without any learnability


def test_methods_of_one_signal_follow_it():
    assert picked("representative", 2, representativeness=[0.1, 0.9, 0.5]) == [1, 2]
    assert picked("grand", 2, gradient_norm=[3.0, 1.0, 2.0]) == [0, 2]
    assert picked("el2n", 2, error_norm=[0.1, 1.4, 0.9]) == [1, 2]
    assert picked("learnalign", 2, mean_reward=[0.5, 0.1, 1.0], representativeness=[0.5, 1.0, 1.0]) == [
        0,
        1,
    ]  # .125, .09


def test_diversity_goes_to_the_farthest_from_all_picks():
    angles = np.radians([0.0, 10.0, 90.0, 180.0])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], 1)
    for seed in range(9):
        rows = picked("diversity", 3, embeddings=embeddings, generator=seed)
        distance = 1 - embeddings @ embeddings.T
        for turn in (1, 2):  # brute force
            nearest = distance[rows[:turn]].min(0)
            assert nearest[rows[turn]] == pytest.approx(nearest.max())


def test_kmeans_picks_one_sample_of_each_cluster_and_as_many_as_asked_for():
    centres = np.repeat(np.eye(4), 10, 0) + np.random.default_rng(0).normal(0, 0.01, (40, 4))
    rows = picked("kmeans", 4, embeddings=centres)
    assert sorted(row // 10 for row in rows) == [0, 1, 2, 3]
    copies = np.ones((5, 2))  # one cluster has all, the others are empty
    assert sorted(picked("kmeans", 3, embeddings=copies)) == sorted(set(picked("kmeans", 3, embeddings=copies)))
    assert len(picked("kmeans", 3, embeddings=copies)) == 3


def test_popularity_takes_the_most_frequent_targets_and_coverage_one_sample_of_each():
    target = [7, 3, 7, 5, 7, 3]
    assert set(picked("popularity", 3, target=target)) == {0, 2, 4}
    assert {frozenset(picked("popularity", 4, target=target, generator=seed)) for seed in range(30)} == {
        frozenset({0, 2, 4, 1}),
        frozenset({0, 2, 4, 5}),
    }
    for seed in range(9):
        rows = picked("coverage", 5, target=target, generator=seed)
        assert sorted(target[row] for row in rows[:3]) == [3, 5, 7]
        assert sorted(target[row] for row in rows[3:]) == [3, 7]


def test_methods_that_ask_for_targets_alone_wait_for_nothing():
    assert methods()["popularity"].reads == methods()["coverage"].reads == ()
    with pytest.raises(InputError, match="coverage needs targets besides rewards"):
        pick(REWARDS, 2, method="coverage")


def test_every_method_returns_as_many_different_rows_as_asked_for():
    generator = np.random.default_rng(1)
    columns = {
        name: generator.random(30)
        for name in (
            "mean_reward",
            "reward_std",
            "learnability",
            "representativeness",
            "gradient_norm",
            "error_norm",
            "influence",
        )
    }
    columns |= {"target": generator.integers(0, 9, 30)}
    columns |= {"hits": generator.integers(0, 3, 30), "embeddings": generator.normal(size=(30, 4))}
    for name, one in methods().items():
        budget = 30 if one.takes_all else 12
        rows = picked(name, budget, **columns)
        assert len(set(rows)) == budget, name
        assert rows == picked(name, budget, **columns), name  # the same generator, the same rows
