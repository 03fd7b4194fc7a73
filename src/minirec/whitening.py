"""Whitening of the user and the item side: a mean and a PCA each, fitted once on the base model (METHOD 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minirec import tensors
from minirec.errors import InputError
from minirec.schemas import Made


@dataclass(frozen=True)
class Whitening:
    """Two affine maps, (x - mean) @ components, or none."""

    arrays: dict[str, np.ndarray]  # user_mean [d], user_components [d, k], item_mean, item_components; or empty

    @classmethod
    def identity(cls) -> Whitening:
        """No whitening."""
        return cls({})

    @classmethod
    def fit(cls, user: np.ndarray, item: np.ndarray, dim: int) -> Whitening:
        """Fit both sides, [n, d] and [m, d], to `dim` dimensions of unit variance.

        Raises InputError where the data has fewer dimensions than that.
        """
        arrays = {}
        for side, values in (("user", user), ("item", item)):
            arrays[f"{side}_mean"], arrays[f"{side}_components"] = _fit(side, values.astype(np.float64), dim)
        return cls(arrays)

    @classmethod
    def read(cls, path: Path) -> Whitening:
        """From whitening.safetensors."""
        arrays = tensors.read(path)
        arrays.pop("whitened")
        return cls(arrays)

    def write(self, path: Path, made: Made) -> None:
        """To whitening.safetensors."""
        tensors.write({"whitened": np.array([bool(self.arrays)]), **self.arrays}, path, made)

    def user(self, x: Tensor) -> Tensor:
        """The whitened user side of [..., d]; differentiable."""
        return self._apply("user", x)

    def item(self, x: Tensor) -> Tensor:
        """The whitened item side of [..., d]; differentiable."""
        return self._apply("item", x)

    def _apply(self, side: str, x: Tensor) -> Tensor:
        if not self.arrays:
            return x
        mean = torch.as_tensor(self.arrays[f"{side}_mean"], dtype=x.dtype, device=x.device)
        return (x - mean) @ torch.as_tensor(self.arrays[f"{side}_components"], dtype=x.dtype, device=x.device)


def _fit(side: str, values: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    mean = values.mean(0)
    _, spread, directions = np.linalg.svd(values - mean, full_matrices=False)
    rank = int((spread > spread[:1] * 1e-6).sum())
    if rank < dim:
        raise InputError(
            f"policy.whiten_dim is {dim}, but the {side} side spans only {rank} dimensions; lower it or embed more"
        )
    directions, spread = directions[:dim], spread[:dim] / np.sqrt(len(values))
    signs = np.sign(directions[np.arange(dim), np.abs(directions).argmax(1)])  # the largest entry is positive
    return mean.astype(np.float32), (directions * signs[:, None] / spread[:, None]).T.astype(np.float32)
