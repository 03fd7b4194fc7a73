"""export: a trained run's recommender as a folder for transformers, or its samples for other trainers."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from minirec.errors import InputError
from minirec.experiment.sections import Passes
from minirec.storage import artefact, tables


def run(*, what: str, folder: Path, out: Path, batch_tokens: int = Passes().batch_tokens) -> None:
    """Export the `model` or the `samples` of a run; raises InputError if one of its files is missing."""
    if what == "model":
        model(folder, out, batch_tokens)
    else:
        samples(folder, out)


def model(folder: Path, out: Path, batch_tokens: int = Passes().batch_tokens) -> None:
    """Write the merged model with item table, whitening, head and model card to a new folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already; name a new folder, or remove it")
    from minirec.evaluation import exported
    from minirec.evaluation.recommender import Recommender, TrainedRun
    from minirec.report.model_card import card

    opened = TrainedRun.opened(folder)
    metrics = artefact.read_json(opened.folder / "metrics.json")
    recommender = Recommender(opened, batch_tokens)
    record = opened.model / artefact.FOLDER_RECORD
    source = artefact.load_json(record)["settings"] if record.is_file() else {}
    text = card(opened.top.name, opened.run, metrics, len(recommender.titles), opened.policy.dtype, source)
    exported.write(recommender, out, text)
    sys.stdout.write(f"{out}: the model for transformers; README.md says how to use it without minirec\n")


def samples(folder: Path, out: Path) -> None:
    """Write the run's training samples in training order, with prompts as chats, as .jsonl, .parquet or a folder."""
    from minirec.data import splits
    from minirec.data.logged import export
    from minirec.evaluation.recommender import TrainedRun
    from minirec.model.prompts import user_messages

    export.require_writable(out, None, "logged")
    opened = TrainedRun.opened(folder)
    policy, top = opened.policy, opened.top
    ordered = opened.run.selection(top) / "curriculum.parquet"
    files = top / "samples.parquet", top / "catalogue.parquet"
    opened.require_trained_on("curriculum", ordered)
    opened.require_trained_on("samples", files[0])
    curriculum = tables.read("curriculum", ordered).sort_by("position")
    chosen = splits.load(*files, "train", policy.prompt_history, tables.numpy(curriculum, "sample_id"))
    catalogue = tables.read("catalogue", files[1]).sort_by("row")
    target = catalogue.take(pa.array(chosen.target))
    prompts = [user_messages(body, policy.marker, policy.system) for body in chosen.bodies]
    table = {
        "prompt": pa.array(prompts, export.PROMPT),
        "target": target["title"],
        "item_id": target["item_id"],
        "sample_id": curriculum["sample_id"],
        "position": curriculum["position"],
        "mean_reward": curriculum["mean_reward"],
    }
    export.write(pa.table(table), out, None)
    sys.stdout.write(f"{out}: {len(chosen):,} samples in training order\n")
