"""gradient: what each sample would do to the policy, from the kept hidden states alone (METHOD 4.4, 4.5).

The item loss is a closed form of the hidden state, so its gradient and Hessian-vector product need a few matrix
products and no pass through the language model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from minirec import config, rewards, schemas, splits, tensors
from minirec.artefact import Made
from minirec.progress import progress
from minirec.whitening import Whitening

CHUNK_SCORES = 4_000_000  # scores held at a time: bounds memory for any number of samples


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
    metric [d, d] gives H (metric g) instead: with hidden = x C, C^T C makes it the product by x, see `through`.
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
    p = rewards.mask(cosine / tau, masked, column).softmax(1).scatter(1, column[:, None], 0)
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


def through(whitening: Whitening) -> tuple[Tensor | None, Tensor | None]:
    """(C, C^T C) of the whitening x -> (x - mean) C, or (None, None)."""
    if not whitening.arrays:
        return None, None
    components = torch.from_numpy(whitening.arrays["components"])
    return components, components.T @ components


def run(
    *,
    policy: config.Policy,
    gradient: config.Gradient,
    samples: Path,
    items: Path,
    whitening: Path,
    rollouts: Path,
    hidden: Path,
    gradients: Path,
    embeddings: Path,
) -> None:
    """Write g and Hv by the hidden state before whitening, and the embeddings z, each averaged over the completions."""
    states = tensors.read(hidden, "sample_id", "hidden")
    sample_id, h = states["sample_id"], torch.from_numpy(states["hidden"])
    n, groups, width = h.shape
    table = schemas.read("samples", samples, ["sample_id", "target", "history"])
    table = table.take(tensors.rows_of(schemas.numpy(table, "sample_id"), sample_id, samples))
    target = torch.from_numpy(schemas.numpy(table, "target").astype(np.int64))
    history = torch.from_numpy(splits.padded(table["history"].combine_chunks()))
    tried = schemas.read("rollouts", rollouts, ["sample_id", "completion", "advantage"])
    tried = tried.sort_by([("sample_id", "ascending"), ("completion", "ascending")])
    if not np.array_equal(schemas.numpy(tried, "sample_id"), np.repeat(sample_id, groups)):
        raise config.InputError(f"{rollouts} and {hidden} hold different samples; run rollout again")
    amount = torch.ones(n, groups)
    if gradient.advantage == "group":
        amount = torch.from_numpy(schemas.numpy(tried, "advantage").copy()).view(n, groups)
    whiten = Whitening.read(whitening)
    components, metric = through(whiten)
    goods = torch.from_numpy(tensors.read(items, "items")["items"])
    candidates = sampled_candidates(sample_id, len(goods), gradient.candidates, gradient.seed)
    g, hv = torch.zeros(n, width), torch.zeros(n, width)
    z = torch.zeros(n, goods.shape[1])
    with progress("gradient", n * groups, "completions") as bar:
        for completion in range(groups):
            x = whiten.user(h[:, completion])
            by_x = gradient_and_hvp(
                x,
                goods,
                target,
                temperature=policy.tau,
                advantage=amount[:, completion],
                exclude=history,
                candidates=candidates,
                metric=metric,
            )
            for total, value in zip((g, hv), by_x, strict=True):
                total += (value if components is None else value @ components.T) / groups
            z += x / groups
            bar.add(n)
    made = Made(
        "gradient",
        {"tau": policy.tau} | gradient.model_dump(),
        {"samples": samples, "items": items, "whitening": whitening, "rollouts": rollouts, "hidden": hidden},
    )
    tensors.write({"sample_id": sample_id, "gradient": g.numpy(), "hvp": hv.numpy()}, gradients, made)
    tensors.write({"sample_id": sample_id, "embedding": z.numpy()}, embeddings, made)


def sampled_candidates(sample_id: np.ndarray, items: int, count: int | None, seed: int) -> Tensor | None:
    """Uniformly sampled catalogue rows [n, count], a function of (seed, sample); None where all items are used."""
    if count is None or count >= items:
        return None
    rows = [np.random.default_rng([seed, int(sample)]).choice(items, count, replace=False) for sample in sample_id]
    return torch.from_numpy(np.array(rows))
