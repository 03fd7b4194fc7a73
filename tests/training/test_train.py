"""Training keeps its promises, on a tiny random model."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from pretended_vllm import pretending
from training_runs import gradients, policy, run, same, trained
from transformers.trainer_utils import get_last_checkpoint

from minirec.data import splits
from minirec.errors import InputError, NotFinite
from minirec.evaluation import metrics, ranking
from minirec.experiment import sections
from minirec.model import generate
from minirec.model.engines.builtin import Builtin
from minirec.model.engines.engine import SamplingEngine
from minirec.model.items import ItemEncoder
from minirec.model.policy import Policy
from minirec.model.whitening import COMPONENTS, Whitening
from minirec.stages import train
from minirec.storage import artefact
from minirec.storage.artefact import Provenance
from minirec.training import callbacks, checkpoints, losses, rewards
from minirec.training.trainer import RecommenderTrainer


@pytest.fixture(scope="module")
def usual(project, tiny_model, defaults, tmp_path_factory):
    return run(project, tiny_model, defaults, tmp_path_factory.mktemp("usual"))


def test_every_epoch_visits_the_curriculum_in_order_and_drops_no_sample(usual):
    _, history = usual
    assert history["sample_ids"] == [[3, 1, 4, 15], [9, 2, 6, 5], [12, 8, 7]] * 2


def evaluated(history):
    valid = zip(history["step"], history["valid_ndcg"], strict=True)
    return [step for step, value in valid if value is not None]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"evaluation_steps": 3}, [3, 6]),
        ({"evaluation_steps": 4}, [4, 6]),
        ({"evaluation_steps": 2, "warmup_steps": 3}, [4, 6]),
        ({"evaluation_steps": 2, "warmup_steps": 3, "scheduler": "constant"}, [2, 4, 6]),
        ({"evaluation_steps": 1, "warmup_steps": 99}, [6]),
        ({"evaluation_steps": 3, "updates_per_rollout": 2}, [4, 8, 12]),
        ({"evaluation_steps": 0}, []),
    ],
)
def test_valid_is_evaluated_every_so_many_steps_from_the_end_of_the_warm_up_and_at_the_end(
    project, tiny_model, defaults, tmp_path, changes, expected
):
    _, history = run(project, tiny_model, defaults, tmp_path, patience=99, **changes)
    assert evaluated(history) == expected


def test_with_the_papers_settings_training_stops_after_five_evaluations_at_the_full_rate(
    project, tiny_model, defaults, tmp_path, monkeypatch
):
    paper = sections.Train()
    monkeypatch.setattr(train, "validator", lambda *_: lambda items: 0.5)
    sixty_steps = {"batch_prompts": 11, "epochs": 60, "evaluation_steps": 256 // 64, "losses": ["item"], "head": "none"}
    changes = {name: getattr(paper, name) for name in ("warmup_steps", "patience", "scheduler", "learning_rate")}
    short = {"max_new_tokens": 1, "completions": 2}
    _, history = run(project, tiny_model, defaults, tmp_path, of_sampling=short, **(changes | sixty_steps))
    assert evaluated(history) == [32, 36, 40, 44, 48, 52]  # the first is the best; five more are not better
    assert history["step"][-1] == 52
    assert history["learning_rate"][:2] == pytest.approx([1e-5 / 32, 2e-5 / 32])
    assert history["learning_rate"][30:] == pytest.approx([31e-5 / 32] + 21 * [1e-5])


@pytest.mark.parametrize(("count", "expected"), [(None, 7), (3, 3), (7, 7), (99, 7)])
def test_valid_is_evaluated_on_at_most_so_many_samples_which_the_seed_draws(count, expected):
    ids = np.arange(7) * 10
    valid = splits.Split(ids, ids, ids[:, None], [f"history {i}" for i in ids])
    draws = [valid.draw(count, seed).sample_id.tolist() for seed in [*range(40), 0]]
    assert all(len(drawn) == expected and drawn == sorted(set(drawn)) for drawn in draws)
    assert draws[0] == draws[-1]
    assert set().union(*draws) == set(ids.tolist())
    assert (len(set(map(tuple, draws))) > 1) == (expected == 3)


def test_the_policy_is_evaluated_on_the_samples_drawn(project, tiny_model, defaults, tmp_path, monkeypatch):
    seen, real = [], train.validator
    monkeypatch.setattr(train, "validator", lambda *given: seen.append(given[2]) or real(*given))
    _, history = run(project, tiny_model, defaults, tmp_path, max_valid=2)
    assert [len(valid) for valid in seen] == [2]
    assert len(evaluated(history)) == 2


def test_the_seconds_of_an_evaluation_count_in_those_of_its_step(project, tiny_model, defaults, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "validator", lambda *_: lambda items: time.sleep(0.5) or 0.1)
    _, history = run(project, tiny_model, defaults, tmp_path)
    assert [seconds >= 0.5 for seconds in history["seconds_valid"]] == [False, False, True] * 2
    assert [seconds == 0 for seconds in history["seconds_valid"]] == [True, True, False] * 2
    for whole, *parts in zip(
        *(history[f"seconds{part}"] for part in ("", "_valid", "_generate", "_loss")), strict=True
    ):
        assert whole >= sum(parts)


@pytest.mark.parametrize("head", ["none", "shared", "separate"])
def test_what_is_kept_is_the_policy_of_the_best_evaluation(project, tiny_model, defaults, tmp_path, monkeypatch, head):
    real, script, seen = train.validator, iter([0.3, 0.5, 0.4]), []

    def validator(loaded, trained_head, *given):
        measured = real(loaded, trained_head, *given)

        def validate(items):
            seen.append((items.clone(), trained_head.merged_whitening().arrays, measured(items)))
            return next(script)

        return validate

    monkeypatch.setattr(train, "validator", validator)
    changes = {"epochs": 3, "head": head, "head_learning_rate": 0.1, "learning_rate": 0.01}
    run(project, tiny_model, defaults, tmp_path, **changes)
    kept = Policy.load(tiny_model, policy(defaults), tmp_path / "adapter")
    whiten = Whitening.read(tmp_path / "adapter" / "whitening.safetensors")
    valid = splits.load(project["samples"], project["catalogue"], "valid", kept.settings.prompt_history)
    items = whiten.item(ItemEncoder(kept, splits.catalogue_texts(project["catalogue"])).embed().detach())
    ranked = ranking.rank(Builtin(kept), whiten, items, valid, 3, 0, "valid")
    (first, *_), (best, maps, value), (last, *_) = seen
    assert (items - best).norm() < 1e-4 * best.norm()
    assert min((other - best).norm() for other in (first, last)) > 0.01 * best.norm()
    assert all(np.array_equal(whiten.arrays[name], maps[name]) for name in COMPONENTS)
    assert metrics.ndcg(ranked.rank, 10).mean() == pytest.approx(value, abs=1e-6)


def test_without_a_head_the_whitening_stays_that_of_the_base_model(project, tiny_model, defaults, tmp_path):
    base = Whitening.read(project["whitening"]).arrays
    weights, _ = run(project, tiny_model, defaults, tmp_path, epochs=1, head="none")
    assert all(np.array_equal(weights[name], base[name]) for name in COMPONENTS)


def test_the_weights_move_and_are_the_same_again(usual, project, tiny_model, defaults, tmp_path):
    weights, _ = usual
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in weights.items())
    again, _ = run(project, tiny_model, defaults, tmp_path)
    assert same(weights, again)


def test_the_adapter_names_its_base_model_as_it_was_given_and_its_files_are_complete(
    project, tiny_model, defaults, tmp_path, monkeypatch
):
    monkeypatch.chdir(tiny_model.parent)
    run(project, Path(tiny_model.name), defaults, tmp_path, epochs=1)
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "provenance.json",
        "whitening.safetensors",
    ]
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert not (tmp_path / "checkpoints").exists()
    ids = torch.tensor([[5, 6, 7]])
    alone = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    ours = Policy.load(tiny_model, policy(defaults), tmp_path / "adapter")
    base = Policy.load(tiny_model, policy(defaults))
    assert torch.equal(alone(ids).logits, ours.model(ids).logits)
    assert not torch.equal(alone(ids).logits, base.model(ids).logits)


def alike(a, b):
    """Two runs whose sums have another order: the same but for the last bits."""
    for name in ("reward", "gradient_norm"):
        assert b[1][name] == pytest.approx(a[1][name], rel=1e-4)
    return same(a[0], b[0], tolerance=2e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_the_micro_batch_changes_memory_and_not_the_result(usual, project, tiny_model, defaults, tmp_path, size):
    assert alike(usual, run(project, tiny_model, defaults, tmp_path, micro_batch_prompts=size))


def test_items_in_several_passes_give_the_gradients_of_one(usual, project, tiny_model, defaults, tmp_path, monkeypatch):
    whole = ItemEncoder.length_batches
    monkeypatch.setattr(
        ItemEncoder, "length_batches", lambda self, rows: [[b] for part in whole(self, rows) for b in part]
    )
    assert alike(usual, run(project, tiny_model, defaults, tmp_path))


class Killed(Exception):
    pass


def killed(*_):
    raise Killed


def dying(step, monkeypatch, project, tiny_model, defaults, folder, **changes):
    """A run that ends when so many steps are done, with what it has kept so far."""
    whole = RecommenderTrainer.training_step

    def dies(self, *arguments, **named):
        if self.state.global_step == step:
            raise Killed
        return whole(self, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(RecommenderTrainer, "training_step", dies)
        with pytest.raises(Killed):
            run(project, tiny_model, defaults, folder, **changes)


def dying_in(function, monkeypatch, project, tiny_model, defaults, folder, **changes):
    """A run that ends where it calls a function of checkpoints."""
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, function, killed)
        with pytest.raises(Killed):
            run(project, tiny_model, defaults, folder, **changes)


def identical(a, b):
    """Two runs with the same bits, but for times."""
    names = [name for name in a[1] if not name.startswith("seconds")]
    return same(a[0], b[0]) and all(a[1][name] == b[1][name] for name in names)


def steps_of(monkeypatch):
    """The steps that runs do from now on, as a list that grows."""
    whole, seen = RecommenderTrainer.training_step, []

    def step(self, *given):
        seen.append(self.state.global_step)
        return whole(self, *given)

    monkeypatch.setattr(RecommenderTrainer, "training_step", step)
    return seen


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(
    usual, project, tiny_model, defaults, tmp_path, monkeypatch, step
):
    dying(step, monkeypatch, project, tiny_model, defaults, tmp_path)
    assert not (tmp_path / "adapter").exists()
    assert identical(usual, run(project, tiny_model, defaults, tmp_path))


@pytest.mark.parametrize("step", [2, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_the_middle_of_an_epoch_the_rate_the_table_and_the_order_go_on_as_they_were(
    project, tiny_model, defaults, tmp_path, monkeypatch, step, dtype
):
    changes = {"evaluation_steps": 1, "item_refresh_steps": 2, "scheduler": "linear", "warmup_steps": 2}
    changes |= {"of_policy": {"dtype": dtype}}
    whole = run(project, tiny_model, defaults, tmp_path / "undisturbed", **changes)
    dying(step, monkeypatch, project, tiny_model, defaults, tmp_path, **changes)
    first = steps_of(monkeypatch)
    assert identical(whole, run(project, tiny_model, defaults, tmp_path, **changes))
    assert first[0] == step


@pytest.mark.parametrize("step", [4, 7, 9])  # in the middle of a rollout, at its start, at the start of an epoch
def test_a_run_interrupted_between_two_updates_goes_on_from_the_start_of_a_rollout(
    project, tiny_model, defaults, tmp_path, monkeypatch, step
):
    changes = {"updates_per_rollout": 3, "evaluation_steps": 1, "scheduler": "linear", "item_refresh_steps": 2}
    whole = run(project, tiny_model, defaults, tmp_path / "undisturbed", **changes)
    dying(step, monkeypatch, project, tiny_model, defaults, tmp_path, **changes)
    first = steps_of(monkeypatch)
    assert identical(whole, run(project, tiny_model, defaults, tmp_path, **changes))
    assert first[0] == step // 3 * 3
    assert len(whole[1]["step"]) == 2 * 3 * 3


def test_without_evaluations_there_are_checkpoints_all_the_same(project, tiny_model, defaults, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "CHECKPOINT_ROLLOUTS", 5)
    changes = {"evaluation_steps": 0}
    whole = run(project, tiny_model, defaults, tmp_path / "undisturbed", **changes)
    dying(5, monkeypatch, project, tiny_model, defaults, tmp_path, **changes)
    first = steps_of(monkeypatch)
    assert identical(whole, run(project, tiny_model, defaults, tmp_path, **changes))
    assert first[0] == 5


def test_checkpoints_between_two_evaluations_leave_the_best_one(project, tiny_model, defaults, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "CHECKPOINT_ROLLOUTS", 1)
    values = iter([0.5, 0.1, 0.2])
    monkeypatch.setattr(train, "validator", lambda *_: lambda items: next(values))
    good, _ = run(project, tiny_model, defaults, tmp_path / "good", epochs=1, scheduler="constant")
    values = iter([0.5, 0.1, 0.2])
    changes = {"epochs": 3, "scheduler": "constant"}
    dying(5, monkeypatch, project, tiny_model, defaults, tmp_path, **changes)
    assert {folder.name for folder in tmp_path.glob("checkpoints/*-*")} == {"checkpoint-3", "checkpoint-5"}
    first = steps_of(monkeypatch)
    weights, _ = run(project, tiny_model, defaults, tmp_path, **changes)
    assert first == [5, 6, 7, 8]
    assert same(weights, good)


def test_in_bfloat16_the_micro_batch_changes_a_gradient_by_no_more_than_roundings(
    project, tiny_model, defaults, tmp_path, monkeypatch
):
    whole, found = RecommenderTrainer.training_step, []

    def step(self, *given):
        loss = whole(self, *given)
        found.append(gradients(self))
        return loss

    monkeypatch.setattr(RecommenderTrainer, "training_step", step)
    changes = {"of_policy": {"dtype": "bfloat16"}, "batch_prompts": 11, "epochs": 1, "evaluation_steps": 0}
    for size in (11, 1):
        run(project, tiny_model, defaults, tmp_path / str(size), micro_batch_prompts=size, **changes)
    at_once, parts = found
    assert sum(gradient.any() for gradient in at_once.values()) > 2  # more than the head's
    for name, gradient in at_once.items():  # one rounding is 0.004, one of the 11 prompts about 0.3
        assert (parts[name] - gradient).norm() <= 0.05 * gradient.norm(), name


def test_after_a_setting_that_only_memory_knows_a_run_goes_on(
    usual, project, tiny_model, defaults, tmp_path, monkeypatch
):
    dying(4, monkeypatch, project, tiny_model, defaults, tmp_path)
    first = steps_of(monkeypatch)
    assert alike(usual, run(project, tiny_model, defaults, tmp_path, micro_batch_prompts=1))
    assert first[0] == 3


def test_checkpoints_of_other_settings_are_not_resumed(usual, project, tiny_model, defaults, tmp_path, monkeypatch):
    dying(4, monkeypatch, project, tiny_model, defaults, tmp_path, learning_rate=1e-2)
    resumed, _ = run(project, tiny_model, defaults, tmp_path)
    assert same(usual[0], resumed)


def test_checkpoints_of_other_code_are_not_resumed(tmp_path, monkeypatch):
    checkpoints.remove_unusable(tmp_path, Provenance("train"))
    (tmp_path / "kept").touch()
    checkpoints.remove_unusable(tmp_path, Provenance("train"))
    assert (tmp_path / "kept").exists()
    monkeypatch.setattr(artefact, "code_digest", lambda stage: f"another {stage}")
    checkpoints.remove_unusable(tmp_path, Provenance("train"))
    assert not (tmp_path / "kept").exists()


def nan_from(step, monkeypatch, of_gradient=False):
    """From this step on the item loss, or only its gradient, is not a number; returns the trainers."""
    whole, whole_step, trainers = losses.item_loss, RecommenderTrainer.training_step, []

    def training_step(self, *given):
        trainers[:] = [self]
        return whole_step(self, *given)

    def item_loss(*given):
        loss = whole(*given)
        if trainers[0].state.global_step + 1 < step:
            return loss
        if not of_gradient:
            return loss * torch.nan
        loss.register_hook(lambda gradient: gradient * torch.nan)
        return loss

    monkeypatch.setattr(RecommenderTrainer, "training_step", training_step)
    monkeypatch.setattr(losses, "item_loss", item_loss)
    return trainers


@pytest.mark.parametrize(("of_gradient", "what"), [(False, "the loss is nan"), (True, "the gradient's norm is nan")])
def test_what_is_not_finite_stops_before_it_reaches_the_weights(
    project, tiny_model, defaults, tmp_path, monkeypatch, of_gradient, what
):
    trainers = nan_from(2, monkeypatch, of_gradient)
    with pytest.raises(
        InputError, match=rf"diverged, {what} at step 2; lower train\.learning_rate .* no checkpoint yet"
    ):
        run(project, tiny_model, defaults, tmp_path)
    assert all(weight.isfinite().all() for weight in trainers[0].policy.model.parameters())
    assert not (tmp_path / "adapter").exists()


def test_what_is_not_finite_from_the_start_is_not_blamed_on_the_rate(
    project, tiny_model, defaults, tmp_path, monkeypatch
):
    nan_from(1, monkeypatch)
    with pytest.raises(InputError, match="the loss is nan at step 1; fetch the model or train its adapter again"):
        run(project, tiny_model, defaults, tmp_path)


def test_a_run_that_diverges_leaves_its_best_policy_so_far(project, tiny_model, defaults, tmp_path, monkeypatch):
    values = iter([0.5, 0.1])
    with monkeypatch.context() as patched:
        patched.setattr(train, "validator", lambda *_: lambda items: next(values))
        nan_from(7, patched)
        with pytest.raises(InputError, match=r"at step 7; .*policy of checkpoint-3 is kept"):
            run(project, tiny_model, defaults, tmp_path, epochs=3, scheduler="constant")
    good, _ = run(project, tiny_model, defaults, tmp_path / "good", epochs=1, scheduler="constant")
    assert same(trained(tmp_path / "last_good"), good)


def test_a_run_that_diverges_without_evaluations_leaves_the_policy_of_its_last_checkpoint(
    project, tiny_model, defaults, tmp_path, monkeypatch
):
    monkeypatch.setattr(callbacks, "CHECKPOINT_ROLLOUTS", 3)
    changes = {"scheduler": "constant", "evaluation_steps": 0}
    good, _ = run(project, tiny_model, defaults, tmp_path / "good", epochs=1, **changes)
    with monkeypatch.context() as patched:
        nan_from(4, patched)
        with pytest.raises(InputError, match=r"loss is nan at step 4; .*policy of checkpoint-3 is kept in .*last_good"):
            run(project, tiny_model, defaults, tmp_path, **changes)
    assert same(trained(tmp_path / "last_good"), good)
    Policy.load(tiny_model, policy(defaults), tmp_path / "last_good")
    run(project, tiny_model, defaults, tmp_path, learning_rate=1e-4, **changes)
    assert not (tmp_path / "last_good").exists()


@pytest.mark.parametrize("rates", [{"learning_rate": 1e20}, {"head_learning_rate": 1e30}])
def test_a_rate_that_is_far_too_high_is_named(project, tiny_model, defaults, tmp_path, rates):
    with pytest.raises(InputError, match=r"diverged, .* at step [23]; lower train\.learning_rate or train\.head_"):
        run(project, tiny_model, defaults, tmp_path, scheduler="constant", **rates)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("changes", "completions", "advice"),
    [
        ({"item_advantage": "group"}, 4, r"with train\.item_advantage one"),
        ({"item_advantage": "one", "losses": ["token"]}, 4, r"with the item loss in train\.losses"),
        ({"item_advantage": "one", "losses": ["token"]}, 1, r"with the item loss in train\.losses"),
    ],
)
def test_without_reasoning_no_completion_can_be_better_than_the_others(
    project, tiny_model, defaults, tmp_path, changes, completions, advice
):
    sampling = {"max_new_tokens": 0, "completions": completions}
    with pytest.raises(InputError, match=f"max_new_tokens is 0, .*{advice}"):
        run(project, tiny_model, defaults, tmp_path, of_sampling=sampling, **changes)


def test_without_reasoning_the_item_loss_alone_can_teach(project, tiny_model, defaults, tmp_path):
    changes = {"of_sampling": {"max_new_tokens": 0}, "item_advantage": "one", "epochs": 1}
    weights, _ = run(project, tiny_model, defaults, tmp_path, **changes)
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in weights.items())


def test_a_kill_between_two_checkpoints_leaves_the_one_before(project, tiny_model, defaults, tmp_path, monkeypatch):
    changes, seal = {"epochs": 4, "patience": 3}, artefact.write_manifest

    def dies(folder, made):
        if folder.name == "checkpoint-9":
            raise Killed
        return seal(folder, made)

    monkeypatch.setattr(train, "validator", lambda *_: lambda items: next(values))
    values = iter([0.5, 0.4, 0.6, 0.1])
    whole = run(project, tiny_model, defaults, tmp_path / "undisturbed", **changes)
    values = iter([0.5, 0.4, 0.6, 0.1])
    with monkeypatch.context() as patched:
        patched.setattr(artefact, "write_manifest", dies)
        with pytest.raises(Killed):
            run(project, tiny_model, defaults, tmp_path, **changes)
    first, values = steps_of(monkeypatch), iter([0.6, 0.1])
    assert identical(whole, run(project, tiny_model, defaults, tmp_path, **changes))
    assert first[0] == 6


def test_the_last_checkpoint_and_the_best_are_kept(project, tiny_model, defaults, tmp_path, monkeypatch):
    values = iter([0.1, 0.5, 0.4, 0.3])
    monkeypatch.setattr(train, "validator", lambda *_: lambda items: next(values))
    dying_in("save_adapter", monkeypatch, project, tiny_model, defaults, tmp_path, epochs=4, patience=9)
    assert {folder.name for folder in tmp_path.glob("checkpoints/*-*")} == {"checkpoint-6", "checkpoint-12"}


def test_early_stopping_waits_for_as_many_evaluations_as_its_patience(
    project, tiny_model, defaults, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "validator", lambda *_: lambda items: 0.5)
    _, history = run(project, tiny_model, defaults, tmp_path, epochs=9, patience=2)
    assert len(history["step"]) == 3 * 3  # the first is the best, two more are not better


@pytest.mark.parametrize("step", [7, None])  # after the first of two bad evaluations, and after the second
def test_an_interrupted_run_stops_as_early_as_an_undisturbed_one(
    project, tiny_model, defaults, tmp_path, monkeypatch, step
):
    monkeypatch.setattr(train, "validator", lambda *_: lambda items: 0.5)
    changes = {"epochs": 9, "patience": 2}
    weights, history = run(project, tiny_model, defaults, tmp_path / "undisturbed", **changes)
    if step is None:
        dying_in("save_adapter", monkeypatch, project, tiny_model, defaults, tmp_path, **changes)
    else:
        dying(step, monkeypatch, project, tiny_model, defaults, tmp_path, **changes)
    resumed, again = run(project, tiny_model, defaults, tmp_path, **changes)
    assert same(weights, resumed)
    for name in ("step", "loss", "valid_ndcg"):
        assert again[name] == history[name]


def test_head_and_adapter_have_rates_of_their_own_and_no_weight_decays(project, tiny_model, defaults, tmp_path):
    base = Whitening.read(project["whitening"]).arrays
    one_step = {"batch_prompts": 11, "epochs": 1, "evaluation_steps": 0, "scheduler": "constant"}
    weights, _ = run(project, tiny_model, defaults, tmp_path, learning_rate=1e-3, head_learning_rate=0.01, **one_step)
    for name in COMPONENTS:  # AdamW's first step moves every weight by its rate
        head = np.linalg.lstsq(base[name], weights[name].numpy(), rcond=None)[0]
        assert np.allclose(np.abs(head - np.eye(8)), 0.01, atol=3e-5)
    moved = torch.cat([tensor.abs().flatten() for name, tensor in weights.items() if "lora_B" in name])
    assert moved.median() == pytest.approx(1e-3, rel=1e-3)
    assert moved.max() == pytest.approx(1e-3, rel=1e-3)


def test_training_pays_rewards_by_the_head_as_trained_so_far(project, tiny_model, defaults, tmp_path, monkeypatch):
    whole_step, whole_judge, trainers, apart = RecommenderTrainer.training_step, rewards.score_completions, [], []

    def step(self, *given, **named):
        trainers[:] = [self]
        return whole_step(self, *given, **named)

    def judged(hidden, items, split, whitening, *rest):
        head = trainers[0].head
        assert torch.allclose(whitening.user(hidden), head.user(hidden), atol=1e-4)
        apart.append(float((whitening.user(hidden) - head.whitening.user(hidden)).abs().max()))
        return whole_judge(hidden, items, split, whitening, *rest)

    monkeypatch.setattr(RecommenderTrainer, "training_step", step)
    monkeypatch.setattr(rewards, "score_completions", judged)
    run(project, tiny_model, defaults, tmp_path, head_learning_rate=0.1)
    assert apart[0] == 0
    assert min(apart[1:]) > 0.01


@pytest.mark.parametrize(("advantage", "differs"), [("group", True), ("one", False)])
def test_with_advantage_one_no_completion_is_picked_by_its_reward(
    project, tiny_model, defaults, tmp_path, advantage, differs
):
    changes = {"losses": ["item"], "item_advantage": advantage, "relabel_topk": 2, "epochs": 1}
    one, two = (
        run(project, tiny_model, defaults, tmp_path / str(beta), beta=beta, **changes)[0] for beta in (0.0, 1.0)
    )
    assert same(one, two, tolerance=1e-5) != differs  # the order of a sum moves the last bits
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in two.items())


def test_a_checkpoint_without_a_record_is_not_resumed_from(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints.remove_unusable(folder, Provenance("train"))
    (folder / "checkpoint-3").mkdir()
    checkpoints.remove_unusable(folder, Provenance("train"))
    assert not (folder / "checkpoint-3").exists()
    shutil.rmtree(folder)
    checkpoints.remove_unusable(folder, Provenance("train"))
    assert [file.name for file in folder.iterdir()] == ["provenance.json"]


def test_a_checkpoint_whose_best_is_damaged_is_left_out(project, tiny_model, defaults, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "validator", lambda *_: lambda items: next(values))
    values = iter([0.1, 0.5, 0.4])
    changes = {"epochs": 3, "patience": 2}
    weights, _ = run(project, tiny_model, defaults, tmp_path / "undisturbed", **changes)
    values = iter([0.1, 0.5, 0.4])
    dying_in("save_adapter", monkeypatch, project, tiny_model, defaults, tmp_path, **changes)
    best, newest = tmp_path / "checkpoints/checkpoint-6", tmp_path / "checkpoints/checkpoint-9"
    (best / "adapter_model.safetensors").unlink()
    dying_in("get_last_checkpoint", monkeypatch, project, tiny_model, defaults, tmp_path, **changes)
    assert not newest.exists()
    values = iter([0.1, 0.5, 0.4])
    assert same(weights, run(project, tiny_model, defaults, tmp_path, **changes)[0])


def test_a_checkpoint_with_a_flipped_bit_is_left_out_and_the_weights_stay_the_same(
    usual, project, tiny_model, defaults, tmp_path, monkeypatch
):
    dying(4, monkeypatch, project, tiny_model, defaults, tmp_path)
    folder = tmp_path / "checkpoints"
    last = get_last_checkpoint(str(folder))
    assert last is not None
    file = Path(last) / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    dying_in("get_last_checkpoint", monkeypatch, project, tiny_model, defaults, tmp_path)  # right after the check
    assert not Path(last).exists()
    assert same(usual[0], run(project, tiny_model, defaults, tmp_path)[0])


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_engine_of_the_settings_writes_the_completions_of_training_and_validation(
    project, tiny_model, defaults, tmp_path, monkeypatch, engine
):
    changes = {"learning_rate": 0.01, "epochs": 1, "evaluation_steps": 3}
    builtin, _ = run(project, tiny_model, defaults, tmp_path / "builtin", **changes)
    written, weight = [], losses.engine_weight

    def weighed(old_log_p, real, log_p):
        written.append([float(p) for group in log_p for row in group for p in row])
        assert torch.allclose(old_log_p[real], torch.tensor(written[-1]), atol=1e-4)
        return weight(old_log_p, real, log_p)

    monkeypatch.setattr(losses, "engine_weight", weighed)
    calls, learning = [], []
    write, read = SamplingEngine.write, generate._read_completions

    def counted(*given):
        if calls:  # else the check of the model
            learning.append(torch.is_grad_enabled())
        return read(*given)

    monkeypatch.setattr(generate, "_read_completions", counted)
    monkeypatch.setattr(SamplingEngine, "write", lambda *given, **more: calls.append(given[2]) or write(*given, **more))
    with pretending():
        weights, _ = run(project, tiny_model, defaults, tmp_path, **changes, of_sampling={"engine": engine})
    assert calls == [[3, 3]] * 3 + [[3, 0]]  # three steps, and valid after the last of them
    assert len(written) == 3
    assert learning == [True] * 3 + [False]  # one pass of a step gives states, rewards and loss; the last is of valid
    same = all(torch.allclose(weights[name], builtin[name], atol=1e-4) for name in weights)
    assert same == (engine == "transformers")  # vLLM draws other random numbers


def test_several_updates_on_the_completions_of_another_engine_keep_their_advantages(
    project, tiny_model, defaults, tmp_path
):
    changes = {"learning_rate": 0.01, "epochs": 1, "updates_per_rollout": 2}
    (builtin, known), (other, noted) = (
        run(project, tiny_model, defaults, tmp_path / engine, **changes, of_sampling={"engine": engine})
        for engine in ("builtin", "transformers")
    )
    assert all(torch.allclose(other[name], builtin[name], atol=1e-4) for name in builtin)
    for name in ("reward", "reward_std", "forced_share", "token_loss", "item_loss", "item_nll"):
        assert noted[name] == pytest.approx(known[name], abs=1e-4)


def test_states_that_are_not_finite_stop_a_training_whose_rewards_come_from_the_pass_of_the_loss(
    project, tiny_model, defaults, tmp_path, monkeypatch
):
    read = generate.teacher_forced

    def broken(*given):
        log_p, real, hidden = read(*given)
        return log_p, real, hidden * torch.nan if torch.is_grad_enabled() else hidden  # the model is checked without

    monkeypatch.setattr(generate, "teacher_forced", broken)
    with pytest.raises(NotFinite, match="the loss is nan at step 1"):
        run(project, tiny_model, defaults, tmp_path, epochs=1, of_sampling={"engine": "transformers"})
