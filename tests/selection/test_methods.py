"""The registry of methods, and `pick` on rewards alone."""

import subprocess
import sys

import numpy as np
import pytest

from minirec.errors import InputError
from minirec.selection import pick
from minirec.selection.methods import registry
from minirec.selection.methods.registry import Picks, methods
from minirec.selection.signals import NEEDS, Signals


def test_selection_loads_no_torch_and_no_pydantic():
    code = "import sys, minirec, minirec.selection; print(*[m for m in ('torch', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_method_is_named_after_its_file_and_says_in_a_sentence_what_it_does():
    for name, method in methods().items():
        assert method.module == f"selection.methods.{name}"
        assert len(method.sentence.split()) >= 3
        assert set(method.needs + method.uses) <= set(NEEDS)


def test_random_and_full_wait_for_nothing_and_hardest_for_rewards_alone():
    assert [methods()[name].reads for name in ("random", "full", "hardest")] == [(), (), ("rewards",)]


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


REWARDS = np.array([[0.0, 0.0], [0.5, 0.5], [0.0, 0.9], [1.0, 1.0]])


def test_pick_goes_by_the_mean_reward():
    assert pick(REWARDS, 2, method="hardest").tolist() == [0, 2]
    assert pick(REWARDS, 2, method="easiest").tolist() == [3, 1]
    assert pick(REWARDS, 2).tolist() == [1, 2]  # learnable: nearest to a half


def test_pick_with_embeddings_passes_over_a_copy():
    embeddings = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    assert (
        pick(REWARDS, 2, embeddings=embeddings).tolist() == [1, 3] or pick(REWARDS, 3, embeddings=embeddings)[-1] == 2
    )


def test_pick_at_random_is_repeated_by_its_seed():
    first, same, other = (pick(REWARDS.repeat(25, 0), 50, method="random", seed=seed) for seed in (1, 1, 2))
    assert first.tolist() == same.tolist()
    assert first.tolist() != other.tolist()
    assert len(set(first.tolist())) == 50


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"budget": 5}, "the budget is 5, but there are 4 samples"),
        ({"budget": 0}, "the budget is 0"),
        ({"method": "minirec"}, "minirec needs gradients and embeddings"),
        ({"method": "best"}, "the method best is not among easiest"),
        ({"rewards": np.array([[np.nan]])}, "finite numbers"),
        ({"rewards": np.zeros(4)}, "finite numbers"),
        ({"embeddings": np.eye(3)}, "4 rows of rewards, but 3 of embeddings"),
    ],
)
def test_pick_refuses_what_does_not_fit_in_one_sentence(change, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        pick(**{"rewards": REWARDS, "budget": 2, **change})
    assert "\n" not in str(caught.value)
