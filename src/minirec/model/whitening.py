"""Linear maps of hidden states: the whitening of users and items, and the trained head after it (METHOD 2).

Users and items share the axes of one PCA: with a PCA for each, cosines between a user and an item would be noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from minirec.errors import InputError
from minirec.experiment.sections import HeadKind
from minirec.storage import tensors
from minirec.storage.artefact import Provenance

WHITENING = "whitening.safetensors"  # in an adapter's folder: the base model's whitening times the trained head
MEANS = ("user_mean", "item_mean")
COMPONENTS = ("user_components", "item_components")
SIDES: dict[HeadKind, tuple[str, ...]] = {"none": (), "shared": ("both",), "separate": ("user", "item")}


@dataclass(frozen=True)
class Whitening:
    """A map x -> (x - mean) @ components for user states, and one for item states; without arrays, both do nothing.

    >>> users, items = np.array([[0.0, 9.0], [0.0, 5.0]]), np.array([[3.0, 0.0], [3.0, 4.0]])
    >>> whitening = Whitening.fit(users, items, dim=1)  # users deviate from their mean [0, 7] by 2, items from theirs
    >>> [round(value, 2) for value in whitening.user(torch.tensor([0.0, 9.0])).tolist()]
    [1.0]
    """

    arrays: dict[str, np.ndarray]  # user_mean [d], user_components [d, k], item_mean, item_components; or empty

    @classmethod
    def identity(cls) -> Whitening:
        """No whitening."""
        return cls({})

    @classmethod
    def fit(cls, user: np.ndarray, item: np.ndarray, dim: int, power: float = 1.0) -> Whitening:
        """Fit the map from user states [n, d] and item states [m, d] to `dim` dimensions.

        Subtracts each side's mean, and rotates both by one PCA in which they weigh the same. Then every dimension is
        divided by its standard deviation to the `power`: 1 gives unit variance over both sides, 0 leaves the PCA.
        Raises InputError if the states span fewer than `dim` dimensions.
        """
        means, centred = [], []
        for side in (user, item):
            values = side.astype(np.float64)
            means.append(values.mean(0))
            centred.append((values - means[-1]) / np.sqrt(2 * len(values)))
        _, std, directions = np.linalg.svd(np.concatenate(centred), full_matrices=False)
        rank = int((std > std[:1] * 1e-6).sum())
        if rank < dim:
            raise InputError(
                f"policy.whiten_dim is {dim}, but users and items span only {rank} dimensions; "
                f"set it to at most {rank}, or raise embed.whiten_prompts"
            )
        directions, std = directions[:dim], std[:dim]
        signs = np.sign(directions[np.arange(dim), np.abs(directions).argmax(1)])  # the largest entry is positive
        components = (directions * signs[:, None] / std[:, None] ** power).T
        arrays = {"user_mean": means[0], "item_mean": means[1]} | dict.fromkeys(COMPONENTS, components)
        return cls({name: array.astype(np.float32) for name, array in arrays.items()})

    def compose(self, user: np.ndarray, item: np.ndarray) -> Whitening:
        """This whitening followed by a linear map [k, k] for each side, x @ user or x @ item."""
        if not self.arrays:
            zero = np.zeros(len(user), user.dtype)
            return Whitening(dict(zip(MEANS + COMPONENTS, (zero, zero, user, item), strict=True)))
        mapped = {name: self.arrays[name] @ after for name, after in zip(COMPONENTS, (user, item), strict=True)}
        return Whitening(self.arrays | mapped)

    @classmethod
    def read(cls, path: Path | None, adapter: Path | None = None) -> Whitening:
        """Read the whitening at `path`; without a path, the one in the adapter's folder.

        Raises InputError if both are given and differ, as the adapter was trained for its own.
        """
        if path is None:
            if adapter is None:
                raise InputError("neither --whitening nor --adapter is given; name the one or the other")
            path = adapter / WHITENING
        arrays = tensors.read(path)
        arrays.pop("whitened")
        if adapter is not None and (adapter / WHITENING).is_file():
            trained = cls.read(adapter / WHITENING).arrays
            if trained.keys() != arrays.keys() or not all(np.array_equal(trained[n], arrays[n]) for n in trained):
                raise InputError(f"{path} is not the whitening of {adapter}; take {adapter / WHITENING}")
        return cls(arrays)

    def write(self, path: Path, provenance: Provenance) -> None:
        """Write whitening.safetensors."""
        tensors.write({"whitened": np.array([bool(self.arrays)]), **self.arrays}, path, provenance)

    def size(self, width: int) -> int:
        """Size k of a whitened state; width: size d before."""
        return int(self.arrays["user_components"].shape[1]) if self.arrays else width

    def user(self, x: Tensor) -> Tensor:
        """Whiten user states [..., d] to [..., k]; differentiable."""
        return self._apply("user", x)

    def item(self, x: Tensor) -> Tensor:
        """Whiten item states [..., d] to [..., k]; differentiable."""
        return self._apply("item", x)

    def _apply(self, side: str, x: Tensor) -> Tensor:
        if not self.arrays:
            return x
        mean = torch.as_tensor(self.arrays[f"{side}_mean"], dtype=x.dtype, device=x.device)
        return (x - mean) @ torch.as_tensor(self.arrays[f"{side}_components"], dtype=x.dtype, device=x.device)


class Head(nn.Module):
    """A whitening, then trained linear maps [k, k]: none, one for both sides, or one each; they start as identities.

    Training learns the maps beside the adapter; when it ends they are merged into the whitening (METHOD 2, head).
    """

    def __init__(self, whitening: Whitening, width: int, kind: HeadKind) -> None:
        """width: size d of a hidden state, which is the size of the maps where nothing is whitened."""
        super().__init__()
        self.whitening = whitening
        self.maps = nn.ParameterDict({side: nn.Parameter(torch.eye(whitening.size(width))) for side in SIDES[kind]})

    def user(self, x: Tensor) -> Tensor:
        """Whiten and map user states [..., d] to [..., k]."""
        return self._mapped("user", self.whitening.user(x))

    def item(self, x: Tensor) -> Tensor:
        """Whiten and map item states [..., d] to [..., k]."""
        return self.whitened_item(self.whitening.item(x))

    def whitened_item(self, vectors: Tensor) -> Tensor:
        """Apply the trained item map to item vectors that are already whitened, [..., k]."""
        return self._mapped("item", vectors)

    def merged_whitening(self) -> Whitening:
        """One whitening that does both: its components multiplied by the maps as trained so far."""
        if not self.maps:
            return self.whitening
        user, item = (self._map(side).detach().cpu().numpy() for side in ("user", "item"))
        return self.whitening.compose(user, item)

    def _map(self, side: str) -> Tensor:
        return self.maps["both" if "both" in self.maps else side]

    def _mapped(self, side: str, vectors: Tensor) -> Tensor:
        return vectors @ self._map(side).to(vectors.dtype) if self.maps else vectors
