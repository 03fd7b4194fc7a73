"""GRPO with an item loss (METHOD 3), on TRL's GRPOTrainer.

One call of `training_step` is one optimiser step: the policy writes completions, the item table rewards them, and the
gradients are summed over micro-batches. With several `updates_per_rollout`, as many steps share the completions.
A batch lists each prompt once, and the completions stay with their prompt.
Several processes divide the prompts and items of every step among them, and end it with the same gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import GRPOTrainer

from minirec.data.splits import Split
from minirec.errors import NotFinite
from minirec.experiment import sections
from minirec.model import distributed, generate
from minirec.model.completions import Completions, share_states
from minirec.model.engines.engine import Engine
from minirec.model.items import ItemEncoder
from minirec.model.whitening import Head
from minirec.training import callbacks, checkpoints, losses, rewards
from minirec.training.item_table import BatchItems, ItemTable
from minirec.training.micro_batch import MicroBatch


class RecommenderTrainer(GRPOTrainer):
    """Trains a policy's adapter and head on `samples` in their order; the last batch of an epoch may be smaller."""

    def __init__(
        self,
        engine: Engine,
        head: Head,
        item_table: Tensor,
        items: ItemEncoder,
        samples: Split,
        *,
        train: sections.Train,
        reward: sections.Reward,
        validate: Callable[[Tensor], float] | None,
        micro_batch_prompts: int,
        seed: int,
        args: Any,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """item_table [m, d']: whitened, before the head. micro_batch_prompts: prompts of one backward pass.

        validate: computes NDCG@10 on the valid split from the item table after the head; None: no evaluation. args:
        from `callbacks.grpo_arguments`, with `validated` if there is `validate`.
        """
        policy = engine.policy
        self.engine, self.policy, self.head, self.samples = engine, policy, head.to(policy.device), samples
        self.items = ItemTable(items, self.head, item_table)
        self.settings, self.reward = train, reward
        self.validate, self.seed, self.micro_batch_prompts = validate, seed, micro_batch_prompts
        self.prompts = policy.user_bodies(samples.bodies)
        self.seconds = {"generate": 0.0, "items": 0.0, "loss": 0.0}  # of the current step, by part
        self.means: dict[str, float] = {}  # over the step's batch: losses, rewards and share of forced markers
        self.rollout: tuple[list[MicroBatch], BatchItems] | None = None  # what the present steps train on
        self.stand_in: Completions | None = None  # for a process that has no prompts left
        if distributed.sharded():
            self.stand_in = generate.stand_in(policy, [1])
        policy.model._ddp_params_and_buffers_to_ignore = distributed.ignored_by_ddp(policy.model)
        # part of the model, so that its weights are clipped, summed and reset with the adapter's
        policy.model.add_module("minirec_head", self.head)
        super().__init__(
            policy.model,
            reward_funcs=_no_reward,
            processing_class=policy.tokenizer,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [""] * len(samples)}),  # TRL asks for one; nothing reads it
            eval_dataset=Dataset.from_dict({"prompt": [""]}) if validate else None,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)  # the log has lines of its own

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of `batch_prompts` prompts, each once for every update; every process gets whole batches."""
        rows, size, updates = range(len(self.samples)), self.settings.batch_prompts, self.settings.updates_per_rollout
        batches = [list(rows[start : start + size]) for start in rows[::size] for _ in range(updates)]
        return DataLoader(cast(Any, rows), batch_sampler=batches, collate_fn=list)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW without weight decay; the head has a learning rate of its own."""
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in self.policy.model.named_parameters() if "lora_" in name]},
            {"params": list(self.head.parameters()), "lr": self.settings.head_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, self.settings.learning_rate, weight_decay=0.0)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The learning rate of each step; the warm-up ends at the peak, and begins above 0."""
        usual: Any = super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = callbacks.warmed_up(usual, self.settings)
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Compute the gradients of one optimiser step; returns the loss. inputs: positions in `samples`."""
        started = time.perf_counter()
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        model.eval()  # no dropout: a completion must have the same probability when it is read again
        if self.state.global_step and self.state.global_step % self.settings.item_refresh_steps == 0:
            self.refresh_items()
        micro_batches, items = self._micro_batches(inputs)
        self.means |= {"token_loss": 0.0, "item_loss": 0.0}
        if "item" in self.settings.losses:
            self.means["item_nll"] = 0.0
        total = torch.zeros((), device=self.policy.device)
        with self._timed("loss"):
            for micro_batch in distributed.same_number(micro_batches):
                loss = self._zero_loss() if micro_batch is None else self.compute_loss(model, micro_batch)
                loss.backward()
                total += loss.detach()
        distributed.all_reduce_sum(total)
        self._require_finite("loss", total.item(), self.state.global_step + 1)
        with self._timed("items"):
            self.items.backward(items)
        distributed.all_reduce_gradients(self.policy.model.parameters())
        gradients = [weight.grad for weight in self.policy.model.parameters() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        self._require_finite("gradient's norm", norm, self.state.global_step + 1)
        means = distributed.all_reduce_sum(torch.tensor(list(self.means.values()), device=self.policy.device)).tolist()
        logged = dict(zip(self.means, means, strict=True)) | {f"seconds_{part}": s for part, s in self.seconds.items()}
        for name, value in (logged | {"seconds": time.perf_counter() - started}).items():
            self._metrics["train"][name].append(value)
        return total

    def _micro_batches(self, inputs: Any) -> tuple[list[MicroBatch], BatchItems]:
        """What the step trains on: new completions, or again those of the last step, with its items embedded anew."""
        if self.rollout is None or self.state.global_step % self.settings.updates_per_rollout == 0:
            self.rollout = None  # frees memory
            self.rollout = self._generate_and_score_completions(inputs)
            return self.rollout
        micro_batches, items = self.rollout
        with self._timed("items"):
            items = self.items.refresh_batch(items.rows, "item" in self.settings.losses)
        for micro_batch in micro_batches:
            micro_batch.items = items
        return micro_batches, items

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """(list[MicroBatch], BatchItems) of the optimiser batch; the micro-batches hold this process's prompts only."""
        self.means = dict.fromkeys(("reward", "reward_std", "forced_share"), 0.0)
        batch = self.samples.take(inputs)
        self.sample_ids = batch.sample_id.tolist()
        target = torch.as_tensor(batch.target)
        with self._timed("items"):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.state.global_step)
            rows = losses.batch_items(target, len(self.items), self.settings.extra_negatives, generator)
            items = self.items.refresh_batch(rows.to(self.policy.device), "item" in self.settings.losses)
        local = distributed.local_rows(len(inputs))
        samples, prompts = batch.take(local), [self.prompts[inputs[place]] for place in local]
        tokens, prompt_share = torch.zeros((), device=self.policy.device), 1 / len(inputs)
        with self._timed("generate"):
            completions = self._write_completions(prompts, samples.sample_id)
        if local:
            tokens += sum(len(t) for group in completions.tokens for t in group)
            self.means["forced_share"] += float(np.mean(completions.forced, axis=1).sum()) * prompt_share
            try:
                advantage = self._advantages(completions, samples, prompt_share) if completions.were_read else None
            except NotFinite:
                tokens += torch.nan  # so that every process stops
        sampled = distributed.all_reduce_sum(tokens).item()
        self._require_finite("policy's score of an item", sampled, self.state.global_step + 1)
        if not local:
            return [], items
        token_share = 1 / max(sampled, 1)
        whole = MicroBatch(prompts, completions, samples, advantage, items, token_share, prompt_share)
        return whole.in_parts(self.micro_batch_prompts), items

    def _write_completions(self, prompts: list[list[int]], sample_id: np.ndarray) -> Completions:
        """Sample G completions of each prompt; seed, sample, completion and epoch determine the random numbers."""
        s, epoch = self.engine.sampling, int(self.state.epoch or 0) + 1
        limits = [s.max_new_tokens] * s.completions
        return self.engine.write(prompts, limits, sample_id.tolist(), epoch, for_training=True)

    def _advantages(self, completions: Completions, samples: Split, prompt_share: float) -> Tensor:
        """Advantages [n, G] of completions by the current item table; adds their rewards to the noted means."""
        whitening, tau = self.head.merged_whitening(), self.policy.settings.tau
        scored = rewards.score_completions(
            completions.hidden, self.items.vectors(), samples, whitening, tau, self.reward
        )
        reward = scored["reward"]
        std = reward.std(1).sum().item() if reward.shape[1] > 1 else 0.0
        self.means["reward"] += reward.mean(1).sum().item() * prompt_share
        self.means["reward_std"] += std * prompt_share
        return scored["advantage"]

    def _compute_loss(self, model: Any, inputs: MicroBatch) -> Tensor:
        """What a micro-batch adds to token loss + item loss of the optimiser batch."""
        s, b = self.settings, inputs
        log_p, real, hidden = generate.teacher_forced(self.policy, b.prompts, b.completions)
        if b.advantage is None:
            b.completions = share_states(self.policy, replace(b.completions, hidden=hidden.detach()))
            try:
                b.advantage = self._advantages(b.completions, b.samples, b.prompt_share)
            except NotFinite:
                return torch.nan * hidden.sum()  # so that every process stops
        loss = torch.zeros((), device=log_p.device)
        if "token" in s.losses:
            b.old_log_p = log_p.detach() if b.old_log_p is None else b.old_log_p
            weighted = real * losses.engine_weight(b.old_log_p, real, b.completions.log_p)
            token = losses.token_loss(log_p, b.old_log_p, weighted, b.advantage, s.epsilon_low, s.epsilon_high)
            loss = loss + token * b.token_share
            self.means["token_loss"] += token.item() * b.token_share
        if "item" in s.losses:
            best = losses.best_completions(b.advantage, s.relabel_topk)
            advantage, count = b.advantage.gather(1, best), best.shape[1]
            if s.item_advantage == "one":
                advantage = torch.ones_like(advantage)
            h = self.head.user(hidden.gather(1, best[..., None].expand(-1, -1, hidden.shape[-1])).flatten(0, 1))
            target, history = (torch.as_tensor(rows).to(h.device) for rows in (b.samples.target, b.samples.history))
            column, masked = losses.column_and_mask(b.items.rows, target, history)
            column, masked = column.repeat_interleave(count), masked.repeat_interleave(count, 0)
            vectors = self.head.whitened_item(b.items.vectors)
            log_pi = losses.item_log_pi(h, vectors, column, masked, self.policy.settings.tau)
            b.old_log_pi = log_pi.detach() if b.old_log_pi is None else b.old_log_pi
            item = losses.item_loss(log_pi, b.old_log_pi, advantage.flatten(), s.epsilon_low, s.epsilon_high)
            loss = loss + item * b.prompt_share / count
            self.means["item_loss"] += item.item() * b.prompt_share / count
            self.means["item_nll"] -= log_pi.detach().sum().item() * b.prompt_share / count
        return loss

    def _zero_loss(self) -> Tensor:
        """Zero, by the passes of a micro-batch: other processes have one more and share the layers."""
        assert self.stand_in is not None  # only with sharded layers are there more passes than micro-batches
        log_p, _, hidden = generate.teacher_forced(self.policy, [[0]], self.stand_in)
        return 0 * (log_p.sum() + hidden.sum())

    def refresh_items(self) -> None:
        """Recompute the whole item table with the current policy."""
        with self._timed("items"):
            self.items.refresh()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Refresh the item table, then measure and log NDCG@10 on the valid split."""
        assert self.validate is not None
        started = time.perf_counter()
        self.refresh_items()
        metrics = {"eval_ndcg": self.validate(self.items.vectors())}
        metrics["eval_seconds"] = time.perf_counter() - started
        self._require_finite("policy's NDCG on valid", metrics["eval_ndcg"], self.state.global_step)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add losses, rewards and seconds of the step to the log, which every checkpoint stores."""
        if "loss" in logs:
            logs["sample_ids"] = self.sample_ids
            logs |= {name: sum(values) / len(values) for name, values in self._metrics["train"].items()}
            self._metrics["train"].clear()
        Trainer.log(self, logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a complete checkpoint, then remove all others but the best."""
        weights = [weight for weight in self.policy.model.parameters() if weight.requires_grad]
        norm = torch.nn.utils.get_total_norm(weights).item()
        self._require_finite("norm of the trained weights", norm, self.state.global_step)
        Trainer._save_checkpoint(self, model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        checkpoints.complete(folder, self.items, Path(self.state.best_model_checkpoint or folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        checkpoints.load_item_table(resume_from_checkpoint, self.items)
        checkpoints.load_head(resume_from_checkpoint, self.head)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        assert self.state.best_model_checkpoint is not None
        checkpoints.load_head(self.state.best_model_checkpoint, self.head)

    def _require_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise NotFinite(f"the {what} is {value} at step {step}")

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - started


def _no_reward(**_: Any) -> list[float | None]:
    raise AssertionError("rewards come from the item table, see rewards.py")
