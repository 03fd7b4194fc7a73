"""The head: a linear map after the whitening that training learns beside the adapter (METHOD 2).

It begins as the identity. After training it is multiplied into the whitening, so no later stage knows of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minirec.experiment.config import HeadKind
from minirec.model.whitening import Whitening

SIDES: dict[HeadKind, tuple[str, ...]] = {"none": (), "shared": ("both",), "separate": ("user", "item")}


class Head(nn.Module):
    """A whitening and the trained maps [k, k] after it: none, one for both sides, or one for each."""

    def __init__(self, whitening: Whitening, width: int, kind: HeadKind) -> None:
        """width: of the hidden states, d; the size of the maps where nothing is whitened."""
        super().__init__()
        self.whitening = whitening
        size = whitening.arrays["user_components"].shape[1] if whitening.arrays else width
        self.maps = nn.ParameterDict({side: nn.Parameter(torch.eye(size)) for side in SIDES[kind]})

    def user(self, x: Tensor) -> Tensor:
        """The vectors [..., k] of states on the user side [..., d]."""
        return self._mapped("user", self.whitening.user(x))

    def item(self, x: Tensor) -> Tensor:
        """The vectors [..., k] of states on the item side [..., d]."""
        return self.whitened_item(self.whitening.item(x))

    def whitened_item(self, vectors: Tensor) -> Tensor:
        """The same, of item vectors [..., k] that are whitened already."""
        return self._mapped("item", vectors)

    def merged_whitening(self) -> Whitening:
        """Both in one, as trained so far."""
        if not self.maps:
            return self.whitening
        user, item = (self._map(side).detach().cpu().numpy() for side in ("user", "item"))
        return self.whitening.compose(user, item)

    def _map(self, side: str) -> Tensor:
        return self.maps["both" if "both" in self.maps else side]

    def _mapped(self, side: str, vectors: Tensor) -> Tensor:
        return vectors @ self._map(side).to(vectors.dtype) if self.maps else vectors
