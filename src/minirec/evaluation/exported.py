"""A trained recommender as a folder that plain transformers loads: merged weights, item table, whitening with head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from minirec.evaluation.recommender import Recommender
from minirec.model.policy import Policy
from minirec.storage.artefact import Provenance, atomic_folder

TENSORS, ABOUT, CATALOGUE, CARD = "recommender.safetensors", "recommender.json", "catalogue.parquet", "README.md"


def write(recommender: Recommender, out: Path, card: str) -> None:
    """Write the folder atomically; card: its README.md."""
    run, policy = recommender.run, recommender.policy
    inputs = {"adapter": run.adapter, "model": run.model, "catalogue": run.catalogue}
    items = recommender.items.cpu().contiguous()
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out, Provenance("export", dict(run.settings), inputs)) as partial:
        policy.model.merge_and_unload().save_pretrained(partial, safe_serialization=True)
        policy.tokenizer.save_pretrained(partial)
        save_file({"items": items, **_map(recommender)}, partial / TENSORS)
        pq.write_table(recommender.catalogue.select(["row", "item_id", "title"]), partial / CATALOGUE)
        (partial / ABOUT).write_text(json.dumps(about(policy, run.settings), indent=2) + "\n", encoding="utf-8")
        (partial / CARD).write_text(card, encoding="utf-8")


def about(policy: Policy, settings: dict[str, object]) -> dict[str, object]:
    """What a reader of the folder has to know of prompts and states, and the settings of the training."""
    return {
        "dtype": policy.settings.dtype,
        "prefix": policy.user_prompts.prefix,
        "suffix": policy.user_prompts.suffix,
        "marker": policy.settings.marker,
        "marker_ids": policy.marker_ids,
        "eos": sorted(policy.eos_ids),
        "max_new_tokens": settings["max_new_tokens"],
        "pooling": policy.settings.pooling,
        "prompt_history": policy.settings.prompt_history,
        "settings": settings,
    }


def _map(recommender: Recommender) -> dict[str, torch.Tensor]:
    """The map of user states, (x - mean) @ components; the identity if nothing is whitened."""
    arrays, width = recommender.whitening.arrays, recommender.policy.width
    mean = arrays.get("user_mean", np.zeros(width, dtype=np.float32))
    components = arrays.get("user_components", np.eye(width, dtype=np.float32))
    return {"mean": torch.from_numpy(mean.copy()), "components": torch.from_numpy(components.copy())}
