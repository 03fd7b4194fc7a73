"""Gradient g and Hessian-vector product Hg of each sample's item loss by the hidden state, and its error (METHOD 4.4).

A closed form in the hidden states that the rollout kept: a few matrix products, no pass through the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from minirec.experiment import sections
from minirec.model import scoring
from minirec.model.whitening import Whitening
from minirec.training.chunks import Chunk

CHUNK_SCORES = 4_000_000  # item scores in memory at a time, for any number of samples
CHUNK_STATES = 8_000_000  # numbers of hidden states read at a time


def gradient_and_hvp(
    hidden: Tensor,
    items: Tensor,
    target: Tensor,
    *,
    temperature: float,
    advantage: float | Tensor = 1.0,
    exclude: Tensor | None = None,
    candidates: Tensor | None = None,
    metric: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient g [n, d] and Hessian-vector product Hw [n, d] of the item loss -A pi / stopgrad(pi) by hidden h [n, d].

    w is g, or g @ metric [d, d] where that is given. With ĥ = h / |h|, unit items e_j, c_j = ĥ·e_j, s_j = c_j / tau,
    p = softmax(s), y the target and a = e_y - sum_j p_j e_j (METHOD 4.4, derivatives by the hidden state):

        grad log pi = (a - (a·ĥ) ĥ) / (tau |h|), g = -A grad log pi, Hw = -A (Lw + (grad log pi · w) grad log pi)
        Lw = -((a·w) ĥ + (ĥ·w) a + (a·ĥ) w - 3 (a·ĥ) (ĥ·w) ĥ) / (tau |h|^2) - sum_j q_j grad s_j    (L = hess log pi)
        q_j = p_j (k_j - sum_i p_i k_i), k_j = grad s_j · w

    items [m, d] are normalised here; target [n] holds rows of items; advantage A is a number or [n]; exclude [n, w]
    holds rows to mask, padded with -1 (a target is never masked); candidates [n, s] holds the rows that make up pi
    besides the target. Returns the type of hidden. A zero hidden state has zero derivatives.

    >>> hidden, items = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    >>> g, hv = gradient_and_hvp(hidden, items, torch.tensor([1]), temperature=1.0)
    >>> g  # (0, pi - 1), where pi of the target is 1 / (1 + e)
    tensor([[-0.0000, -0.7311]])
    """
    return derivatives_and_error(hidden, items, target, temperature, advantage, exclude, candidates, metric)[:2]


def derivatives_and_error(
    hidden: Tensor,
    items: Tensor,
    target: Tensor,
    temperature: float,
    advantage: float | Tensor = 1.0,
    exclude: Tensor | None = None,
    candidates: Tensor | None = None,
    metric: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `gradient_and_hvp`, and the error norm [n], 0 to sqrt(2): |p - e_y|, e_y one-hot (METHOD 4.6, `el2n`)."""
    n, m = len(hidden), len(items)
    unit = normalize(items, dim=-1)
    if exclude is None:
        exclude = torch.full((n, 1), -1, dtype=torch.long, device=hidden.device)
    advantage = torch.as_tensor(advantage, dtype=hidden.dtype, device=hidden.device).expand(n)
    g, hv, error = torch.empty_like(hidden), torch.empty_like(hidden), hidden.new_empty(n)
    width = m if candidates is None else (candidates.shape[1] + 1) * hidden.shape[1]
    for rows in torch.arange(n).split(max(1, CHUNK_SCORES // width)):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        if candidates is None:
            e, y, masked = unit, target[part], exclude[part]
        else:
            chosen = torch.cat([target[part, None], candidates[part]], 1)
            e, y = unit[chosen], torch.zeros(len(chosen), dtype=torch.long, device=hidden.device)
            out = (chosen[:, :, None] == exclude[part][:, None, :]).any(-1) | _repeated(chosen)
            masked = torch.where(out, torch.arange(chosen.shape[1], device=hidden.device), -1)
        g[part], hv[part], error[part] = _derivatives(
            hidden[part], e, y, masked, temperature, advantage[part, None], metric
        )
    return g, hv, error


def _derivatives(
    h: Tensor, e: Tensor, y: Tensor, masked: Tensor, tau: float, advantage: Tensor, metric: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Formulas of `gradient_and_hvp`, and the error; y [n] < m; unit items e [m, d], or [n, m, d] of each state."""
    length = h.norm(dim=-1, keepdim=True)
    h_unit = h / length.clamp(min=torch.finfo(h.dtype).tiny)
    c = _dot(e, h_unit)
    p = scoring.mask(c / tau, masked, y).softmax(1).scatter(1, y[:, None], 0)
    e_y = e[y] if e.dim() == 2 else e[torch.arange(len(h)), y]
    scale = 1 / (tau * length)
    # e_y's weight in a, 1 - p_y, is the sum of the other p: computed so, no digits cancel where p_y is close to 1
    a = p.sum(1, keepdim=True) * e_y - _mean(p, e)
    a_h = (a * h_unit).sum(-1, keepdim=True)
    grad_log_pi = scale * (a - a_h * h_unit)
    g = -advantage * grad_log_pi
    w = g if metric is None else g @ metric
    h_w = (h_unit * w).sum(-1, keepdim=True)
    a_w = (a * w).sum(-1, keepdim=True)
    hess_fixed_p = -scale / length * (h_unit * a_w + a * h_w + a_h * w - 3 * a_h * h_w * h_unit)
    # as in a, everything is relative to the target, so that its own p, close to 1, takes no part
    k = _minus_target(scale * (_dot(e, w) - c * h_w), y)
    q = p * (k - (p * k).sum(1, keepdim=True))
    q_c = (q * _minus_target(c, y)).sum(1, keepdim=True)
    covariance = scale * (_mean(q, e) - q.sum(1, keepdim=True) * e_y - q_c * h_unit)
    hv = -advantage * (hess_fixed_p - covariance + grad_log_pi * (grad_log_pi * w).sum(-1, keepdim=True))
    zero = length == 0
    error = (p.square().sum(1) + p.sum(1).square()).sqrt()
    return g.masked_fill(zero, 0), hv.masked_fill(zero, 0), error


def _minus_target(values: Tensor, y: Tensor) -> Tensor:
    """Values [n, m] minus the value of the row's target y [n]."""
    return values - values.gather(1, y[:, None])


def _dot(e: Tensor, x: Tensor) -> Tensor:
    """Inner products [n, m] of x [n, d] with the items."""
    return x @ e.T if e.dim() == 2 else (e @ x[:, :, None]).squeeze(2)


def _mean(weight: Tensor, e: Tensor) -> Tensor:
    """Sum [n, d] of the items, weighted by [n, m]."""
    return weight @ e if e.dim() == 2 else (weight[:, None, :] @ e).squeeze(1)


def _repeated(rows: Tensor) -> Tensor:
    """Which entries [n, s] repeat an entry further left in their row."""
    order = rows.sort(dim=1, stable=True)
    again = torch.zeros_like(rows, dtype=torch.bool)
    again[:, 1:] = order.values[:, 1:] == order.values[:, :-1]
    return torch.zeros_like(again).scatter(1, order.indices, again)


def whitening_jacobian(whitening: Whitening, device: torch.device | str = "cpu") -> tuple[Tensor | None, Tensor | None]:
    """Components C [d, d'] of the user-side whitening x -> (x - mean) C, and the metric C^T C [d', d'].

    By the chain rule (METHOD 4.4, derivatives before whitening) a derivative by x is the one by (x - mean) C, computed
    with that metric, times C^T. (None, None) without whitening.
    """
    if not whitening.arrays:
        return None, None
    components = torch.from_numpy(whitening.arrays["user_components"]).to(device)
    return components, components.T @ components


def sampled_candidates(sample_id: np.ndarray, items: int, count: int | None, seed: int) -> Tensor | None:
    """Random catalogue rows [n, count], determined by (seed, sample_id); None if pi is over all items."""
    if count is None or count >= items:
        return None
    rows = [np.random.default_rng([seed, int(sample)]).choice(items, count, replace=False) for sample in sample_id]
    return torch.from_numpy(np.array(rows))


@dataclass(frozen=True)
class HiddenStateDerivatives:
    """Gradient and Hessian-vector product by the hidden state before whitening, averaged over the G completions.

    The samples are computed in blocks that begin at multiples of `block`, whatever chunks they are read in: the last
    bits of a matrix product depend on its shape, and the results must not depend on the chunks.
    """

    items: Tensor  # [m, d'], whitened
    whitening: Whitening
    temperature: float
    settings: sections.Gradient
    shape: tuple[int, ...]  # (n, G, d) of all hidden states

    @property
    def width(self) -> int:
        """Size of a sample's gradient, d."""
        return self.shape[-1]

    @property
    def block(self) -> int:
        """Number of samples that are computed together."""
        n, groups, width = self.shape
        candidates = self.settings.candidates
        scores = len(self.items) if candidates is None else (candidates + 1) * self.items.shape[1]
        return max(1, min(n, CHUNK_SCORES // max(scores, groups * width)))

    @property
    def chunk(self) -> int:
        """Number of samples to read at a time: a multiple of `block` if that fits into memory."""
        size = max(1, CHUNK_STATES // (self.shape[1] * self.shape[2]))
        return size - size % min(self.block, size)

    def __call__(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradient g [k, d], product Hg [k, d], error norm [k], and embedding z [k, d'] (METHOD 4.5, diversity)."""
        components, metric = whitening_jacobian(self.whitening, self.items.device)
        candidates = self._candidates(chunk)
        results = []
        for of_chunk, padded, states in self._blocks(chunk):
            g, hv, error = self._means(
                states,
                padded(chunk.target),
                padded(chunk.advantage),
                padded(chunk.history),
                None if candidates is None else padded(candidates),
                metric,
            )
            if components is not None:
                g, hv = g @ components.T, hv @ components.T
            results.append([value[of_chunk].cpu() for value in (g, hv, error, states.mean(0))])
        g, hv, error, z = (torch.cat(part) for part in zip(*results, strict=True))
        return g, hv, error, z

    def error_and_embedding(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Error norm [k] and embedding z [k, d'] alone, each averaged over the completions."""
        device, candidates = self.items.device, self._candidates(chunk)
        states = torch.stack([self.whitening.user(h.to(device)) for h in chunk.hidden.unbind(1)])
        given = (chunk.target.to(device), chunk.advantage.to(device), chunk.history.to(device))
        error = self._means(states, *given, None if candidates is None else candidates.to(device), None)[2]
        return error.cpu(), states.mean(0).cpu()

    def _candidates(self, chunk: Chunk) -> Tensor | None:
        return sampled_candidates(chunk.sample_id, len(self.items), self.settings.candidates, self.settings.seed)

    def _means(
        self,
        states: Tensor,
        target: Tensor,
        advantage: Tensor,
        history: Tensor,
        candidates: Tensor | None,
        metric: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """`derivatives_and_error` averaged over the completions; states [G, k, d'] whitened, advantage [k, G]."""
        by_completion = [
            derivatives_and_error(h, self.items, target, self.temperature, a, history, candidates, metric)
            for h, a in zip(states, advantage.unbind(1), strict=True)
        ]
        return tuple(torch.stack(part).mean(0) for part in zip(*by_completion, strict=True))

    def _blocks(self, chunk: Chunk) -> Iterator[tuple[slice, Callable[..., Tensor], Tensor]]:
        """The blocks that a chunk is part of, each with the block's rows that belong to the chunk, a function that
        pads values of the chunk to the block, and the whitened states [G, block, d'].
        """
        for first in range(chunk.begin // self.block * self.block, chunk.begin + len(chunk), self.block):
            rows = slice(max(first - chunk.begin, 0), min(first + self.block - chunk.begin, len(chunk)))
            before = chunk.begin + rows.start - first
            length = min(self.block, self.shape[0] - first)
            padded = partial(_padded, rows=rows, before=before, length=length, device=self.items.device)
            states = torch.stack([self.whitening.user(padded(h)) for h in chunk.hidden.unbind(1)])
            yield slice(before, before + rows.stop - rows.start), padded, states


def _padded(values: Tensor, rows: slice, before: int, length: int, device: torch.device) -> Tensor:
    """Put rows of `values` into a block [length, ...] after `before` others; everything else in it is 0."""
    block = torch.zeros(length, *values.shape[1:], dtype=values.dtype, device=device)
    block[before : before + rows.stop - rows.start] = values[rows].to(device)
    return block
