"""GRPO with an item loss (METHOD 3), on TRL's GRPOTrainer.

One call of `training_step` is one optimiser step: the policy writes, the item table rewards, the losses are
accumulated over micro-batches. A batch holds prompts, each once; its completions never leave their prompt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Trainer
from trl import GRPOTrainer

from minirec import config, generate, judge, objective
from minirec.errors import InputError
from minirec.items import Items
from minirec.policy import Policy
from minirec.schemas import replacing
from minirec.splits import Split
from minirec.whitening import Whitening

ITEMS = "items.safetensors"  # the item table inside a checkpoint; written last, so it marks a complete one


@dataclass
class Batch:
    """What one micro-batch trains on."""

    prompts: list[list[int]]
    completions: generate.Completions
    advantage: Tensor  # [n, G]
    history: Tensor  # [n, w]
    column: Tensor  # [n], the target's place in `rows`
    rows: Tensor  # [k], catalogue rows of the item softmax
    vectors: Tensor  # [k, d'], their whitened vectors; a leaf that collects the gradient
    token_share: float  # 1 / sampled tokens of the optimiser batch
    prompt_share: float  # 1 / prompts of the optimiser batch


class RecommenderTrainer(GRPOTrainer):
    """Trains a policy's adapter; `samples` are visited in their order, the incomplete last batch included."""

    def __init__(
        self,
        policy: Policy,
        whitening: Whitening,
        item_table: Tensor,
        items: Items,
        samples: Split,
        *,
        train: config.Train,
        sampling: config.Sampling,
        reward: config.Reward,
        validate: Callable[[Tensor], float] | None,
        seed: int,
        **trainer: Any,
    ) -> None:
        self.policy, self.whitening, self.samples = policy, whitening, samples
        self.item_table, self.items = item_table.clone().to(policy.device), items
        self.settings, self.sampling, self.reward = train, sampling, reward
        self.validate, self.seed = validate, seed
        self.prompts = policy.user_bodies(samples.bodies)
        self.times = {"generate": 0.0, "items": 0.0, "loss": 0.0}
        super().__init__(policy.model, reward_funcs=_rewarded_inside, processing_class=policy.tokenizer, **trainer)

    def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
        """The curriculum's order, each prompt once."""
        return SequentialSampler(self.samples.bodies)

    def get_train_dataloader(self) -> Any:
        """Batches of `batch_prompts` prompts; the last one may be smaller."""
        return Trainer.get_train_dataloader(self)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One optimiser step's gradients; returns the loss."""
        started = time.perf_counter()
        self.times = dict.fromkeys(self.times, 0.0)
        if self.state.global_step and self.state.global_step % self.settings.item_refresh_steps == 0:
            self.refresh_items()
        micro_batches, graph = self._generate_and_score_completions(inputs)
        model.train()
        total = torch.zeros((), device=self.policy.device)
        with self._timed("loss"):
            for batch in micro_batches:
                loss = self.compute_loss(model, batch)
                if not math.isfinite(loss.item()):
                    raise InputError(
                        f"the loss is {loss.item()} at step {self.state.global_step + 1}; lower train.learning_rate, "
                        "the last checkpoint is kept"
                    )
                self.accelerator.backward(loss)
                total += loss.detach()
        with self._timed("items"):
            self._backward_items(micro_batches[0], graph)
        self._note("seconds", time.perf_counter() - started)
        for part, seconds in self.times.items():
            self._note(f"seconds_{part}", seconds)
        return total

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Completions, rewards and advantages as micro-batches (list[Batch]), and the item vectors' graph or None."""
        index = [int(row["row"]) for row in inputs]
        part = self.samples.take(index)
        self.sample_ids = part.sample_id.tolist()
        prompts = [self.prompts[row] for row in index]
        with self._timed("items"):
            target = torch.as_tensor(part.target)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.state.global_step)
            rows = objective.batch_items(target, len(self.item_table), self.settings.extra_negatives, generator)
            vectors, graph = self._item_vectors(rows)
            self.item_table[rows.to(self.policy.device)] = vectors.detach()
        with self._timed("generate"):
            written = self._write(prompts, part.sample_id)
        judged = judge.judge(
            written.hidden, self.item_table, part, self.whitening, self.policy.settings.tau, self.reward
        )
        self._note("reward", judged["reward"].mean().item())
        self._note("reward_std", judged["reward"].std(1).mean().item() if judged["reward"].shape[1] > 1 else 0.0)
        tokens = sum(len(t) for group in written.tokens for t in group)
        batches = []
        for start in range(0, len(prompts), self.settings.micro_batch_prompts):
            stop = min(start + self.settings.micro_batch_prompts, len(prompts))
            batches.append(
                Batch(
                    prompts[start:stop],
                    written.take(range(start, stop)),
                    judged["advantage"][start:stop],
                    torch.as_tensor(part.history[start:stop], device=self.policy.device),
                    torch.searchsorted(rows[: len(target.unique())], target[start:stop]).to(self.policy.device),
                    rows.to(self.policy.device),
                    vectors,
                    1 / max(tokens, 1),
                    1 / len(prompts),
                )
            )
        return batches, graph

    def _write(self, prompts: list[list[int]], sample_id: np.ndarray) -> generate.Completions:
        s, epoch = self.sampling, int(self.state.epoch or 0) + 1
        stream = generate.noise(self.seed, sample_id.tolist(), s.completions, s.max_new_tokens, epoch)
        self.policy.model.eval()
        extra = s.completions * (s.max_new_tokens + len(self.policy.marker_ids))
        parts, places = [], []
        for rows in self.policy.batches(prompts, extra):
            written = generate.write(
                self.policy,
                [prompts[row] for row in rows],
                [s.max_new_tokens] * s.completions,
                stream[rows].to(self.policy.device),
                s.temperature,
                s.top_k,
                keep_below=True,
            )
            parts.append(written)
            places += rows
        return generate.Completions.together(parts).take(np.argsort(places).tolist())

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        """Token loss + item loss of a micro-batch, as its share of the optimiser batch."""
        s, b = self.settings, inputs
        log_p, real, hidden = generate.reread(self.policy, b.prompts, b.completions)
        loss = torch.zeros((), device=log_p.device)
        if "token" in s.losses:
            token = objective.token_loss(log_p, log_p.detach(), real, b.advantage, s.epsilon_low, s.epsilon_high)
            loss = loss + token * b.token_share
            self._add("token_loss", token.item() * b.token_share)
        if "item" in s.losses:
            best = objective.best_completions(b.advantage, s.relabel_topk)
            h = self.whitening.user(hidden.gather(1, best[..., None].expand(-1, -1, hidden.shape[-1])).flatten(0, 1))
            masked = (b.rows[None, :, None] == b.history[:, None, :]).any(-1)
            item = objective.item_loss(
                h,
                b.vectors,
                b.column.repeat_interleave(best.shape[1]),
                masked.repeat_interleave(best.shape[1], 0),
                b.advantage.gather(1, best).flatten(),
                self.policy.settings.tau,
                s.epsilon_low,
                s.epsilon_high,
            )
            loss = loss + item * b.prompt_share / best.shape[1]
            self._add("item_loss", item.item() * b.prompt_share / best.shape[1])
        return loss

    def _item_vectors(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Whitened vectors of catalogue rows as a leaf [k, d'], and their graph where it fits into one pass."""
        wanted = rows.tolist()
        keep = "item" in self.settings.losses and len(self.items.batches(wanted)) == 1
        self.policy.model.train(keep)
        with torch.set_grad_enabled(keep):
            graph = self.whitening.item(self.items.embed(wanted))
        return graph.detach().requires_grad_("item" in self.settings.losses), graph if keep else None

    def _backward_items(self, batch: Batch, graph: Tensor | None) -> None:
        """Carry the gradient collected at the item vectors on to the adapter, a pass of `batch_tokens` at a time."""
        gradient = batch.vectors.grad
        if gradient is None:
            return
        if graph is not None:
            graph.backward(gradient)
            return
        wanted = batch.rows.tolist()
        for places in self.items.batches(wanted):
            vectors = self.whitening.item(self.items.embed([wanted[place] for place in places]))
            vectors.backward(gradient[places])

    @torch.no_grad()
    def refresh_items(self) -> None:
        """Recompute the whole item table with the current policy."""
        self.policy.model.eval()
        with self._timed("items"):
            self.item_table = self.whitening.item(self.items.embed())

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """NDCG@10 on valid, after a refresh of the item table."""
        assert self.validate is not None
        self.refresh_items()
        metrics = {"eval_ndcg": self.validate(self.item_table)}
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
        Trainer._save_checkpoint(self, model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with replacing(folder / ITEMS) as partial:
            save_file({"items": self.item_table.contiguous()}, partial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.item_table = load_file(Path(resume_from_checkpoint) / ITEMS)["items"].to(self.policy.device)

    def _note(self, name: str, value: float) -> None:
        self._metrics["train"][name].append(value)

    def _add(self, name: str, value: float) -> None:
        noted = self._metrics["train"][name]
        noted[:] = [sum(noted) + value]

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
