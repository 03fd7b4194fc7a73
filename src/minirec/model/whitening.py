"""Whitening of the user and the item side: a mean each and one PCA, fitted once on the base model (METHOD 2).

The axes are shared: two PCAs would leave no relation between the sides, and cosines between them would be noise. A head
that training puts on top is one more linear map, so a trained whitening is a whitening whose sides differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minirec.errors import InputError
from minirec.storage import tensors
from minirec.storage.artefact import Provenance

WHITENING = "whitening.safetensors"  # in the folder of an adapter: that of the base model, the trained head after it
MEANS = ("user_mean", "item_mean")
COMPONENTS = ("user_components", "item_components")


@dataclass(frozen=True)
class Whitening:
    """Two affine maps, (x - mean) @ components, or none."""

    arrays: dict[str, np.ndarray]  # user_mean [d], user_components [d, k], and the same of the items; or empty

    @classmethod
    def identity(cls) -> Whitening:
        """No whitening."""
        return cls({})

    @classmethod
    def fit(cls, user: np.ndarray, item: np.ndarray, dim: int, power: float = 1.0) -> Whitening:
        """Fit both sides, [n, d] and [m, d], to `dim` dimensions, each divided by its spread to the `power`.

        At 1 the sides together have unit variance in each; at 0 this is a PCA. Each side weighs the same. Raises
        InputError where the data has fewer dimensions than that.
        """
        means, centred = [], []
        for side in (user, item):
            values = side.astype(np.float64)
            means.append(values.mean(0))
            centred.append((values - means[-1]) / np.sqrt(2 * len(values)))
        _, spread, directions = np.linalg.svd(np.concatenate(centred), full_matrices=False)
        rank = int((spread > spread[:1] * 1e-6).sum())
        if rank < dim:
            raise InputError(
                f"policy.whiten_dim is {dim}, but users and items span only {rank} dimensions; lower it or embed more"
            )
        directions, spread = directions[:dim], spread[:dim]
        signs = np.sign(directions[np.arange(dim), np.abs(directions).argmax(1)])  # the largest entry is positive
        components = (directions * signs[:, None] / spread[:, None] ** power).T
        arrays = {"user_mean": means[0], "item_mean": means[1]} | dict.fromkeys(COMPONENTS, components)
        return cls({name: array.astype(np.float32) for name, array in arrays.items()})

    def compose(self, user: np.ndarray, item: np.ndarray) -> Whitening:
        """This whitening and after it a linear map of each side [k, k]; x [k] @ map."""
        if not self.arrays:
            nowhere = np.zeros(len(user), user.dtype)
            return Whitening(dict(zip(MEANS + COMPONENTS, (nowhere, nowhere, user, item), strict=True)))
        mapped = {name: self.arrays[name] @ after for name, after in zip(COMPONENTS, (user, item), strict=True)}
        return Whitening(self.arrays | mapped)

    @classmethod
    def read(cls, path: Path, adapter: Path | None = None) -> Whitening:
        """From whitening.safetensors; raises InputError where it is not the one that an adapter was trained with."""
        arrays = tensors.read(path)
        arrays.pop("whitened")
        if adapter is not None and (adapter / WHITENING).is_file():
            own = cls.read(adapter / WHITENING).arrays
            if own.keys() != arrays.keys() or not all(np.array_equal(own[name], arrays[name]) for name in own):
                raise InputError(f"{path} is not the whitening of {adapter}; take {adapter / WHITENING}")
        return cls(arrays)

    def write(self, path: Path, made: Provenance) -> None:
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
