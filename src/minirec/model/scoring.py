"""Scores of the items for a user's state, and the rank and probability of the target (METHOD 2: score; 3: reward)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from minirec.errors import NotFinite

SCORES = 2**24  # in memory at a time, whatever the size of the catalogue


def scores(h: Tensor, items: Tensor, tau: float) -> Tensor:
    """Score [n, m] of every item for every state: cosine of h [n, d] and items [m, d], divided by the temperature tau.

    >>> scores(torch.tensor([[2.0, 0.0]]), torch.eye(2), tau=0.5).tolist()
    [[2.0, 0.0]]
    """
    return normalize(h, dim=-1) @ normalize(items, dim=-1).T / tau


def mask(scores: Tensor, exclude: Tensor, keep: Tensor | None = None) -> Tensor:
    """Set scores [n, m] to minus infinity at the rows `exclude` [n, w], padded with -1, but never at `keep` [n].

    >>> mask(torch.zeros(1, 4), torch.tensor([[0, 2]]), keep=torch.tensor([2])).tolist()
    [[-inf, 0.0, 0.0, 0.0]]
    """
    out = torch.zeros(scores.shape[0], scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    out.scatter_(1, torch.where(exclude < 0, scores.shape[1], exclude), True)
    out = out[:, :-1]
    if keep is not None:
        out.scatter_(1, keep[:, None], False)
    return scores.masked_fill(out, -torch.inf)


def ranks(scores: Tensor, target: Tensor, exclude: Tensor) -> Tensor:
    """Rank [n] of each target [n] by the scores [n, m], 1 is best; of equal scores the lower row comes first.

    exclude [n, w]: rows of the history, padded with -1, which do not count. Raises NotFinite if a score is not finite:
    every comparison with it is false, so its target would come first.

    >>> ranks(torch.tensor([[0.9, 0.7, 0.7, 0.1]]), target=torch.tensor([2]), exclude=torch.tensor([[0]])).tolist()
    [2]
    """
    _require_finite(scores)
    allowed = mask(scores, exclude, target)
    of_target = allowed.gather(1, target[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < target[:, None]
    return 1 + (allowed > of_target).sum(1) + ((allowed == of_target) & lower).sum(1)


def best(scores: Tensor, exclude: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows [n, count] with the largest scores, best first, -1 where fewer remain; and their scores.

    exclude [n, w]: rows of the history, padded with -1, which are never recommended. Of equal scores the lower row
    comes first. Raises NotFinite as `ranks` does.

    >>> rows, _ = best(torch.tensor([[0.7, 0.9, 0.7]]), exclude=torch.tensor([[1]]), count=3)
    >>> rows.tolist()
    [[0, 2, -1]]
    """
    _require_finite(scores)
    ordered = mask(scores, exclude).sort(dim=1, descending=True, stable=True)
    values = ordered.values[:, :count]
    return ordered.indices[:, :count].masked_fill(values == -torch.inf, -1), values


def log_pi(scores: Tensor, target: Tensor, exclude: Tensor) -> Tensor:
    """Log-probability [n] of each target [n]: softmax of the scores [n, m] without the rows `exclude` [n, w]."""
    return mask(scores, exclude, target).log_softmax(1).gather(1, target[:, None]).squeeze(1)


def _require_finite(scores: Tensor) -> None:
    if not scores.isfinite().all():
        raise NotFinite("the policy's scores are not finite, so nothing can be ranked")
