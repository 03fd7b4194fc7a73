"""gradient: what each sample would do to the policy, from the kept hidden states alone (METHOD 4.4, 4.5).

The item loss is a closed form of the hidden state, so its gradient and Hessian-vector product need a few matrix
products and no pass through the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from minirec.data import splits
from minirec.errors import InputError
from minirec.experiment import config
from minirec.model import scoring
from minirec.model.whitening import Whitening
from minirec.progress import progress
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance
from minirec.storage.stream import Stream

CHUNK_SCORES = 4_000_000  # scores held at a time: bounds memory for any number of samples
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
    """Gradient g and Hessian-vector product H g of the item loss in ratio form by hidden (METHOD 4.4).

    hidden [n, d], items [m, d] (normalised inside), target [n]; advantage a number or [n]; exclude [n, w] rows to mask,
    -1 padded (a target is never masked); candidates [n, s] rows that make up pi besides the target.
    metric [d, d] gives H (metric g) instead: with hidden = x C, C^T C makes it the product by x (`whitening_jacobian`).
    Returns (g [n, d], hv [n, d]) in the type of hidden. A zero hidden state has zero derivatives.
    """
    n, m = len(hidden), len(items)
    unit = normalize(items, dim=-1)
    if exclude is None:
        exclude = torch.full((n, 1), -1, dtype=torch.long, device=hidden.device)
    amount = torch.as_tensor(advantage, dtype=hidden.dtype, device=hidden.device).expand(n)
    g, hv = torch.empty_like(hidden), torch.empty_like(hidden)
    width = m if candidates is None else (candidates.shape[1] + 1) * hidden.shape[1]
    for rows in torch.arange(n).split(max(1, CHUNK_SCORES // width)):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        if candidates is None:
            goods, column, masked = unit, target[part], exclude[part]
        else:
            chosen = torch.cat([target[part, None], candidates[part]], 1)
            goods, column = unit[chosen], torch.zeros(len(chosen), dtype=torch.long, device=hidden.device)
            out = (chosen[:, :, None] == exclude[part][:, None, :]).any(-1) | _repeated(chosen)
            masked = torch.where(out, torch.arange(chosen.shape[1], device=hidden.device), -1)
        g[part], hv[part] = _derivatives(hidden[part], goods, column, masked, temperature, amount[part], metric)
    return g, hv


def _derivatives(
    x: Tensor, unit: Tensor, column: Tensor, masked: Tensor, tau: float, amount: Tensor, metric: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of -A rho, rho = pi / stopgrad(pi), pi the softmax of cos(x, item) / tau; unit [m, d] or [n, m, d]."""
    length = x.norm(dim=-1, keepdim=True)
    direction = x / length.clamp(min=torch.finfo(x.dtype).tiny)
    cosine = _dot(unit, direction)
    p = scoring.mask(cosine / tau, masked, column).softmax(1).scatter(1, column[:, None], 0)
    own = unit[column] if unit.dim() == 2 else unit[torch.arange(len(x)), column]
    scale = 1 / (tau * length)
    # the target's own weight is minus the sum of the others': said so, nothing cancels where pi is close to 1
    rise = p.sum(1, keepdim=True) * own - _mean(p, unit)
    slope = (rise * direction).sum(-1, keepdim=True)
    up = scale * (rise - slope * direction)  # gradient of log pi
    g = -amount[:, None] * up
    v = g if metric is None else g @ metric
    along = (direction * v).sum(-1, keepdim=True)
    bend = (
        -scale
        / length
        * (direction * (rise * v).sum(-1, keepdim=True) + rise * along + slope * v - 3 * slope * along * direction)
    )
    change = _from(scale * (_dot(unit, v) - cosine * along), column)
    weight = p * (change - (p * change).sum(1, keepdim=True))
    turn = (weight * _from(cosine, column)).sum(1, keepdim=True)
    spread = scale * (_mean(weight, unit) - weight.sum(1, keepdim=True) * own - turn * direction)
    hv = -amount[:, None] * (bend - spread + up * (up * v).sum(-1, keepdim=True))
    zero = length == 0
    return g.masked_fill(zero, 0), hv.masked_fill(zero, 0)


def _from(values: Tensor, column: Tensor) -> Tensor:
    """Values [n, m] less the target's own."""
    return values - values.gather(1, column[:, None])


def _dot(unit: Tensor, x: Tensor) -> Tensor:
    return x @ unit.T if unit.dim() == 2 else (unit @ x[:, :, None]).squeeze(2)


def _mean(weight: Tensor, unit: Tensor) -> Tensor:
    return weight @ unit if unit.dim() == 2 else (weight[:, None, :] @ unit).squeeze(1)


def _repeated(rows: Tensor) -> Tensor:
    """Entries [n, s] that stand further left in their row, too."""
    order = rows.sort(dim=1, stable=True)
    again = torch.zeros_like(rows, dtype=torch.bool)
    again[:, 1:] = order.values[:, 1:] == order.values[:, :-1]
    return torch.zeros_like(again).scatter(1, order.indices, again)


def whitening_jacobian(whitening: Whitening, device: torch.device | str = "cpu") -> tuple[Tensor | None, Tensor | None]:
    """(C, C^T C) of the whitening x -> (x - mean) C, or (None, None)."""
    if not whitening.arrays:
        return None, None
    components = torch.from_numpy(whitening.arrays["user_components"]).to(device)
    return components, components.T @ components


@dataclass(frozen=True)
class Chunk:
    """Some samples that follow each other, and where they begin among all."""

    begin: int
    sample_id: np.ndarray  # [k]
    hidden: Tensor  # [k, G, d]
    target: Tensor  # [k]
    history: Tensor  # [k, w], padded with -1
    advantage: Tensor  # [k, G]

    def __len__(self) -> int:
        return len(self.sample_id)


def chunks(
    samples: Path, rollouts: Path, hidden: Path, shape: tuple[int, ...], advantage: str, size: int
) -> Iterator[Chunk]:
    """All samples of a rollout, `size` at a time; raises InputError where the three files do not fit together."""
    n, groups, _ = shape
    facts = Stream("samples", samples, ["sample_id", "target_row", "history_rows"])
    tried = Stream("rollouts", rollouts, ["sample_id", "completion", "advantage"])
    for begin in range(0, n, size):
        end = min(begin + size, n)
        sample_id = tensors.read_rows(hidden, "sample_id", begin, end)
        table = facts.until(int(sample_id[-1]))
        table = table.take(tensors.rows_of(tables.numpy(table, "sample_id"), sample_id, samples))
        judged = tried.take(groups * len(sample_id))
        if not np.array_equal(tables.numpy(judged, "sample_id"), np.repeat(sample_id, groups)):
            raise InputError(f"{rollouts} and {hidden} hold different samples; run rollout again")
        amount = torch.ones(len(sample_id), groups)
        if advantage == "group":
            amount = torch.from_numpy(tables.numpy(judged, "advantage").copy()).view(-1, groups)
        yield Chunk(
            begin,
            sample_id,
            torch.from_numpy(tensors.read_rows(hidden, "hidden", begin, end)),
            torch.from_numpy(tables.numpy(table, "target_row").astype(np.int64)),
            torch.from_numpy(splits.padded(table["history_rows"].combine_chunks())),
            amount,
        )
    if tried.take(1).num_rows:
        raise InputError(f"{rollouts} and {hidden} hold different samples; run rollout again")


@dataclass(frozen=True)
class HiddenStateDerivatives:
    """Derivatives by the hidden state before whitening.

    Rows are computed in blocks that begin at the multiples of `size`, whatever chunk they come in: the last bits of a
    matrix product depend on its shape, those of a sample on nothing but its place among all.
    """

    items: Tensor
    whitening: Whitening
    temperature: float
    settings: config.Gradient
    count: int  # of all samples
    size: int

    def __call__(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
        """(g [k, d], Hv [k, d], z [k, d']), each averaged over the completions."""
        components, metric = whitening_jacobian(self.whitening, self.items.device)
        candidates = sampled_candidates(chunk.sample_id, len(self.items), self.settings.candidates, self.settings.seed)
        found = []
        for kept, place, states in self._blocks(chunk):
            by_x = [
                gradient_and_hvp(
                    x,
                    self.items,
                    place(chunk.target),
                    temperature=self.temperature,
                    advantage=place(chunk.advantage[:, completion]),
                    exclude=place(chunk.history, fill=-1),
                    candidates=None if candidates is None else place(candidates),
                    metric=metric,
                )
                for completion, x in enumerate(states)
            ]
            g, hv = (torch.stack(part).mean(0) for part in zip(*by_x, strict=True))
            if components is not None:
                g, hv = g @ components.T, hv @ components.T
            found.append([value[kept].cpu() for value in (g, hv, states.mean(0))])
        g, hv, z = (torch.cat(part) for part in zip(*found, strict=True))
        return g, hv, z

    def embedding(self, chunk: Chunk) -> Tensor:
        """z [k, d'] alone."""
        return torch.cat([states.mean(0)[kept].cpu() for kept, _, states in self._blocks(chunk)])

    def _blocks(self, chunk: Chunk) -> Iterator[tuple[slice, Callable[..., Tensor], Tensor]]:
        """Of each block: which of its rows are the chunk's, what puts the chunk's values there, whitened states."""
        for first in range(chunk.begin // self.size * self.size, chunk.begin + len(chunk), self.size):
            rows = slice(max(first - chunk.begin, 0), min(first + self.size - chunk.begin, len(chunk)))
            before = chunk.begin + rows.start - first
            length = min(self.size, self.count - first)
            place = partial(_placed, rows=rows, before=before, length=length, device=self.items.device)
            states = torch.stack([self.whitening.user(place(h)) for h in chunk.hidden.unbind(1)])
            yield slice(before, before + rows.stop - rows.start), place, states


def _placed(values: Tensor, rows: slice, before: int, length: int, device: torch.device, fill: float = 0) -> Tensor:
    """These rows of the values in a block of `length` rows on a device, after `before` others that hold `fill`."""
    block = torch.full((length, *values.shape[1:]), fill, dtype=values.dtype, device=device)
    block[before : before + rows.stop - rows.start] = values[rows].to(device)
    return block


def run(
    *,
    policy: config.Policy,
    gradient: config.Gradient,
    samples: Path,
    items: Path,
    whitening: Path,
    rollouts: Path,
    hidden: Path,
    catalogue: Path | None,
    model: Path | None,
    adapter: Path | None,
    gradients: Path,
    embeddings: Path,
) -> None:
    """Write g and Hv by the hidden state before whitening or by the adapter, and the embeddings z, of every sample."""
    shape = tensors.shapes(hidden, "sample_id", "hidden")["hidden"]
    n, groups, width = shape
    whiten = Whitening.read(whitening, adapter)
    goods = torch.from_numpy(tensors.read(items, "items")["items"])
    goods = goods.to("cuda" if torch.cuda.is_available() else "cpu")
    scores = len(goods) if gradient.candidates is None else (gradient.candidates + 1) * goods.shape[1]
    size = max(1, min(n, CHUNK_SCORES // max(scores, groups * width)))
    step = 64 if gradient.space == "lora" else max(1, CHUNK_STATES // (groups * width))
    inputs = {"samples": samples, "items": items, "whitening": whitening, "rollouts": rollouts, "hidden": hidden}
    space = HiddenStateDerivatives(goods, whiten, policy.tau, gradient, n, size)
    derive: Callable[[Chunk], tuple[Tensor, Tensor, Tensor]] = space
    if gradient.space == "lora":
        if catalogue is None or model is None or adapter is None:
            raise InputError("gradient --space lora needs --catalogue, --model and --adapter")
        from minirec.model.policy import Policy
        from minirec.training.lora_derivatives import LoraDerivatives

        inputs |= {"catalogue": catalogue, "model": model, "adapter": adapter}
        by_adapter = LoraDerivatives(
            Policy.load(model, policy, adapter), goods, whiten, gradient, samples, catalogue, rollouts
        )
        width = gradient.dimensions

        def derive(chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
            candidates = sampled_candidates(chunk.sample_id, len(goods), gradient.candidates, gradient.seed)
            return *by_adapter(chunk.sample_id, chunk.advantage, candidates), space.embedding(chunk)

    made = Provenance("gradient", {"tau": policy.tau} | gradient.model_dump(), inputs)
    with (
        tensors.writer({"gradient": (n, width), "hvp": (n, width)}, gradients, made) as append,
        tensors.writer({"embedding": (n, goods.shape[1])}, embeddings, made) as append_embedding,
        progress("gradient", n, "samples") as bar,
    ):
        for chunk in chunks(samples, rollouts, hidden, shape, gradient.advantage, step - step % min(size, step)):
            if (last := max(int(chunk.target.max()), int(chunk.history.max()))) >= len(goods):
                raise InputError(f"{samples} refers to row {last}, beyond the {len(goods)} of {items}; run embed again")
            g, hv, z = derive(chunk)
            append(sample_id=chunk.sample_id, gradient=g.numpy(), hvp=hv.numpy())
            append_embedding(sample_id=chunk.sample_id, embedding=z.numpy())
            bar.add(len(chunk))


def sampled_candidates(sample_id: np.ndarray, items: int, count: int | None, seed: int) -> Tensor | None:
    """Uniformly sampled catalogue rows [n, count], a function of (seed, sample); None where all items are used."""
    if count is None or count >= items:
        return None
    rows = [np.random.default_rng([seed, int(sample)]).choice(items, count, replace=False) for sample in sample_id]
    return torch.from_numpy(np.array(rows))
