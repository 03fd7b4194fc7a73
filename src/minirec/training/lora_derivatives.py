"""Derivatives of the item loss by the LoRA weights, a sample at a time, projected to a few dimensions (METHOD 4.4).

A sample's loss is the mean over its completions, and so one function of the weights: g is its gradient, Hv its Hessian
times g. The item vectors are held fixed, as they are where one differentiates by the hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from minirec.data import splits
from minirec.errors import InputError
from minirec.experiment import config
from minirec.model import generate, scoring
from minirec.model.cache import PROMPT, BranchingCache, LayerSlice
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.storage import tables, tensors
from minirec.storage.stream import Stream

Weights = dict[str, Tensor]


class ItemLoss(torch.nn.Module):
    """The mean over the completions of -A rho, rho = pi / stopgrad(pi), as a function of the policy's weights."""

    def __init__(self, policy: Policy, items: Tensor, whitening: Whitening) -> None:
        super().__init__()
        self.policy, self.model, self.items, self.whitening = policy, policy.model, items, whitening

    def forward(self, read: Reading, target: Tensor, masked: Tensor, rows: Tensor, advantage: Tensor) -> Tensor:
        """target: place of the target among the catalogue rows that make up pi; masked [w]: places that are out."""
        groups = len(advantage)
        states = self.whitening.user(read.pooled())
        scores = scoring.scores(states, self.items[rows], self.policy.settings.tau)
        log_pi = scoring.log_pi(scores, target.expand(groups), masked.expand(groups, -1))
        return -(advantage * (log_pi - log_pi.detach()).exp()).mean()


class Reading:
    """A prompt and its completions as one row of tokens; what the frozen layers make of it is computed once."""

    def __init__(self, policy: Policy, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> None:
        self.policy, self.depth = policy, policy.frozen_layers
        prefix, marker = policy.user_prompts.prefix, policy.marker_ids
        texts = [[*text, *([] if generate.has_marker(policy, text) else marker)] for text in completions]
        before = len(prefix) + len(prompt)
        ids = [*prefix, *prompt, *(token for text in texts for token in text)]
        positions = [*range(before), *(before + place for text in texts for place in range(len(text)))]
        branch = [PROMPT] * before + [g for g, text in enumerate(texts) for _ in text]
        self.branch, self.positions = (torch.tensor([row], device=policy.device) for row in (branch, positions))
        self.lengths = torch.tensor([len(text) for text in texts], device=policy.device)
        self.prompt = slice(len(prefix), before)
        self.given = torch.tensor([ids], device=policy.device)
        if self.depth:
            with torch.no_grad():
                self.given = self._extend(LayerSlice(policy.decoder, slice(0, self.depth)))

    def pooled(self) -> Tensor:
        """The state of each completion by the policy's pooling [G, d]."""
        states = self._extend(
            LayerSlice(self.policy.decoder, slice(self.depth, None)) if self.depth else self.policy.decoder
        )
        states = states[0].to(torch.promote_types(states.dtype, torch.float32))
        ends = self.prompt.stop + self.lengths.cumsum(0)
        pooling = self.policy.settings.pooling
        if pooling == "last":
            return states[ends - 1]
        own = self.branch == torch.arange(len(self.lengths), device=states.device)[:, None]
        total, count = own.to(states.dtype) @ states, self.lengths
        if pooling == "context":
            total, count = total + states[self.prompt].sum(0), count + self.prompt.stop - self.prompt.start
        return total / count[:, None]

    def _extend(self, decoder: object) -> Tensor:
        valid = torch.ones_like(self.branch, dtype=torch.bool)
        return BranchingCache(decoder, [], 1).extend(self.given, valid, self.branch, self.positions)


def derivatives(loss: ItemLoss, weights: Weights, *given: object) -> tuple[Weights, Weights]:
    """Gradient and Hessian times gradient by the weights: forward mode over reverse mode."""

    def value(at: Weights) -> Tensor:
        return functional_call(loss, at, given)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        g = grad(value)(weights)
        hv = jvp(grad(value), (weights,), (g,))[1]
    return g, hv


class Projection:
    """A seeded sparse random projection: every coordinate is added to one of `dimensions` sums, with a random sign.

    Inner products are kept on average, with an error of about 1 / sqrt(dimensions) of the lengths.
    """

    def __init__(self, width: int, dimensions: int, seed: int, device: torch.device | str = "cpu") -> None:
        generator = np.random.default_rng(seed)
        self.dimensions = dimensions
        self.place = torch.from_numpy(generator.integers(0, dimensions, width)).to(device)
        self.sign = torch.from_numpy(generator.integers(0, 2, width, dtype=np.int8) * 2 - 1).to(device)

    def __call__(self, weights: Weights) -> Tensor:
        """A vector [dimensions] of tensors that together have `width` numbers, in the order of their names."""
        flat = torch.cat([weights[name].flatten() for name in sorted(weights)])
        return flat.new_zeros(self.dimensions).index_add(0, self.place, self.sign * flat)


class LoraDerivatives:
    """Derivatives by the adapter's weights for samples asked in their order."""

    def __init__(
        self,
        policy: Policy,
        items: Tensor,
        whitening: Whitening,
        settings: config.Gradient,
        samples: Path,
        catalogue: Path,
        rollouts: Path,
    ) -> None:
        self.policy, self.samples, self.catalogue = policy, samples, catalogue
        self.loss = ItemLoss(policy, items.to(policy.device), whitening)
        self.weights = {name: p.detach() for name, p in self.loss.named_parameters() if "lora_" in name}
        if not self.weights:
            raise InputError("the adapter has no LoRA weights; train the proxy again")
        width = sum(p.numel() for p in self.weights.values())
        self.project = Projection(width, settings.dimensions, settings.seed, policy.device)
        self.titles = splits.titles(catalogue)
        self.facts = Stream("samples", samples, list(tables.TABLES["samples"].columns))
        self.tried = Stream("rollouts", rollouts, ["sample_id", "completion", "tokens"])

    def __call__(self, sample_id: np.ndarray, advantage: Tensor, candidates: Tensor | None) -> tuple[Tensor, Tensor]:
        """(g [k, dimensions], Hv [k, dimensions]) of samples whose advantages are [k, G]."""
        table = self.facts.until(int(sample_id[-1]))
        table = table.take(tensors.rows_of(tables.numpy(table, "sample_id"), sample_id, self.samples))
        split = splits.of_table(table, self.titles, self.policy.settings.prompt_history, self.samples, self.catalogue)
        tokens = self.tried.take(advantage.numel())["tokens"].to_pylist()
        groups, device = advantage.shape[1], self.policy.device
        found = []
        for i, prompt in enumerate(self.policy.user_bodies(split.bodies)):
            reading = Reading(self.policy, prompt, tokens[i * groups : (i + 1) * groups])
            rows, target, masked = _choice(
                torch.tensor(split.target[i]),
                torch.from_numpy(split.history[i]),
                len(self.loss.items),
                None if candidates is None else candidates[i],
            )
            given = (target.to(device), masked.to(device), rows.to(device), advantage[i].to(device))
            found.append([self.project(part).cpu() for part in derivatives(self.loss, self.weights, reading, *given)])
        g, hv = (torch.stack(part).float() for part in zip(*found, strict=True))
        return g, hv


def _choice(target: Tensor, history: Tensor, items: int, candidates: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Catalogue rows that make up pi [m], the target's place among them, and the places that are masked, -1 padded."""
    if candidates is None:
        return torch.arange(items), target, history
    rows = torch.cat([target[None], candidates[(candidates != target) & ~torch.isin(candidates, history)].unique()])
    return rows, torch.tensor(0), torch.tensor([-1])
