"""A training that runs out of memory says what to lower, and goes on from its checkpoint with less."""

import shlex

import pytest
import torch
from training_runs import policy, trained

from minirec.cli import main
from minirec.experiment import commands, config
from minirec.model import compatibility, generate
from minirec.storage import tables
from minirec.training.trainer import RecommenderTrainer

ON_A_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
ON_A_CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 40 bytes")


@pytest.fixture
def train(project, tiny_model, defaults):
    """A function: run train as the command line does, with these resources; returns its status."""
    whole = config.load("config/config.yaml").model_dump(mode="json")
    whole["policy"] |= policy(defaults).model_dump(mode="json")
    whole["train"] |= {"batch_prompts": 4, "epochs": 2, "evaluation_steps": 3, "warmup_steps": 2, "learning_rate": 1e-3}
    whole["sampling"] |= {"max_new_tokens": 3, "completions": 2}
    flags = shlex.split(" ".join(commands.flags(config.validate(whole), "train")))
    files = {**project, "model": tiny_model}

    def run(out, *resources):
        paths = {**files, "adapter": out / "adapter", "history": out / "history.parquet"}
        words = [word for name, path in paths.items() for word in (commands.flag(name), str(path))]
        return main.main(["train", *flags, *words, "--seed", "0", "--log", str(out / "log"), *map(str, resources)])

    return run


@pytest.mark.parametrize(
    ("function", "error", "less"),
    [
        ("_compute_loss", ON_A_GPU, ["--micro-batch-prompts", 1]),
        ("_write_completions", ON_A_CPU, ["--micro-batch-prompts", 2, "--batch-tokens", 64]),
    ],
)
def test_a_training_out_of_memory_goes_on_from_its_checkpoint_with_less(
    train, tmp_path, monkeypatch, function, error, less
):
    assert train(tmp_path / "undisturbed", "--batch-tokens", 512) == 0
    whole, steps = RecommenderTrainer.training_step, []
    with monkeypatch.context() as patched:

        def full(self, *given):
            if self.state.global_step == 4:
                raise error
            return usual(self, *given)

        usual = getattr(RecommenderTrainer, function)
        patched.setattr(RecommenderTrainer, function, full)
        assert train(tmp_path, "--batch-tokens", 512) == 1
    said = (tmp_path / "log").read_text()
    assert "lower the resource micro_batch_prompts (now 4), then batch_tokens (now 512) under set-resources" in said
    assert "goes on from its last checkpoint" in said
    assert "Traceback" not in said
    assert [folder.name for folder in (tmp_path / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]

    def step(self, *given):
        steps.append(self.state.global_step)
        return whole(self, *given)

    monkeypatch.setattr(RecommenderTrainer, "training_step", step)
    assert train(tmp_path, *less) == 0
    assert steps == [3, 4, 5]
    one, two = (trained(folder / "adapter") for folder in (tmp_path / "undisturbed", tmp_path))
    assert all((one[name] - two[name]).abs().max() < 2e-5 for name in one)
    history = tables.read("history", tmp_path / "history.parquet").to_pydict()
    assert history["step"] == [1, 2, 3, 4, 5, 6]


def test_less_memory_means_smaller_passes(train, tmp_path, monkeypatch):
    sizes, whole = [], generate.teacher_forced

    def passes(policy, prompts, completions):
        sizes.append(len(prompts))
        return whole(policy, prompts, completions)

    monkeypatch.setattr(generate, "teacher_forced", passes)
    monkeypatch.setattr(compatibility, "require_supported", lambda *_: None)  # which reads as well
    assert train(tmp_path, "--micro-batch-prompts", 3) == 0
    assert sizes == [3, 1, 3, 1, 3] * 2
