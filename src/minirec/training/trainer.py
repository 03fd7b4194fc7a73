"""GRPO with an item loss (METHOD 3), on TRL's GRPOTrainer.

One call of `training_step` is one optimiser step: the policy writes, the item table rewards, the losses are
accumulated over micro-batches. A batch holds prompts, each once; its completions never leave their prompt. Several
processes share the prompts and items of every step, and end it with the same gradients.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer
from trl import GRPOTrainer

from minirec.data.splits import Split
from minirec.errors import NotFinite
from minirec.experiment import config
from minirec.model import distributed, generate
from minirec.model.items import ItemEncoder
from minirec.model.policy import Policy
from minirec.model.whitening import Head
from minirec.storage import artefact
from minirec.storage.artefact import Provenance
from minirec.training import judge, losses

ITEMS, HEAD = "items.safetensors", "head.safetensors"  # in a checkpoint, beside the adapter


@dataclass
class BatchItems:
    """The items of an optimiser batch's softmax, the same in every process."""

    rows: Tensor  # [k], catalogue rows: the distinct targets, ascending, then the extra negatives
    vectors: Tensor  # [k, d'], whitened, before the head; a leaf that collects the gradient
    own: list[int]  # which of them this process embeds
    graph: Tensor | None  # their vectors with what leads to them, where it fits into one pass


@dataclass
class Batch:
    """What one micro-batch trains on."""

    prompts: list[list[int]]
    completions: generate.Completions
    advantage: Tensor  # [n, G]
    history: Tensor  # [n, w]
    column: Tensor  # [n], the target's place in `items.rows`
    items: BatchItems
    token_share: float  # 1 / sampled tokens of the optimiser batch
    prompt_share: float  # 1 / prompts of the optimiser batch


class RecommenderTrainer(GRPOTrainer):
    """Trains a policy's adapter; `samples` are visited in their order, the incomplete last batch included."""

    def __init__(
        self,
        policy: Policy,
        head: Head,
        item_table: Tensor,
        items: ItemEncoder,
        samples: Split,
        *,
        train: config.Train,
        sampling: config.Sampling,
        reward: config.Reward,
        validate: Callable[[Tensor], float] | None,
        seed: int,
        **trainer: Any,
    ) -> None:
        self.policy, self.head, self.samples = policy, head.to(policy.device), samples
        self.item_table, self.items = item_table.clone().to(policy.device), items  # whitened, before the head
        self.settings, self.sampling, self.reward = train, sampling, reward
        self.validate, self.seed = validate, seed
        self.prompts = policy.user_bodies(samples.bodies)
        self.times = {"generate": 0.0, "items": 0.0, "loss": 0.0}
        self.sums = {"token_loss": 0.0, "item_loss": 0.0, "reward": 0.0, "reward_std": 0.0}
        # part of the model, so that its weights are clipped, summed and reset with the adapter's
        policy.model.add_module("minirec_head", self.head)
        super().__init__(policy.model, reward_funcs=_rewarded_inside, processing_class=policy.tokenizer, **trainer)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of `batch_prompts` prompts, the last one may be smaller. Every process sees them whole."""
        return DataLoader(cast(Any, range(len(self.samples))), self.settings.batch_prompts, collate_fn=list)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW without weight decay; the head has a rate of its own."""
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in self.policy.model.named_parameters() if "lora_" in name]},
            {"params": list(self.head.parameters()), "lr": self.settings.head_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, self.settings.learning_rate, weight_decay=0.0)
        return self.optimizer

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One optimiser step's gradients; returns the loss."""
        started = time.perf_counter()
        self.times, self.sums = dict.fromkeys(self.times, 0.0), dict.fromkeys(self.sums, 0.0)
        if self.state.global_step and self.state.global_step % self.settings.item_refresh_steps == 0:
            self.refresh_items()
        micro_batches, items = self._generate_and_score_completions(inputs)
        model.train()
        total = torch.zeros((), device=self.policy.device)
        with self._timed("loss"):
            for batch in micro_batches:
                loss = self.compute_loss(model, batch)
                loss.backward()
                total += loss.detach()
        distributed.all_reduce_sum(total)
        self._demand_finite("loss", total.item(), self.state.global_step + 1)
        with self._timed("items"):
            self._backward_items(items)
        distributed.all_reduce_gradients(self.policy.model.parameters())
        gradients = [weight.grad for weight in self.policy.model.parameters() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        self._demand_finite("gradient's norm", norm, self.state.global_step + 1)
        sums = distributed.all_reduce_sum(torch.tensor(list(self.sums.values()), device=self.policy.device)).tolist()
        noted = dict(zip(self.sums, sums, strict=True)) | {f"seconds_{part}": s for part, s in self.times.items()}
        for name, value in (noted | {"seconds": time.perf_counter() - started}).items():
            self._metrics["train"][name].append(value)
        return total

    def _demand_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise NotFinite(f"the {what} is {value} at step {step}")

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """This process's share of the optimiser batch as micro-batches (list[Batch]), and the BatchItems."""
        batch = self.samples.take(inputs)
        self.sample_ids = batch.sample_id.tolist()
        target = torch.as_tensor(batch.target)
        with self._timed("items"):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.state.global_step)
            rows = losses.batch_items(target, len(self.item_table), self.settings.extra_negatives, generator)
            items = self._embed(rows.to(self.policy.device))
            self.item_table[items.rows] = items.vectors.detach()
        own = distributed.local_rows(len(inputs))
        part, prompts = batch.take(own), [self.prompts[inputs[place]] for place in own]
        tokens = torch.zeros((), device=self.policy.device)
        if own:
            with self._timed("generate"):
                written = self._write(prompts, part.sample_id)
            tau = self.policy.settings.tau
            try:
                judged = judge.score_completions(
                    written.hidden, self.vectors(), part, self.head.merged_whitening(), tau, self.reward
                )
                spread = judged["reward"].std(1).sum().item() if judged["reward"].shape[1] > 1 else 0.0
                self.sums["reward"] = judged["reward"].mean(1).sum().item() / len(inputs)
                self.sums["reward_std"] = spread / len(inputs)
                tokens += sum(len(t) for group in written.tokens for t in group)
            except NotFinite:
                tokens += torch.nan  # so that every process stops
        sampled = distributed.all_reduce_sum(tokens).item()
        self._demand_finite("policy's score of an item", sampled, self.state.global_step + 1)
        column = torch.searchsorted(rows[: len(target.unique())], torch.as_tensor(part.target))
        batches = []
        by_length = sorted(range(len(own)), key=lambda place: len(prompts[place]))  # little padding
        for start in range(0, len(own), self.settings.micro_batch_prompts):
            places = by_length[start : start + self.settings.micro_batch_prompts]
            batches.append(
                Batch(
                    [prompts[place] for place in places],
                    written.take(places),
                    judged["advantage"][places],
                    torch.as_tensor(part.history[places], device=self.policy.device),
                    column[places].to(self.policy.device),
                    items,
                    1 / max(sampled, 1),
                    1 / len(inputs),
                )
            )
        return batches, items

    def _write(self, prompts: list[list[int]], sample_id: np.ndarray) -> generate.Completions:
        s, epoch = self.sampling, int(self.state.epoch or 0) + 1
        stream = generate.sampling_uniforms(self.seed, sample_id.tolist(), s.completions, s.max_new_tokens, epoch)
        self.policy.model.eval()
        extra = s.completions * (s.max_new_tokens + len(self.policy.marker_ids))
        parts, places = [], []
        for rows in self.policy.length_batches(prompts, extra):
            written = generate.generate(
                self.policy,
                [prompts[row] for row in rows],
                [s.max_new_tokens] * s.completions,
                stream[rows].to(self.policy.device),
                s.temperature,
                s.top_k,
                keep_frozen_states=True,
            )
            parts.append(written)
            places += rows
        return generate.Completions.concatenate(parts).take(np.argsort(places).tolist())

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        """Token loss + item loss of a micro-batch, as its share of the optimiser batch."""
        s, b = self.settings, inputs
        log_p, real, hidden = generate.teacher_forced(self.policy, b.prompts, b.completions)
        loss = torch.zeros((), device=log_p.device)
        if "token" in s.losses:
            token = losses.token_loss(log_p, log_p.detach(), real, b.advantage, s.epsilon_low, s.epsilon_high)
            loss = loss + token * b.token_share
            self.sums["token_loss"] += token.item() * b.token_share
        if "item" in s.losses:
            best = losses.best_completions(b.advantage, s.relabel_topk)
            advantage = (
                b.advantage.gather(1, best)
                if s.item_advantage == "group"
                else torch.ones(best.shape, device=best.device)
            )
            h = self.head.user(hidden.gather(1, best[..., None].expand(-1, -1, hidden.shape[-1])).flatten(0, 1))
            masked = (b.items.rows[None, :, None] == b.history[:, None, :]).any(-1)
            item = losses.item_loss(
                h,
                self.head.whitened_item(b.items.vectors),
                b.column.repeat_interleave(best.shape[1]),
                masked.repeat_interleave(best.shape[1], 0),
                advantage.flatten(),
                self.policy.settings.tau,
                s.epsilon_low,
                s.epsilon_high,
            )
            loss = loss + item * b.prompt_share / best.shape[1]
            self.sums["item_loss"] += item.item() * b.prompt_share / best.shape[1]
        return loss

    def _embed(self, rows: Tensor) -> BatchItems:
        """Embed the items of a batch with gradients; where that needs several passes, they are run again for these."""
        wanted = rows.tolist()
        own = distributed.local_rows(len(wanted))
        learned = "item" in self.settings.losses
        keep = learned and len(self.items.length_batches([wanted[place] for place in own])) == 1
        self.policy.model.train(keep)
        with torch.set_grad_enabled(keep):
            mine = self._whitened([wanted[place] for place in own])
        whole = distributed.gathered(mine.detach(), len(wanted))
        return BatchItems(rows, whole.requires_grad_(learned), own, mine if keep else None)

    def _backward_items(self, items: BatchItems) -> None:
        """Carry the gradient collected at the item vectors on to the adapter, a pass of `batch_tokens` at a time."""
        if not items.vectors.requires_grad:
            return
        collected = torch.zeros_like(items.vectors) if items.vectors.grad is None else items.vectors.grad
        gradient = distributed.all_reduce_sum(collected)[items.own]
        if items.graph is not None:
            items.graph.backward(gradient)
            return
        wanted = items.rows[items.own].tolist()
        for places in self.items.length_batches(wanted):
            self._whitened([wanted[place] for place in places]).backward(gradient[places])

    def _whitened(self, rows: list[int]) -> Tensor:
        """Whitened vectors [k, d'] of catalogue rows, before the head."""
        return self.head.whitening.item(self.items.embed(rows))

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """The item table by the head of today: only what the adapter changes waits for a refresh."""
        return self.head.whitened_item(self.item_table)

    @torch.no_grad()
    def refresh_items(self) -> None:
        """Recompute the whole item table with the current policy."""
        self.policy.model.eval()
        with self._timed("items"):
            own = self._whitened(distributed.local_rows(len(self.items)))
            self.item_table = distributed.gathered(own, len(self.items))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """NDCG@10 on valid, after a refresh of the item table."""
        assert self.validate is not None
        self.refresh_items()
        metrics = {"eval_ndcg": self.validate(self.vectors())}
        self._demand_finite("policy's NDCG on valid", metrics["eval_ndcg"], self.state.global_step)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add the step's own numbers; all of them end in the trainer's state, and so in every checkpoint."""
        if "loss" in logs:
            logs["sample_ids"] = self.sample_ids
            logs |= {name: sum(values) / len(values) for name, values in self._metrics["train"].items()}
            self._metrics["train"].clear()
        Trainer.log(self, logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """One more complete checkpoint; only then all others go but the best."""
        weights = [weight for weight in self.policy.model.parameters() if weight.requires_grad]
        norm = torch.nn.utils.get_total_norm(weights).item()
        self._demand_finite("norm of the trained weights", norm, self.state.global_step)
        Trainer._save_checkpoint(self, model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with distributed.first_rank_alone() as first:
            if first:
                save_file({"items": self.item_table.contiguous()}, folder / ITEMS)
                save_file(self.head.state_dict(), folder / HEAD)
        with distributed.first_rank_alone() as first:  # by now every process has written its files
            if first:
                artefact.write_manifest(folder, Provenance("checkpoint"))
                kept = {folder.name, Path(self.state.best_model_checkpoint or folder).name}
                for other in folder.parent.glob("checkpoint-*"):
                    if other.name not in kept:
                        shutil.rmtree(other)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.item_table = load_file(Path(resume_from_checkpoint) / ITEMS)["items"].to(self.policy.device)
        self._load_head(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        assert self.state.best_model_checkpoint is not None
        self._load_head(self.state.best_model_checkpoint)

    def _load_head(self, checkpoint: str) -> None:
        self.head.load_state_dict(load_file(Path(checkpoint) / HEAD))

    def _timed(self, part: str) -> _Timer:
        return _Timer(self.times, part)


class _Timer:
    def __init__(self, times: dict[str, float], part: str) -> None:
        self.times, self.part = times, part

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.times[self.part] += time.perf_counter() - self.started


def _rewarded_inside(**_: Any) -> list[float | None]:
    raise AssertionError("rewards come from the item table, see judge.py")
