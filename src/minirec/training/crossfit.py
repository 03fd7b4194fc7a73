"""Cross-fitted heads: a proxy without adapter and completions, which takes seconds on the CPU (METHOD 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from minirec.data.splits import Split
from minirec.experiment import sections
from minirec.experiment.sections import HeadKind
from minirec.model.whitening import Head, Whitening
from minirec.progress import progress
from minirec.training import losses, rewards
from minirec.training.callbacks import warmed_up


def fit(
    users: Tensor,
    items: Tensor,
    samples: Split,
    batches: Iterable[np.ndarray],
    *,
    kind: HeadKind,
    rate: float,
    schedule: Callable[[torch.optim.Optimizer], LambdaLR],
    negatives: int,
    tau: float,
    max_grad_norm: float,
    generator: torch.Generator,
) -> Head:
    """Train a head of this kind by the item loss with advantage 1 (METHOD 3), one optimiser step for each batch.

    users [n, k]: whitened states of the samples. items [m, k]: whitened states of the catalogue. batches: rows of the
    samples. rate, schedule: of AdamW. negatives: random items besides the batch's targets, drawn by `generator`.
    """
    head = Head(Whitening.identity(), items.shape[1], kind)
    optimiser = torch.optim.AdamW(head.parameters(), rate, weight_decay=0.0, fused=True)
    scheduler = schedule(optimiser)
    for rows in batches:
        target, history = torch.from_numpy(samples.target[rows]), torch.from_numpy(samples.history[rows])
        chosen = losses.batch_items(target, len(items), negatives, generator)
        column, masked = losses.column_and_mask(chosen, target, history)
        h = head.user(users[torch.from_numpy(rows)])
        log_pi = losses.item_log_pi(h, head.item(items[chosen]), column, masked, tau)
        optimiser.zero_grad()
        (-log_pi.mean()).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), max_grad_norm)
        optimiser.step()
        scheduler.step()
    return head


def held_out_rewards(
    users: Tensor,
    items: Tensor,
    samples: Split,
    train: sections.Train,
    crossfit: sections.Crossfit,
    tau: float,
    reward: sections.Reward,
    seed: int,
) -> dict[str, np.ndarray]:
    """Rank, pi, NDCG, hit, reward and advantage [n] of the training samples, by the name of their column (METHOD 4.2).

    The one whitened state of a sample takes the place of its completions. The samples are cut at random into
    `crossfit.folds` parts. The head that scores a part is trained on all the others, so that no sample is scored by a
    head that has seen it. users [n, k], items [m, k]: whitened states.
    """
    drawn = np.random.default_rng(seed).permutation(len(samples))
    parts = np.array_split(drawn, crossfit.folds)
    columns: dict[str, np.ndarray] = {}
    with progress("crossfit", crossfit.folds, "heads") as bar:
        for number, part in enumerate(parts):
            seen = np.concatenate([*parts[:number], *parts[number + 1 :]])
            stream = seed * 1_000_003 + number  # no two folds of any seeds draw the same items
            head = _trained(users, items, samples, seen, train, crossfit.head_epochs, tau, stream)
            with torch.no_grad():
                vectors, merged = head.item(items), head.merged_whitening()
                states, few = users[torch.from_numpy(part), None], samples.take(part.tolist())
                for name, values in rewards.score_completions(states, vectors, few, merged, tau, reward).items():
                    of_all = columns.setdefault(name, np.zeros(len(samples), values.numpy().dtype))
                    of_all[part] = values[:, 0].numpy()
            bar.add(1)
    return columns


def _trained(
    users: Tensor,
    items: Tensor,
    samples: Split,
    rows: np.ndarray,
    train: sections.Train,
    epochs: int,
    tau: float,
    seed: int,
) -> Head:
    """Train a head on these rows, in the same order in every epoch; the warm-up takes at most half of the steps.

    Of `train` it reads head, head_learning_rate, scheduler, warmup_steps, batch_prompts, extra_negatives and
    max_grad_norm.
    """
    batches = [rows[start : start + train.batch_prompts] for start in range(0, len(rows), train.batch_prompts)]
    steps = epochs * len(batches)
    train = train.model_copy(update={"warmup_steps": min(train.warmup_steps, steps // 2)})

    def schedule(optimiser: torch.optim.Optimizer) -> LambdaLR:
        usual = get_scheduler(train.scheduler, optimiser, num_warmup_steps=train.warmup_steps, num_training_steps=steps)
        return warmed_up(usual, train)

    return fit(
        users,
        items,
        samples,
        batches * epochs,
        kind=train.head,
        rate=train.head_learning_rate,
        schedule=schedule,
        negatives=train.extra_negatives,
        tau=tau,
        max_grad_norm=train.max_grad_norm,
        generator=torch.Generator().manual_seed(seed),
    )
