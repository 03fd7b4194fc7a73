"""KV cache in which the completions of a prompt share its keys; an attention mask hides them from each other.

The prompt's keys are not copied for each completion. Generation reads one token of every branch (completion) at a time;
training reads prompts and whole completions in one pass, see `one_pass`.
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

PROMPT = -1  # branch number of the tokens that every branch sees


class KeysAndValues(DynamicCache):
    """Keys and values of all layers. Made without the model's config it keeps all; the mask says which are seen."""

    growing = True  # else what is read later sees what is kept, but is not kept itself

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, t, size] of a layer: those kept, and the new ones after them."""
        if self.growing:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx >= len(self.layers):
            return key_states, value_states
        kept: Any = self.layers[layer_idx]
        return torch.cat([kept.keys, key_states], -2), torch.cat([kept.values, value_states], -2)


class BranchingCache:
    """KV cache of `rows` prompts that begin with the same prefix; each prompt goes on in branches, its completions."""

    def __init__(self, decoder: Any, prefix: Sequence[int] | Tensor, rows: int, frozen_layers: int = 0) -> None:
        """prefix: token ids, or, where the decoder is a `LayerSlice`, the states [p, d] that enter its lowest layer.

        frozen_layers: where positive, every `extend` leaves in `frozen_states` the states [rows, t, d] of its tokens
        after that many layers.
        """
        self.decoder, self.frozen_layers = decoder, frozen_layers
        self.windows = _windows(decoder.config)
        self.cache = KeysAndValues()
        self.device = next(decoder.parameters()).device
        self.valid = torch.zeros(1, 0, dtype=torch.bool, device=self.device)  # [rows, keys]
        self.branch = torch.zeros(1, 0, dtype=torch.long, device=self.device)  # [rows, keys]
        self.positions = torch.zeros(1, 0, dtype=torch.long, device=self.device)  # [rows, keys]
        if len(prefix):
            tokens = torch.as_tensor(prefix, device=self.device)[None]
            shape = tokens.shape[:2]
            valid = torch.ones(shape, dtype=torch.bool, device=self.device)
            branch = torch.full(shape, PROMPT, device=self.device)
            self.prefix_states = self.extend(tokens, valid, branch, torch.arange(shape[1], device=self.device)[None])
            self.cache.batch_repeat_interleave(rows)
        self.valid = self.valid.expand(rows, -1)
        self.branch = self.branch.expand(rows, -1)
        self.positions = self.positions.expand(rows, -1)
        self.length = torch.full((rows,), len(prefix), device=self.device)  # of the prompts

    def read(self, prompts: Sequence[Sequence[int] | Tensor]) -> Tensor:
        """Read what follows the prefix in each prompt, token ids or states; returns its last token's state [rows, d].

        Leaves in `total` the sum of the states over the tokens read [rows, d] and the number of these tokens [rows].
        """
        tokens, valid, branch, positions = self.prompt_layout(prompts)
        self.length = self.length + valid.sum(1)
        return self.sum_prompts(self.extend(tokens, valid, branch, positions), valid)

    def prompt_layout(self, prompts: Sequence[Sequence[int] | Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `extend` takes for prompts: (tokens, valid, branch, positions)."""
        tokens, valid = pad(prompts, self.device)
        positions = self.length[:, None] + torch.arange(tokens.shape[1], device=self.device)
        return tokens, valid, torch.full_like(valid, PROMPT, dtype=torch.long), positions

    def sum_prompts(self, hidden: Tensor, valid: Tensor) -> Tensor:
        """Set `total` from the states of the prompts [rows, t, d]; returns those of their last tokens [rows, d]."""
        counts = valid.sum(1)
        self.total = (hidden.float() * valid[..., None]).sum(1), counts
        return hidden[torch.arange(len(hidden), device=self.device), counts - 1]

    def extend(self, tokens: Tensor, valid: Tensor, branch: Tensor, positions: Tensor) -> Tensor:
        """Read token ids [rows, t], or states [rows, t, d]; returns the hidden states after the layers [rows, t, d].

        branch, positions [rows, t]: the branch of each token (PROMPT: all branches) and its position in the text. A
        token attends to the earlier valid tokens of its branch and of the prompt; a layer with a sliding window, only
        to those within the window. Where valid [rows, t] is False the token is padding, and its state is meaningless.
        """
        past = self.valid.shape[1]
        self.valid = torch.cat([self.valid, valid], 1)
        self.branch = torch.cat([self.branch, branch], 1)
        self.positions = torch.cat([self.positions, positions.expand_as(branch)], 1)
        width = tokens.shape[1]
        order = torch.ones(width, past + width, dtype=torch.bool, device=self.device).tril(past)
        itself = torch.eye(width, past + width, dtype=torch.bool, device=self.device).roll(past, 1)  # even padding
        related = (self.branch[:, None, :] == PROMPT) | (self.branch[:, None, :] == branch[:, :, None])
        seen = (related & self.valid[:, None, :] & order) | itself
        masks = {kind: self._mask(seen, positions, window) for kind, window in self.windows.items()}
        with self._recording_frozen_states() if self.frozen_layers else nullcontext():
            return self.decoder(
                **{"inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens},
                attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state

    def _mask(self, seen: Tensor, positions: Tensor, window: int | None) -> Tensor:
        """Attention mask [rows, 1, t, keys] for layers with this window: booleans for sdpa, 0 or -inf for eager."""
        if window is not None:
            seen = seen & (positions[:, :, None] - self.positions[:, None, :] < window)
        if self.decoder.config._attn_implementation == "sdpa":
            return seen[:, None]
        dtype = next(self.decoder.parameters()).dtype
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, -torch.inf)[:, None]  # eager attention adds it

    @contextmanager
    def _recording_frozen_states(self) -> Iterator[None]:
        """Keep in `frozen_states` the states that enter the first layer above the frozen ones."""

        def keep(_: Any, args: Any, kwargs: Any) -> None:
            self.frozen_states = args[0] if args else kwargs["hidden_states"]

        hook = self.decoder.layers[self.frozen_layers].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


class BranchReader:
    """Reads tokens into the branches of a cache, and pools the states of each branch (METHOD 2, pooling)."""

    def __init__(self, cache: BranchingCache, branches: int, width: int, pooling: str) -> None:
        """width: size d of a hidden state."""
        self.cache, self.branches, self.pooling = cache, branches, pooling
        self.rows = len(cache.length)
        self.count = torch.zeros(self.rows, branches, dtype=torch.long, device=cache.device)
        self.sum = torch.zeros(self.rows, branches, width, device=cache.device)
        self.last = torch.zeros(self.rows, branches, width, device=cache.device)
        self.recorded: list[tuple[list[int], Tensor, Tensor]] = []  # of each read: branches, frozen states, validity

    def read(self, chunk: Sequence[Sequence[Sequence[int] | Tensor]]) -> Tensor:
        """Read the next token ids, or states, of each branch [n][G]; returns the state at its last token [n, G, d].

        A branch may get no token. Leaves in `states` those of the tokens read [n, branches that got some, t, d].
        """
        active = [g for g in range(self.branches) if any(len(row[g]) for row in chunk)]  # the others cost nothing
        tokens, valid, branch, positions = self._layout(chunk, active)
        hidden = self.cache.extend(tokens, valid, branch, positions)
        if self.cache.frozen_layers:
            shape = self.rows, len(active), -1
            recorded = self.cache.frozen_states.view(*shape, hidden.shape[-1])
            self.recorded.append((active, recorded, valid.view(shape)))
        return self._pool(hidden, valid, active)

    def read_with_prompts(
        self, prompts: Sequence[Sequence[int] | Tensor], completions: Sequence[Sequence[Sequence[int] | Tensor]]
    ) -> Tensor:
        """Read prompts [n] and completions [n][G] in one pass; returns the states at the prompts' last tokens [n, d].

        Token ids, or states. Leaves in `states` those of the completions' tokens [n, G, t, d].
        """
        prompt_layout = self.cache.prompt_layout(prompts)
        width, valid = prompt_layout[1].shape[1], prompt_layout[1]
        self.cache.length = self.cache.length + valid.sum(1)
        layout = self._layout(completions, active := list(range(self.branches)))
        hidden = self.cache.extend(*(torch.cat(parts, 1) for parts in zip(prompt_layout, layout, strict=True)))
        self._pool(hidden[:, width:], layout[1], active)
        return self.cache.sum_prompts(hidden[:, :width], valid)

    def _layout(
        self, chunk: Sequence[Sequence[Sequence[int] | Tensor]], active: list[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `extend` takes for the next tokens of the active branches: (tokens, valid, branch, positions)."""
        n, device = self.rows, self.cache.device
        tokens, valid = pad([row[g] for row in chunk for g in active], device)
        groups, width = len(active), tokens.shape[1]
        branch = torch.tensor(active, device=device).repeat_interleave(width).expand(n, -1)
        start = self.cache.length[:, None] + self.count[:, active]
        positions = (start[:, :, None] + torch.arange(width, device=device)).view(n, -1)
        return tokens.reshape(n, groups * width, *tokens.shape[2:]), valid.view(n, -1), branch, positions

    def _pool(self, hidden: Tensor, valid: Tensor, active: list[int]) -> Tensor:
        """Add the states [n, branches t, d] of active branches to what is pooled; returns the last of all [n, G, d]."""
        places = torch.tensor(active, device=self.cache.device)
        self.states = hidden.reshape(self.rows, len(active), -1, hidden.shape[-1])
        valid = valid.view(self.states.shape[:3])
        states = self.states.float()
        if self.pooling != "last":
            self.sum = self.sum.index_add(1, places, (states * valid[..., None]).sum(2))
        counts = valid.sum(2)
        at_end = states.gather(2, (counts - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, states.shape[-1]))
        newest = torch.where((counts > 0)[..., None], at_end.squeeze(2), self.last[:, active])
        self.last = self.last.index_copy(1, places, newest)
        self.count = self.count.index_add(1, places, counts)
        return self.last.to(hidden.dtype)

    def pooled(self) -> Tensor:
        """State of each branch, pooled as `pooling` says [n, G, d], float32."""
        if self.pooling == "last":
            return self.last
        if self.pooling == "mean":
            return self.sum / self.count[..., None]
        prompt_sum, prompt_count = self.cache.total
        return (prompt_sum[:, None] + self.sum) / (prompt_count[:, None] + self.count)[..., None]

    def frozen_states(self) -> list[list[Tensor]]:
        """States [t, d] after the frozen layers of the t tokens that each branch has read [n][G]."""
        chunks: list[list[list[Tensor]]] = [[[] for _ in range(self.branches)] for _ in range(self.rows)]
        for active, states, valid in self.recorded:
            for place, g in enumerate(active):
                for i in range(self.rows):
                    chunks[i][g].append(states[i, place][valid[i, place]])
        return [[torch.cat(parts) for parts in row] for row in chunks]


class LayerSlice:
    """Some consecutive layers of a decoder, called like it; `inputs_embeds` are the states entering the lowest."""

    def __init__(self, decoder: Any, layers: slice) -> None:
        self.decoder, self.layers, self.config = decoder, layers, decoder.config
        self.parameters, self.modules = decoder.parameters, decoder.modules

    def __call__(self, **inputs: Any) -> Any:
        """Run these layers; also the final norm if the decoder's top layer is one of them."""
        layers, norm = self.decoder.layers, self.decoder.norm
        self.decoder.layers = layers[self.layers]
        if self.layers.stop is not None and self.layers.stop < len(layers):
            self.decoder.norm = torch.nn.Identity()
        try:
            with self._entering(self.decoder.layers[0], inputs.get("inputs_embeds")):
                return self.decoder(**inputs)
        finally:
            self.decoder.layers, self.decoder.norm = layers, norm

    @contextmanager
    def _entering(self, layer: Any, states: Tensor | None) -> Iterator[None]:
        """Let a layer read these states as they are: some decoders scale what they take for embeddings."""

        def replace(_: Any, args: Any) -> Any:
            return args if states is None else (states, *args[1:])

        hook = layer.register_forward_pre_hook(replace)
        try:
            yield
        finally:
            hook.remove()


def _windows(config: Any) -> dict[str, int | None]:
    """Sliding window in tokens by type of layer, None: no limit. Raises InputError if the model ignores masks."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"]
    other = [name for name in config.to_dict() if "window" in name and "sliding_window" not in name]
    if unknown := {*other} - {"max_window_layers"}:  # no check of a few tokens shows what it does
        raise InputError(
            f"{config.model_type} models have {min(unknown)}, a limit of unknown meaning; take another model"
        )
    for kind in {*kinds} - {"full_attention", "sliding_attention"}:
        raise InputError(
            f"{config.model_type} models have layers of {kind}, which cannot be masked; take another model"
        )
    if "sliding_attention" in kinds and window is None:
        raise InputError(f"{config.model_type} models do not say how far their layers attend; take another model")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise InputError(
            f"the model's attention is {config._attn_implementation}, which takes no mask; "
            "set attn_implementation in its config.json to sdpa or eager"
        )
    return {kind: window if kind == "sliding_attention" else None for kind in kinds}


def pad(rows: Sequence[Sequence[int] | Tensor], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Pad rows (one or more) of token ids [t], or of states [t, d], with 0 on the right; also returns what is real.

    >>> tokens, valid = pad([[7, 8], [9]])
    >>> tokens.tolist(), valid.tolist()
    ([[7, 8], [9, 0]], [[True, True], [True, False]])
    """
    width = max(map(len, rows))
    if isinstance(rows[0], Tensor):
        length = torch.tensor([len(row) for row in rows])
        states = pad_sequence([row.to(device) for row in rows if isinstance(row, Tensor)], batch_first=True)
        return states, (torch.arange(width) < length[:, None]).to(device)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        valid[i, : len(row)] = True
    return ids.to(device), valid.to(device)
