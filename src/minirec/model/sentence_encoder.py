"""Vectors of texts by a sentence encoder: the mean of the last hidden states over the tokens of a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from minirec.errors import InputError
from minirec.model.policy import batch_rows, loading
from minirec.progress import progress

MAX_TOKENS = 512  # of a text; what follows is cut
BATCH_TOKENS = 8192  # of a forward pass, padding included


def encode(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Vectors [n, d], float32, of texts by the encoder in a local folder of config, tokenizer and safetensors.

    Raises InputError if the folder cannot be used; no code of the model is executed.
    """
    model, tokenizer, length = _loaded(folder)
    tokens = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
    vectors = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    with progress("encode", len(texts), "prompts") as bar, torch.inference_mode():
        for rows in batch_rows([len(one) for one in tokens], BATCH_TOKENS):
            batch = tokenizer.pad({"input_ids": [tokens[row] for row in rows]}, return_tensors="pt").to(model.device)
            states = model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            real = batch["attention_mask"][..., None]
            vectors[rows] = ((states * real).sum(1) / real.sum(1).clamp(min=1)).float().cpu().numpy()
            bar.add(len(rows))
    if not np.isfinite(vectors).all():
        raise InputError(f"{folder} gives vectors with NaN or infinity; take an intact copy of the encoder")
    return vectors


def message_text(text: str) -> str:
    """What a conversation in JSON says, without roles; any other text as it is.

    >>> message_text('[{"role": "user", "content": "hello"}, {"role": "user", "content": "there"}]')
    'hello\\nthere'
    """
    if not text.startswith("[{"):
        return text
    try:
        contents = [message["content"] for message in json.loads(text)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return text
    return "\n".join(contents) if all(isinstance(one, str) for one in contents) else text


def _loaded(folder: Path) -> tuple[Any, Any, int]:
    """Model, tokenizer and most tokens of a text."""
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise InputError(f"{folder} has no {needed}; name the folder of a sentence encoder")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has no weights in safetensors; other formats can execute code when loaded")
    disable_progress_bar()  # minirec shows its own
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with loading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model, report = AutoModel.from_pretrained(
            folder,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    if missing := [name for name in report["missing_keys"] if "pooler" not in name]:  # which the mean does not need
        raise InputError(f"{folder} has no weights for {min(missing)}; take an intact copy of the encoder")
    if model.config.is_encoder_decoder:
        raise InputError(f"{folder} has an encoder and a decoder; take a model with an encoder alone")
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    positions = getattr(model.config, "max_position_embeddings", MAX_TOKENS)
    return model.to(device).eval(), tokenizer, min(MAX_TOKENS, tokenizer.model_max_length, positions)
