"""A key-value cache with branches: one prompt, read once, continued by several completions side by side.

A row holds a prompt and its completions. Every completion sees the prompt and itself, never its siblings; an attention
mask says so. Nothing is copied per completion, and the same pass serves generation (a token a branch at a time) and
training (whole completions at once, with gradients).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from minirec.errors import InputError

PROMPT = -1  # branch of tokens that every branch sees


class BranchingCache:
    """Prompts with a shared prefix, ready to be continued; `rows` prompts in a batch."""

    def __init__(self, decoder: Any, prefix: Sequence[int] | Tensor, rows: int, depth: int = 0) -> None:
        """prefix: token ids, or their states [p, d] below the layers of a `LayerSlice`.

        With a depth, `below` holds the states [rows, t, d] under the layer of that number after every call of `extend`.
        """
        self.decoder, self.depth = decoder, depth
        self.windows = _windows(decoder.config)
        self.cache = DynamicCache()  # without the config: it keeps every key, the mask says which are seen
        self.device = next(decoder.parameters()).device
        self.valid = torch.zeros(1, 0, dtype=torch.bool, device=self.device)  # [rows, keys]
        self.branch = torch.zeros(1, 0, dtype=torch.long, device=self.device)  # [rows, keys]
        self.positions = torch.zeros(1, 0, dtype=torch.long, device=self.device)  # [rows, keys]
        if len(prefix):
            given = torch.as_tensor(prefix, device=self.device)[None]
            shape = given.shape[:2]
            everyone = torch.full(shape, PROMPT, device=self.device)
            positions = torch.arange(shape[1], device=self.device)[None]
            self.states = self.extend(
                given, torch.ones(shape, dtype=torch.bool, device=self.device), everyone, positions
            )
            self.cache.batch_repeat_interleave(rows)
        self.valid = self.valid.expand(rows, -1)
        self.branch = self.branch.expand(rows, -1)
        self.positions = self.positions.expand(rows, -1)
        self.length = torch.full((rows,), len(prefix), device=self.device)  # of the prompts

    def read(self, prompts: Sequence[Sequence[int] | Tensor]) -> Tensor:
        """Read the rest of each prompt, ids or states; returns the hidden state at its last token [rows, d].

        `total` then holds the sum of the states at these tokens [rows, d], and their number [rows].
        """
        ids, valid = pad(prompts, self.device)
        positions = self.length[:, None] + torch.arange(ids.shape[1], device=self.device)
        hidden = self.extend(ids, valid, torch.full_like(valid, PROMPT, dtype=torch.long), positions)
        counts = valid.sum(1)
        self.length = self.length + counts
        self.total = (hidden.float() * valid[..., None]).sum(1), counts
        return hidden[torch.arange(len(ids), device=self.device), counts - 1]

    def extend(self, ids: Tensor, valid: Tensor, branch: Tensor, positions: Tensor) -> Tensor:
        """Read tokens [rows, t], or states [rows, t, d], of the given branches; returns the states above [rows, t, d].

        A token sees the earlier valid keys of its own branch and of the prompt, in layers with a sliding window those
        within it. Tokens that are not valid are seen by none; their hidden states mean nothing.
        """
        past = self.valid.shape[1]
        self.valid = torch.cat([self.valid, valid], 1)
        self.branch = torch.cat([self.branch, branch], 1)
        self.positions = torch.cat([self.positions, positions.expand_as(branch)], 1)
        width = ids.shape[1]
        order = torch.ones(width, past + width, dtype=torch.bool, device=self.device).tril(past)
        own = torch.eye(width, past + width, dtype=torch.bool, device=self.device).roll(past, 1)  # no row without keys
        related = (self.branch[:, None, :] == PROMPT) | (self.branch[:, None, :] == branch[:, :, None])
        seen = (related & self.valid[:, None, :] & order) | own
        masks = {kind: self._mask(seen, positions, window) for kind, window in self.windows.items()}
        with self._keeping_below() if self.depth else nullcontext():
            return self.decoder(
                **{"inputs_embeds" if ids.is_floating_point() else "input_ids": ids},
                attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state

    def _mask(self, seen: Tensor, positions: Tensor, window: int | None) -> Tensor:
        """What layers with this window see [rows, 1, t, keys], in the form that the attention takes."""
        if window is not None:
            seen = seen & (positions[:, :, None] - self.positions[:, None, :] < window)
        if self.decoder.config._attn_implementation == "sdpa":
            return seen[:, None]
        kind = next(self.decoder.parameters()).dtype
        return torch.zeros_like(seen, dtype=kind).masked_fill(~seen, -torch.inf)[:, None]  # eager attention adds it

    @contextmanager
    def _keeping_below(self) -> Iterator[None]:
        def keep(_: Any, positional: Any, named: Any) -> None:
            self.below = positional[0] if positional else named["hidden_states"]

        hook = self.decoder.layers[self.depth].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


class LayerSlice:
    """Some of a decoder's layers, called like the decoder: with `inputs_embeds` the states below them."""

    def __init__(self, decoder: Any, layers: slice) -> None:
        self.whole, self.layers, self.config = decoder, layers, decoder.config
        self.parameters = decoder.parameters

    def __call__(self, **inputs: Any) -> Any:
        """The states after these layers; the final norm belongs to the top one."""
        layers, norm = self.whole.layers, self.whole.norm
        self.whole.layers = layers[self.layers]
        if self.layers.stop is not None and self.layers.stop < len(layers):
            self.whole.norm = torch.nn.Identity()
        try:
            return self.whole(**inputs)
        finally:
            self.whole.layers, self.whole.norm = layers, norm


def _windows(config: Any) -> dict[str, int | None]:
    """How many positions each kind of layer looks back; None: all. Raises InputError where a mask would be ignored."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"]
    for kind in {*kinds} - {"full_attention", "sliding_attention"}:
        raise InputError(f"the model {config.model_type} has layers of {kind}, which cannot be masked; take another")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise InputError(
            f"the model's attention is {config._attn_implementation}, which takes no mask; "
            "set attn_implementation in its config.json to sdpa or eager"
        )
    return {kind: window if kind == "sliding_attention" else None for kind in kinds}


def pad(rows: Sequence[Sequence[int] | Tensor], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Lists of ids [t], or states [t, d], as one tensor padded right with 0, and which entries are real."""
    width = max((len(row) for row in rows), default=0)
    if rows and isinstance(rows[0], Tensor):
        length = torch.tensor([len(row) for row in rows])
        states = pad_sequence([row.to(device) for row in rows if isinstance(row, Tensor)], batch_first=True)
        return states, (torch.arange(width) < length[:, None]).to(device)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        valid[i, : len(row)] = True
    return ids.to(device), valid.to(device)
