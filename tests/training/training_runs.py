"""Runs of train on the tiny project of `conftest`, which several test files share."""

from pathlib import Path

import torch
from conftest import PASSES
from safetensors.torch import load_file

from minirec.experiment.sections import Backward, Generation
from minirec.model.whitening import COMPONENTS, Whitening
from minirec.stages import train
from minirec.storage import tables


def policy(defaults, **changes):
    usual = {"pooling": "mean", "whiten_dim": 8, "lora_layers": 1, "lora_alpha": 8}
    return defaults.policy.model_copy(update=usual | changes)


def run(
    project,
    tiny_model,
    defaults,
    out: Path,
    micro_batch_prompts=4,
    beta=0.05,
    of_policy=None,
    of_sampling=None,
    **changes,
) -> tuple[dict, dict]:
    """Train; returns the weights of adapter and head, and the history's columns."""
    usual = {
        "batch_prompts": 4,
        "epochs": 2,
        "evaluation_steps": 3,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "head": "separate",
        "extra_negatives": 5,
    }
    sampling = defaults.sampling.model_copy(update={"max_new_tokens": 3, "completions": 2} | (of_sampling or {}))
    train.run(
        policy=policy(defaults, **(of_policy or {})),
        sampling=sampling,
        reward=defaults.reward.model_copy(update={"beta": beta}),
        train=defaults.train.model_copy(update=usual | changes),
        passes=PASSES,
        generation=Generation(),
        backward=Backward(micro_batch_prompts=micro_batch_prompts),
        **project,
        model=tiny_model,
        adapter=out / "adapter",
        history=out / "history.parquet",
    )
    table = tables.read("history", out / "history.parquet")
    return trained(out / "adapter"), table.to_pydict()


def trained(adapter: Path) -> dict[str, torch.Tensor]:
    """The weights of an adapter, and the maps of its whitening with the head after it."""
    kept = Whitening.read(adapter / "whitening.safetensors").arrays
    maps = {name: torch.from_numpy(kept[name]) for name in COMPONENTS}
    return load_file(adapter / "adapter_model.safetensors") | maps


def gradients(trainer):
    """Of everything that is trained, by name."""
    return {name: p.grad.clone() for name, p in trainer.policy.model.named_parameters() if p.grad is not None}


def same(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    return all((a[name] - b[name]).abs().max() <= tolerance for name in a)
