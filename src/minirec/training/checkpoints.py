"""Checkpoints of a run: which of them an interrupted run goes on from, and the adapter that is left in the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from minirec.errors import InputError
from minirec.model import distributed
from minirec.model.whitening import WHITENING, Head
from minirec.progress import log
from minirec.storage import artefact
from minirec.storage.artefact import Provenance
from minirec.training.item_table import ItemTable

if TYPE_CHECKING:
    from minirec.training.trainer import RecommenderTrainer

ITEM_TABLE, HEAD = "items.safetensors", "head.safetensors"  # in a checkpoint, beside the adapter
FOLDER = "checkpoints"  # beside the adapter


def complete(checkpoint: Path, items: ItemTable, best: Path) -> None:
    """Add item table and head to a checkpoint that TRL wrote, and its digests; then remove all others but the best."""
    with distributed.first_rank_alone() as first:
        if first:
            save_file({"items": items.whitened.contiguous()}, checkpoint / ITEM_TABLE)
            save_file(items.head.state_dict(), checkpoint / HEAD)
    with distributed.first_rank_alone() as first:  # by now every process has written its files
        if first:
            artefact.write_manifest(checkpoint, Provenance("checkpoint"))
            for other in checkpoint.parent.glob("checkpoint-*"):
                if other.name not in (checkpoint.name, best.name):
                    shutil.rmtree(other)


def load_item_table(checkpoint: str, items: ItemTable) -> None:
    """Take the item table of a checkpoint."""
    items.whitened = load_file(Path(checkpoint) / ITEM_TABLE)["items"].to(items.whitened.device)


def load_head(checkpoint: str, head: Head) -> None:
    """Take the trained head of a checkpoint."""
    head.load_state_dict(load_file(Path(checkpoint) / HEAD))


def last(folder: Path) -> str | None:
    """The checkpoint from which a run goes on; None where it starts anew."""
    found = get_last_checkpoint(str(folder))
    if found:
        log.info("going on from %s", found)
    return found


def remove_unusable(folder: Path, provenance: Provenance) -> None:
    """Keep in a folder only complete checkpoints of a run with the same inputs, settings and code.

    A checkpoint is removed if its best checkpoint is missing, or else training would end with the wrong policy.
    """
    artefact.keep_unfinished(folder, provenance)
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            artefact.verify_folder(checkpoint)
        except InputError as problem:
            log.info("%s is left out (%s)", checkpoint, problem)
            shutil.rmtree(checkpoint)
    whole = {checkpoint.resolve() for checkpoint in folder.glob("checkpoint-*")}
    for checkpoint in whole:
        best = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
        if best and Path(best).resolve() not in whole:
            log.info("%s is left out (its best checkpoint, %s, is gone)", checkpoint, best)
            shutil.rmtree(checkpoint)


def save_adapter(trainer: RecommenderTrainer, out: Path, provenance: Provenance) -> None:
    """Write the policy's adapter, with its whitening and trained head, as a folder; beside `out` first, then rename."""
    with artefact.atomic_folder(out, provenance) as partial:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(partial, safe_serialization=True)
        (partial / "README.md").unlink(missing_ok=True)
        trainer.head.merged_whitening().write(partial / WHITENING, provenance)
        settings = json.loads((partial / "adapter_config.json").read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = None  # from the command line; a path would differ between machines
        settings["target_modules"] = sorted(settings["target_modules"])  # a set: its order is not the same twice
        (partial / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def save_last_good(trainer: RecommenderTrainer, checkpoints: Path, out: Path, provenance: Provenance) -> str:
    """Write the policy of the best checkpoint, or else of the last one, as an adapter; says in words what it wrote."""
    good = trainer.state.best_model_checkpoint or get_last_checkpoint(str(checkpoints))
    if good is not None:
        trainer._load_from_checkpoint(good)
    with distributed.first_rank_alone() as first:
        if first:
            shutil.rmtree(out, ignore_errors=True)  # of an earlier run
            if good is not None:
                save_adapter(trainer, out, provenance)
    return "there is no checkpoint yet" if good is None else f"the policy of {Path(good).name} is kept in {out}"
