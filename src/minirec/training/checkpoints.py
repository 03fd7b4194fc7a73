"""Checkpoints of a run: from which of them an interrupted run resumes, and the adapter that is written at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from minirec.errors import InputError, NotFinite
from minirec.model import distributed
from minirec.model.whitening import WHITENING, Head
from minirec.progress import log
from minirec.storage import artefact
from minirec.storage.artefact import Provenance
from minirec.training.item_table import ItemTable

if TYPE_CHECKING:
    from minirec.training.trainer import RecommenderTrainer

ITEM_TABLE, HEAD = "items.safetensors", "head.safetensors"  # in a checkpoint, beside the adapter
FOLDER, LAST_GOOD = "checkpoints", "last_good"  # beside the adapter


def complete(checkpoint: Path, items: ItemTable, best: Path) -> None:
    """Add item table, head and digests to a checkpoint that TRL wrote, then remove the others but the best."""
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
    """Load the item table of a checkpoint into `items`."""
    items.whitened = load_file(Path(checkpoint) / ITEM_TABLE)["items"].to(items.whitened.device)


def load_head(checkpoint: str, head: Head) -> None:
    """Load the trained head of a checkpoint into `head`."""
    head.load_state_dict(load_file(Path(checkpoint) / HEAD))


def last(folder: Path) -> str | None:
    """The checkpoint from which a run resumes; None if there is none."""
    checkpoint = get_last_checkpoint(str(folder))
    if checkpoint:
        log.info("going on from %s", checkpoint)
    return checkpoint


def remove_unusable(folder: Path, provenance: Provenance) -> None:
    """Remove all checkpoints in a folder but the complete ones of a run with the same inputs, settings and code.

    A checkpoint goes, too, if the best checkpoint that it refers to is missing: training would end with another policy.
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
    """Write the adapter, and whitening.safetensors with the trained head in it, as the folder `out`, atomically.

    PEFT notes the base model's folder as it was given: `data/models/NAME` in the workflow, relative to the project.
    """
    with artefact.atomic_folder(out, provenance) as partial:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(partial, safe_serialization=True)
        (partial / "README.md").unlink(missing_ok=True)
        trainer.head.merged_whitening().write(partial / WHITENING, provenance)
        settings = json.loads((partial / "adapter_config.json").read_text(encoding="utf-8"))
        settings["target_modules"] = sorted(settings["target_modules"])  # a set, whose order changes from run to run
        (partial / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def train_or_keep_last_good(trainer: RecommenderTrainer, folder: Path, last_good: Path, provenance: Provenance) -> None:
    """Train, from the last checkpoint if there is one; if the run diverges, save its last good policy and raise."""
    try:
        trainer.train(resume_from_checkpoint=last(folder))
    except NotFinite as problem:
        if trainer.state.global_step == 0:  # not finite from the start: no learning rate is to blame
            raise
        kept = save_last_good(trainer, folder, last_good, provenance)
        advice = f"lower train.learning_rate or train.head_learning_rate; {kept}"
        raise InputError(f"training diverged, {problem.what}; {advice}") from problem


def save_last_good(trainer: RecommenderTrainer, checkpoints: Path, out: Path, provenance: Provenance) -> str:
    """Write the best checkpoint's policy, or else the last one's, as an adapter; returns half a sentence on that."""
    good = trainer.state.best_model_checkpoint or get_last_checkpoint(str(checkpoints))
    if good is not None:
        trainer._load_from_checkpoint(good)
    with distributed.first_rank_alone() as first:
        if first:
            shutil.rmtree(out, ignore_errors=True)  # of an earlier run
            if good is not None:
                save_adapter(trainer, out, provenance)
    return "there is no checkpoint yet" if good is None else f"the policy of {Path(good).name} is kept in {out}"
