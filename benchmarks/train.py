"""Seconds a training step: minirec's trainer against TRL's GRPOTrainer as it comes.

Both train the same adapter (LoRA on the top layers) with the same batch of prompts, lengths, group size and reward: the
rank of a target by the state at the marker. TRL's reward reads prompt, completion and marker in a forward pass of its
own. The last row also trains with the item loss, which TRL has not. Each runs in a process of its own, so peak memory
is its own. Beforehand the loss and gradient of one of our steps are compared with those of TRL's trainer for the same
completions and advantages; that is at temperature 1, as TRL scales log-probabilities by the temperature. A refresh of
the whole item table, every `item_refresh_steps`, is not among the steps; it is timed apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from minirec.data.splits import Split
from minirec.experiment import config
from minirec.experiment.sections import Backward, Generation
from minirec.model import engines, scoring
from minirec.model.items import ItemEncoder
from minirec.model.policy import Policy
from minirec.model.whitening import Head, Whitening
from minirec.training import rewards
from minirec.training.callbacks import grpo_arguments
from minirec.training.trainer import RecommenderTrainer

ROOT = Path(__file__).resolve().parents[1]
STEPS, WARM = 4, 1  # steps, and how many of them are not counted
BATCH_TOKENS = 4096
CATALOGUE = 2_000
PARTS = ("generate", "loss", "items")  # of a step; the mean, as of the whole


def settings(given: argparse.Namespace, losses: list[str]) -> config.Config:
    """The quickstart's settings, with these sizes; pooling and whitening off, as TRL's reward knows neither."""
    whole = config.load(ROOT / "config" / "config.yaml", ROOT / "config" / "quickstart.yaml")
    policy = whole.policy.model_copy(update={"pooling": "last", "whiten_dim": None, "lora_layers": given.layers})
    update = {"batch_prompts": given.prompts, "losses": losses, "evaluation_steps": 0, "extra_negatives": 48}
    sampling = {"completions": given.groups, "max_new_tokens": given.new, "temperature": 1.0}
    return whole.model_copy(
        update={
            "policy": policy,
            "train": whole.train.model_copy(update=update),
            "sampling": whole.sampling.model_copy(update=sampling),
        }
    )


def case(policy: Policy, given: argparse.Namespace) -> tuple[list[list[int]], Split, Tensor, list[str]]:
    """Prompts of given.length tokens after the shared prefix, their samples, an item table and the items' texts."""
    generator = torch.Generator().manual_seed(0)
    count = given.prompts * STEPS
    words = policy.model.config.vocab_size
    body = torch.randint(
        words // 8, words // 2, (count, given.length - len(policy.user_prompts.prefix)), generator=generator
    )
    table = torch.randn(CATALOGUE, policy.width, generator=generator)
    ids = np.arange(count)
    split = Split(ids, ids % CATALOGUE, np.full((count, 1), -1), [""] * count)
    return body.tolist(), split, table, [f"Title: item number {row} of a catalogue" for row in range(CATALOGUE)]


def loaded(given: argparse.Namespace, losses: list[str]) -> tuple[Policy, config.Config]:
    chosen = settings(given, losses)
    policy = Policy.load(given.model, chosen.policy, batch_tokens=BATCH_TOKENS)
    policy.add_adapter(0)
    generator = torch.Generator().manual_seed(1)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:  # zero at the start, and with it the gradients of lora_A
            weight.data.normal_(0, 1e-3, generator=generator)
    policy.__dict__["eos_ids"] = set()  # nobody stops early
    return policy, chosen


class Ours(RecommenderTrainer):
    """Our trainer; it keeps what it has written."""

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.kept = super()._generate_and_score_completions(inputs)
        return self.kept


def ours(given: argparse.Namespace, losses: list[str], folder: str) -> Ours:
    policy, chosen = loaded(given, losses)
    prompts, split, table, texts = case(policy, given)
    policy.user_bodies = lambda _: prompts  # type: ignore[method-assign]
    trainer = Ours(
        engines.load(policy, chosen.sampling, Generation(), given.model),
        Head(Whitening.identity(), policy.width, "none"),
        table,
        ItemEncoder(policy, texts),
        split,
        train=chosen.train,
        reward=chosen.reward,
        validate=None,
        micro_batch_prompts=Backward().micro_batch_prompts,
        seed=0,
        args=grpo_arguments(chosen.train, given.groups, 0, Path(folder), validated=False),
    )
    trainer._save_checkpoint = lambda *_: None
    return trainer


def timed(trainer: Ours) -> tuple[list[float], dict[str, float]]:
    """Seconds of every step that counts, and the mean of their parts."""
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "seconds" in entry][WARM:]
    parts = {part: float(np.mean([entry[f"seconds_{part}"] for entry in steps])) for part in PARTS}
    return [entry["seconds"] for entry in steps], parts


class Stock(GRPOTrainer):
    """TRL's trainer, given token ids as prompts; it notes how long its steps take."""

    ids: list[list[int]]
    policy: Policy
    seconds: list[float]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.ids[int(prompt)] for prompt in prompts], None, {}

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        started = time.perf_counter()
        loss = super().training_step(*arguments, **named)
        self.seconds.append(time.perf_counter() - started)
        return loss


def stock(given: argparse.Namespace, folder: str) -> Stock:
    policy, chosen = loaded(given, ["token"])
    prompts, split, table, _ = case(policy, given)
    prefix, marker = policy.user_prompts.prefix, torch.tensor([policy.marker_ids])

    @torch.no_grad()
    def reward(prompt_ids: Any = None, completion_ids: Any = None, row: Any = None, **_: Any) -> list[float]:
        texts = [prefix + prompts[r] + list(ids) for r, ids in zip(row, completion_ids, strict=True)]
        read = torch.cat([torch.tensor(texts), marker.expand(len(texts), -1)], 1)
        h = policy.decoder(input_ids=read).last_hidden_state[:, -1].float()
        scores = scoring.scores(h, table, chosen.policy.tau)
        target = torch.as_tensor(split.target[row])
        rank = scoring.ranks(scores, target, torch.full((len(row), 1), -1))
        pi = scoring.log_pi(scores, target, torch.full((len(row), 1), -1)).exp()
        return rewards.ndcg_and_reward(rank, pi, chosen.reward.beta, chosen.reward.cutoff)[1].tolist()

    batch = given.prompts * given.groups
    arguments = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=batch,
        num_generations=given.groups,
        steps_per_generation=1,
        max_completion_length=given.new,
        generation_kwargs={"min_new_tokens": given.new},
        temperature=1.0,
        top_k=chosen.sampling.top_k,
        max_steps=STEPS,
        learning_rate=chosen.train.learning_rate,
        epsilon=chosen.train.epsilon_low,
        epsilon_high=chosen.train.epsilon_high,
        beta=0.0,
        loss_type="dapo",
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=not torch.cuda.is_available(),
    )
    rows = {"prompt": [str(row) for row in range(len(prompts))], "row": list(range(len(prompts)))}
    trainer = Stock(
        policy.model,
        reward_funcs=reward,
        processing_class=policy.tokenizer,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
    )
    trainer.seconds, trainer.policy = [], policy
    trainer.ids = [prefix + prompt for prompt in prompts]
    return trainer


def compare(given: argparse.Namespace, folder: str) -> dict[str, float]:
    """How far loss and gradient of a step of our trainer are from TRL's, for the completions that ours wrote."""
    mine = ours(given, ["token"], folder)
    loss = mine.training_step(mine.policy.model, list(range(given.prompts))).item()
    g = gradient(mine.policy)
    batches, _ = mine.kept
    theirs = stock(given, folder)
    theirs.model.train()
    repeated = [{"prompt": str(row), "row": row} for row in range(given.prompts) for _ in range(given.groups)]
    batch = theirs._generate_and_score_completions(repeated)
    batch["completion_ids"] = torch.cat([torch.tensor(written.completions.tokens).flatten(0, 1) for written in batches])
    batch["advantages"] = torch.cat([written.advantage.flatten() for written in batches])
    theirs.current_gradient_accumulation_steps = 1
    expected = theirs.compute_loss(theirs.model, batch)
    expected.backward()
    h = gradient(theirs.policy)
    return {
        "loss": expected.item(),
        "difference": abs(loss - expected.item()),
        "gradient": float((g - h).norm() / h.norm()),
    }


def gradient(policy: Policy) -> Tensor:
    """The gradient of all adapters, which is then forgotten."""
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    policy.model.zero_grad()
    return flat


def peak_memory() -> float:
    """GiB that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(way: str, given: argparse.Namespace) -> Any:
    """What `compare` says, or (seconds a step, seconds of its parts, peak GiB of its process)."""
    with tempfile.TemporaryDirectory() as folder:
        if way == "compare":
            return compare(given, folder)
        if way == "TRL":
            theirs = stock(given, folder)
            theirs.remove_callback(PrinterCallback)
            theirs.train()
            return float(np.mean(theirs.seconds[WARM:])), {}, peak_memory()
        trainer = ours(given, ["token", "item"] if "item" in way else ["token"], folder)
        seconds, parts = timed(trainer)
        peak, started = peak_memory(), time.perf_counter()
        trainer.refresh_items()
        parts["refresh"] = time.perf_counter() - started
    return float(np.mean(seconds)), parts, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "models" / "smollm")
    parser.add_argument("--prompts", type=int, default=4, help="prompts a step")
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--layers", type=int, default=4, help="top layers with an adapter")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--new", type=int, default=16, help="tokens of a completion")
    given = parser.parse_args()
    if not (given.model / "config.json").is_file():
        sys.exit(f"{given.model} is not there; make it with: snakemake --cores 2 data/models/smollm")
    context = multiprocessing.get_context("spawn")
    found = {}
    for way in ("compare", "TRL", "minirec", "minirec with the item loss"):
        with ProcessPoolExecutor(1, context) as alone:
            found[way] = alone.submit(measure, way, given).result()
    same = found.pop("compare")
    print(f"{given.prompts} prompts of {given.length} tokens, {given.groups} completions of {given.new} tokens")
    print(
        f"token loss of TRL {same['loss']:.3g}, ours differs by {same['difference']:.1g}; "
        f"|gradient difference| / |gradient| = {same['gradient']:.1g}"
    )
    shown = (*PARTS, "refresh")
    print(f"| trainer | seconds a step | against TRL | {' | '.join(shown)} of {CATALOGUE} items | peak GiB |")
    print("|---|--:|--:|" + "--:|" * (len(shown) + 1))
    for way, (seconds, parts, peak) in found.items():
        spent = " | ".join(f"{parts[part]:.2f}" if parts else "" for part in shown)
        print(f"| {way} | {seconds:.2f} | {found['TRL'][0] / seconds:.2f}x | {spent} | {peak:.2f} |")


if __name__ == "__main__":
    main()
