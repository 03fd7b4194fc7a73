"""The policy (METHOD 2): one causal language model that writes about a user and embeds users and items."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import disable_progress_bar

from minirec.data import models
from minirec.errors import InputError, one_sentence
from minirec.experiment import sections
from minirec.experiment.sections import Passes
from minirec.model import distributed, logits, prompts
from minirec.progress import loaded
from minirec.storage import artefact

FUSED = {  # layers that hold several projections of other models
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "c_attn": ("q_proj", "k_proj", "v_proj"),
    "Wqkv": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


@dataclass
class Policy:
    """A causal language model with its tokenizer and prompts; `settings.lora_*` say which layers are trained."""

    model: Any
    tokenizer: Any
    settings: sections.Policy
    batch_tokens: int = Passes().batch_tokens  # most tokens of one forward pass, padding included

    @classmethod
    def load(
        cls,
        folder: Path,
        settings: sections.Policy,
        adapter: Path | None = None,
        batch_tokens: int = Passes().batch_tokens,
        shard_layers: bool = False,
    ) -> Policy:
        """Load a base model and, where it is given, an adapter on it; raises InputError if one is unusable.

        folder: config, tokenizer and safetensors. batch_tokens: most tokens of one forward pass, padding included;
        limits memory. shard_layers: spread the frozen layers over the processes, see `distributed.shard`.
        """
        models.require_complete(folder)
        from minirec.model import compatibility  # reads with the modules that import this one

        artefact.verify_folder(folder, foreign=True)
        disable_progress_bar()  # minirec shows its own
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
        with loading(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.chat_template is None:
            raise InputError(f"{folder} has no chat template; take an instruction-tuned model")
        model = _base_model(folder, settings.dtype)
        if adapter is not None:
            model = _with_adapter(model, adapter)
        if shard_layers:
            distributed.shard(model.get_decoder().layers, device)
        policy = cls(model.to(device).eval(), tokenizer, settings, batch_tokens)
        compatibility.warn_if_slow(settings.dtype, device)
        compatibility.require_supported(policy, str(folder))
        loaded()
        return policy

    def add_adapter(self, seed: int) -> None:
        """Add a new LoRA adapter, drawn from `seed`, to the model; the base weights are frozen. Raises InputError."""
        from peft import LoraConfig, get_peft_model

        s = self.settings
        layers = range(self.model.config.get_text_config().num_hidden_layers)
        lora = LoraConfig(
            r=s.lora_r,
            lora_alpha=s.lora_alpha,
            lora_dropout=0.0,  # a completion must have the same probability when it is read again
            target_modules=self._lora_targets(),
            layers_to_transform=None if s.lora_layers is None else list(layers[-s.lora_layers :]),
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(seed)
        with one_sentence("policy.lora_targets cannot get adapters (", "); name linear layers", kind=ValueError):
            self.model = get_peft_model(self.model, lora)

    def _lora_targets(self) -> list[str]:
        """Names of the layers that get adapters, fused ones where the model has these; raises InputError."""
        linear = [name for name, layer in self.decoder.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)]
        there = sorted({name.rsplit(".", 1)[-1] for name in linear})
        modules = [f".{name}" for name, _ in self.model.named_modules()]
        found: list[str] = []
        for target in self.settings.lora_targets:
            fused = [name for name, parts in FUSED.items() if target in parts and name in there]
            if target == "all-linear":
                found += there
            elif any(name.endswith(f".{target}") for name in modules):
                found.append(target)
            elif fused:
                found += fused
            else:
                raise InputError(
                    f"policy.lora_targets has {target}, but the model has no such layer; "
                    f"take some of {', '.join(there)}, or all-linear"
                )
        return found

    @property
    def decoder(self) -> Any:
        """The transformer without the LM head."""
        return self._base.get_decoder()

    @cached_property
    def frozen_layers(self) -> int:
        """Number of layers below the lowest trained one; 0 also if they are of several types or have other names."""
        text = self.model.config.get_text_config()
        known = hasattr(self.decoder, "layers") and hasattr(self.decoder, "norm")
        if not known or self.settings.lora_layers is None or len(set(getattr(text, "layer_types", None) or ())) > 1:
            return 0
        return max(0, text.num_hidden_layers - self.settings.lora_layers)

    @property
    def device(self) -> torch.device:
        """Device that holds the model."""
        return next(self.model.parameters()).device

    @property
    def width(self) -> int:
        """Size of a hidden state, d."""
        return self.model.config.get_text_config().hidden_size

    @cached_property
    def eos_ids(self) -> set[int]:
        """Ids of the tokens that end a turn of the chat, and so a completion."""
        ids = self.model.generation_config.eos_token_id
        ids = ids if isinstance(ids, list) else [ids]
        return {i for i in [*ids, self.tokenizer.eos_token_id] if i is not None}

    @property
    def _base(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next token [..., vocabulary], float32, at hidden states [..., d]."""
        return logits.logits(self._base, hidden)

    def log_p(self, states: Tensor, ids: Tensor) -> Tensor:
        """Log-probability [k], at temperature 1, of the token ids [k] that follow the states [k, d]; differentiable."""
        return logits.token_log_p(self._base, states, ids)

    @cached_property
    def context(self) -> int | None:
        """Most tokens that the model can read in one text; None: it has no limit."""
        text = self.model.config.get_text_config()
        rope = getattr(text, "rope_parameters", None) or {}
        longest = getattr(text, "max_position_embeddings", None) or 0
        if rope.get("rope_type") in ("dynamic", "longrope"):  # beyond, a batch's longest text would change the others
            longest = rope.get("original_max_position_embeddings") or longest
        return longest if longest > 0 else None

    def require_context(self, tokens: int, remedy: str) -> None:
        """Raise InputError if a text of so many tokens is longer than the context; remedy: the settings to lower."""
        if self.context is not None and tokens > self.context:
            raise InputError(
                f"a text has {tokens} tokens, but the model's context is {self.context}; "
                f"lower {remedy}, or take another model"
            )

    @cached_property
    def user_prompts(self) -> prompts.Prompts:
        """The prompts about users."""
        return prompts.user_prompts(self.tokenizer, self.settings.marker, self.settings.system)

    @cached_property
    def item_prompts(self) -> prompts.Prompts:
        """The prompts about items."""
        s = self.settings
        return prompts.item_prompts(self.tokenizer, s.marker, s.system, s.max_item_tokens)

    @cached_property
    def marker_ids(self) -> list[int]:
        """Token ids of the marker, which are appended to a completion without it."""
        return prompts.token_ids(self.tokenizer, self.settings.marker)

    def user_bodies(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of user prompts, without the prefix that all share; texts: the histories, see `Split.bodies`."""
        return [self.user_prompts.encode(text) for text in texts]

    def length_batches(self, prompts: Sequence[Sequence[int]], extra: int = 0) -> Iterator[list[int]]:
        """Batches of prompts of similar length, as row numbers, each of `batch_tokens` tokens.

        extra: tokens that the pass adds to each prompt, e.g. its completions.
        """
        return batch_rows([len(prompt) + extra for prompt in prompts], self.batch_tokens)


def _base_model(folder: Path, dtype: str) -> Any:
    """The language model of a folder; raises InputError if weights are missing, which would be set at random."""
    with loading(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, report = loaded
    if report["missing_keys"]:
        raise InputError(f"{folder} has no weights for {min(report['missing_keys'])}; fetch the model again")
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise InputError(f"{folder} has the weight {name} with NaN or infinity; take an intact copy of the model")
    return model


def _with_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter} has no adapter_model.safetensors; run train again")
    artefact.verify_folder(adapter)
    with loading(adapter):
        return PeftModel.from_pretrained(model, adapter)


def loading(folder: Path) -> AbstractContextManager[None]:
    """Turn whatever a library raises while it loads a folder into an InputError of one sentence."""
    return one_sentence(f"{folder} cannot be loaded (", "); make or fetch it again")


def batch_rows(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Batches of rows of similar length, longest first; each has at most `budget` tokens with padding, or one row.

    Depends on the lengths alone, so every run and every shard forms the same batches.

    >>> list(batch_rows([3, 9, 4], budget=8))
    [[1], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        count = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + count]
        start += count
