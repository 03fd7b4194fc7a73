"""Gradient and Hessian-vector product of the item loss by the LoRA weights, randomly projected (METHOD 4.4).

A sample's loss is the mean over its completions, one function of the weights: g is its gradient, Hg its Hessian times
g. The item vectors are held fixed, as in the derivatives by the hidden state.
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
from minirec.model import scoring
from minirec.model.cache import PROMPT, BranchingCache, LayerSlice
from minirec.model.completions import has_marker, with_marker
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.training.chunks import Chunk
from minirec.training.derivatives import HiddenStateDerivatives, sampled_candidates

Weights = dict[str, Tensor]


class ItemLoss(torch.nn.Module):
    """Item loss of one sample, the mean of -A pi / stopgrad(pi) over its completions, as a function of the weights."""

    def __init__(self, policy: Policy, items: Tensor, whitening: Whitening) -> None:
        super().__init__()
        self.policy, self.model, self.items, self.whitening = policy, policy.model, items, whitening

    def forward(self, sample: PackedSample, target: Tensor, masked: Tensor, rows: Tensor, advantage: Tensor) -> Tensor:
        """The loss; advantage [G] is A of each completion.

        rows [m]: catalogue rows of the items in the softmax pi. target, masked [w]: the positions in `rows` of the
        target and of the history, the latter padded with -1.
        """
        groups = len(advantage)
        states = self.whitening.user(sample.pooled())
        scores = scoring.scores(states, self.items[rows], self.policy.settings.tau)
        log_pi = scoring.log_pi(scores, target.expand(groups), masked.expand(groups, -1))
        return -(advantage * (log_pi - log_pi.detach()).exp()).mean()


class PackedSample:
    """A prompt and its G completions in one row of tokens; what the frozen layers compute is computed once."""

    def __init__(self, policy: Policy, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> None:
        self.policy, self.depth = policy, policy.frozen_layers
        prefix = policy.user_prompts.prefix
        texts = [t if has_marker(policy, t) else with_marker(policy, t) for t in completions]
        before = len(prefix) + len(prompt)
        ids = [*prefix, *prompt, *(token for text in texts for token in text)]
        positions = [*range(before), *(before + place for text in texts for place in range(len(text)))]
        branch = [PROMPT] * before + [g for g, text in enumerate(texts) for _ in text]
        self.branch, self.positions = (torch.tensor([row], device=policy.device) for row in (branch, positions))
        self.lengths = torch.tensor([len(text) for text in texts], device=policy.device)
        self.prompt = slice(len(prefix), before)
        self.inputs = torch.tensor([ids], device=policy.device)  # token ids; with frozen layers, the states after these
        if self.depth:
            with torch.no_grad():
                self.inputs = self._extend(LayerSlice(policy.decoder, slice(0, self.depth)))

    def pooled(self) -> Tensor:
        """State of each completion, pooled as `policy.pooling` says [G, d]."""
        states = self._extend(
            LayerSlice(self.policy.decoder, slice(self.depth, None)) if self.depth else self.policy.decoder
        )
        states = states[0].to(torch.promote_types(states.dtype, torch.float32))
        ends = self.prompt.stop + self.lengths.cumsum(0)
        pooling = self.policy.settings.pooling
        if pooling == "last":
            return states[ends - 1]
        of_completion = self.branch == torch.arange(len(self.lengths), device=states.device)[:, None]
        total, count = of_completion.to(states.dtype) @ states, self.lengths
        if pooling == "context":
            total, count = total + states[self.prompt].sum(0), count + self.prompt.stop - self.prompt.start
        return total / count[:, None]

    def _extend(self, decoder: object) -> Tensor:
        valid = torch.ones_like(self.branch, dtype=torch.bool)
        return BranchingCache(decoder, [], 1).extend(self.inputs, valid, self.branch, self.positions)


def gradient_and_hvp(loss: ItemLoss, weights: Weights, *inputs: object) -> tuple[Weights, Weights]:
    """Gradient of loss(*inputs) by the weights, and Hessian times gradient (forward mode over reverse mode)."""

    def value(weights: Weights) -> Tensor:
        return functional_call(loss, weights, inputs)

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        g = grad(value)(weights)
        hv = jvp(grad(value), (weights,), (g,))[1]
    return g, hv


class Projection:
    """Random projection to `dimensions` numbers: every coordinate is added to one of them, with a random sign.

    Cosines keep an error of about 1 / sqrt(dimensions) (METHOD 4.4, the projection).

    >>> project = Projection(width=6, dimensions=2, seed=0)
    >>> project({"a": torch.ones(4), "b": torch.ones(2)}).shape
    torch.Size([2])
    """

    def __init__(self, width: int, dimensions: int, seed: int, device: torch.device | str = "cpu") -> None:
        generator = np.random.default_rng(seed)
        self.dimensions = dimensions
        self.place = torch.from_numpy(generator.integers(0, dimensions, width)).to(device)
        self.sign = torch.from_numpy(generator.integers(0, 2, width, dtype=np.int8) * 2 - 1).to(device)

    def __call__(self, weights: Weights) -> Tensor:
        """Project tensors with `width` numbers in all, in the order of their names, to a vector [dimensions]."""
        flat = torch.cat([weights[name].flatten() for name in sorted(weights)])
        return flat.new_zeros(self.dimensions).index_add(0, self.place, self.sign * flat)


class LoraDerivatives:
    """Gradient and Hessian-vector product by the adapter's weights, projected to `gradient.dimensions` numbers."""

    chunk = 64  # samples to read at a time

    def __init__(self, policy: Policy, by_state: HiddenStateDerivatives, samples: Path, catalogue: Path) -> None:
        """by_state: holds the items, whitening and settings, and computes the embeddings. Raises InputError."""
        self.policy, self.by_state, self.settings = policy, by_state, by_state.settings
        self.samples, self.catalogue = samples, catalogue
        self.loss = ItemLoss(policy, by_state.items.to(policy.device), by_state.whitening)
        self.weights = {name: p.detach() for name, p in self.loss.named_parameters() if "lora_" in name}
        if not self.weights:
            raise InputError("the adapter has no LoRA weights; train the proxy again")
        self.width = self.settings.dimensions
        count = sum(p.numel() for p in self.weights.values())
        self.project = Projection(count, self.width, self.settings.seed, policy.device)
        self.titles = splits.titles(catalogue)

    def __call__(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradient g and product Hg [k, dimensions], error norm [k], embedding z [k, d']; the chunk holds the texts."""
        history = self.policy.settings.prompt_history
        split = splits.of_table(chunk.samples, self.titles, history, self.samples, self.catalogue)
        tokens = chunk.rollouts["tokens"].to_pylist()
        count, groups, device = len(self.loss.items), chunk.advantage.shape[1], self.policy.device
        candidates = sampled_candidates(split.sample_id, count, self.settings.candidates, self.settings.seed)
        projected = []
        for i, prompt in enumerate(self.policy.user_bodies(split.bodies)):
            sample = PackedSample(self.policy, prompt, tokens[i * groups : (i + 1) * groups])
            target, masked, rows = _softmax_rows(
                torch.tensor(split.target[i]),
                torch.from_numpy(split.history[i]),
                count,
                None if candidates is None else candidates[i],
            )
            inputs = (sample, target.to(device), masked.to(device), rows.to(device), chunk.advantage[i].to(device))
            g_and_hv = gradient_and_hvp(self.loss, self.weights, *inputs)
            projected.append([self.project(by_weights).cpu() for by_weights in g_and_hv])
        g, hv = (torch.stack(part).float() for part in zip(*projected, strict=True))
        return g, hv, *self.by_state.error_and_embedding(chunk)


def _softmax_rows(
    target: Tensor, history: Tensor, items: int, candidates: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(target, masked, rows) for `ItemLoss`: all items but the history, or the target and candidates outside it."""
    if candidates is None:
        return target, history, torch.arange(items)
    rows = torch.cat([target[None], candidates[(candidates != target) & ~torch.isin(candidates, history)].unique()])
    return torch.tensor(0), torch.tensor([-1]), rows
