"""train: GRPO on a curriculum, or of a proxy on random samples (METHOD 3, 4.1, 4.8).

Checkpoints lie in `checkpoints/` beside the adapter, one at every evaluation on valid after which the run goes on, four
an epoch where nothing is evaluated; an interrupted run goes on from the last complete one, to the same weights. A run
that diverges leaves the policy of its best one.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig

from minirec.data import splits
from minirec.data.splits import Split
from minirec.errors import InputError, NotFinite
from minirec.evaluation import metrics, ranking
from minirec.experiment import config
from minirec.model import distributed
from minirec.model.items import FrozenItemStates, ItemEncoder, read_table
from minirec.model.policy import Policy
from minirec.model.whitening import WHITENING, Head, Whitening
from minirec.progress import log, progress
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance
from minirec.storage.files import atomic_write, locked_stage
from minirec.storage.provenance import code_digest
from minirec.training.trainer import RecommenderTrainer

CHECKPOINTS = 4  # an epoch, where none comes with an evaluation
MEMORY = ("micro_batch_prompts", "shard_layers")  # settings that leave the results alone
LAST_GOOD = "last_good"  # beside the adapter of a run that diverged


def proxy_samples(sample_id: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A uniform draw of training samples, in the drawn order (METHOD 4.1)."""
    if count > len(sample_id):
        raise InputError(f"train.proxy_size is {count}, but there are only {len(sample_id)} training samples; lower it")
    return np.random.default_rng(seed).choice(sample_id, count, replace=False)


def arguments(train: config.Train, completions: int, seed: int, folder: Path, validated: bool) -> Any:
    """TRL's settings; what TRL would decide by itself is said here."""
    groups = max(2, completions)  # TRL refuses 1; our completions never pass through it
    return GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=train.batch_prompts,
        per_device_eval_batch_size=groups,
        num_generations=groups,
        steps_per_generation=groups,
        gradient_accumulation_steps=1,
        num_train_epochs=train.epochs,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_steps,
        max_grad_norm=train.max_grad_norm,
        beta=0.0,
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validated else "no",
        eval_steps=1,  # `_Cadence` chooses among the steps
        save_strategy="steps",
        save_steps=1,
        save_total_limit=None,  # the trainer's own code removes checkpoints, once the next one is complete
        load_best_model_at_end=validated,
        metric_for_best_model="eval_ndcg",
        greater_is_better=True,
        report_to="none",
        disable_tqdm=True,
        restore_callback_states_from_checkpoint=True,  # the patience that is left
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
    )


def evaluated_after(steps: int, times: int) -> set[int]:
    """Steps of an epoch, from 1, with an evaluation after them: evenly spread, the last among them."""
    return {-(-steps * number // times) for number in range(1, times + 1)}


class _Cadence(TrainerCallback):
    """Lets evaluations and checkpoints be after some steps of every epoch only."""

    def __init__(self, steps: int, times: int) -> None:
        self.steps, self.due = steps, evaluated_after(steps, times)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = (state.global_step - 1) % self.steps + 1 in self.due
        control.should_evaluate &= due
        control.should_save &= due


class _Bar(TrainerCallback):
    """Shows the steps."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.context = progress(self.what, state.max_steps, "steps", done=state.global_step)
        self.bar = self.context.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.add()

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        log.info("valid: NDCG@10 %.4f after step %d", given["metrics"]["eval_ndcg"], state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.context.__exit__(None, None, None)


class _Patience(EarlyStoppingCallback):
    """Writes no checkpoint at the stop: a run interrupted after it comes to it again, instead of going past it."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **given: Any) -> None:
        super().on_evaluate(args, state, control, metrics, **given)
        control.should_save &= self.early_stopping_patience_counter < self.early_stopping_patience


def history_table(log_history: list[dict[str, Any]]) -> pa.Table:
    """The trainer's log as history.parquet."""
    valid = {entry["step"]: entry["eval_ndcg"] for entry in log_history if "eval_ndcg" in entry}
    names = tables.TABLES["history"].columns
    rows = []
    for entry in log_history:
        if "loss" in entry:
            row = {name: entry.get(name, 0.0) for name in names}
            row |= {"gradient_norm": entry["grad_norm"], "valid_ndcg": valid.get(entry["step"])}
            rows.append(row)
    return pa.Table.from_pylist(rows, tables.TABLES["history"].schema())


def resumable(folder: Path, made: Provenance) -> None:
    """Keep in a folder only the complete checkpoints of a run with the same inputs, settings and code.

    Settings that change memory alone may differ: after one that was too large, a run goes on with a smaller one.

    One goes with the best before it, which the trainer would otherwise forget and end with the last policy.
    """
    decisive = {name: value for name, value in made.settings.items() if name not in MEMORY}
    record = json.dumps(
        {"provenance": json.loads(replace(made, settings=decisive).json()), "code": code_digest("train")}
    )
    note = folder / "provenance.json"
    if folder.exists() and (not note.is_file() or note.read_text(encoding="utf-8") != record):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
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
    with atomic_write(note) as partial:
        partial.write_text(record, encoding="utf-8")


def save_adapter(trainer: RecommenderTrainer, out: Path, made: Provenance) -> None:
    """Write the adapter's folder beside `out`, then rename."""
    with artefact.atomic_folder(out, made) as partial:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(partial, safe_serialization=True)
        (partial / "README.md").unlink(missing_ok=True)
        trainer.head.merged_whitening().write(partial / WHITENING, made)
        settings = json.loads((partial / "adapter_config.json").read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = None  # from the command line; a path would differ between machines
        settings["target_modules"] = sorted(settings["target_modules"])  # a set: its order is not the same twice
        (partial / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


@locked_stage("out", "checkpoints")
def run(
    *,
    policy: config.Policy,
    sampling: config.Sampling,
    reward: config.Reward,
    train: config.Train,
    samples: Path,
    catalogue: Path,
    items: Path,
    whitening: Path,
    frozen_states: Path,
    model: Path,
    curriculum: Path | None,
    seed: int,
    history: Path,
    out: Path,
) -> None:
    """Train a fresh adapter and write it with the history of its steps."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if curriculum is None:
        order = proxy_samples(splits.sample_ids(samples, "train"), train.proxy_size, seed)
        train = train.model_copy(update={"epochs": train.proxy_epochs or train.epochs})
    else:
        order = tables.numpy(tables.read("curriculum", curriculum).sort_by("position"), "sample_id")
    settings = {k: v for part in (policy, sampling, reward, train) for k, v in part.model_dump().items()}
    inputs = {"samples": samples, "catalogue": catalogue, "items": items, "whitening": whitening, "model": model}
    made = Provenance("train", settings | {"seed": seed}, inputs | ({"curriculum": curriculum} if curriculum else {}))
    if nothing := config.teaches_nothing(sampling, train):
        raise InputError(nothing)
    validated = train.evaluations_per_epoch > 0
    checkpoints = out.parent / "checkpoints"
    chosen = splits.load(samples, catalogue, "train", policy.prompt_history, order)
    settled = arguments(train, sampling.completions, seed, checkpoints, validated)  # joins the processes
    loaded = Policy.load(model, policy, shard_layers=train.shard_layers and distributed.world_size() > 1)
    loaded.add_adapter(seed)
    head = Head(Whitening.read(whitening), loaded.width, train.head)
    valid = splits.load(samples, catalogue, "valid", policy.prompt_history) if validated else None
    with distributed.first_rank_alone() as first:
        if first:
            resumable(checkpoints, made)
    last = get_last_checkpoint(str(checkpoints))
    if last:
        log.info("going on from %s", last)
    trainer = RecommenderTrainer(
        loaded,
        head,
        read_table(items, catalogue),
        ItemEncoder(loaded, splits.catalogue_texts(catalogue), FrozenItemStates.read(frozen_states)),
        chosen,
        train=train,
        sampling=sampling,
        reward=reward,
        validate=_validator(loaded, head, valid, sampling.max_new_tokens) if valid else None,
        seed=seed,
        args=settled,
        train_dataset=Dataset.from_dict({"prompt": [""] * len(chosen), "row": list(range(len(chosen)))}),
        eval_dataset=Dataset.from_dict({"prompt": [""]}) if validated else None,
        callbacks=[
            _Cadence(math.ceil(len(chosen) / train.batch_prompts), train.evaluations_per_epoch or CHECKPOINTS),
            _Bar("train"),
            *([_Patience(train.patience)] if validated else []),
        ],
    )
    trainer.remove_callback(PrinterCallback)  # the log has its own lines
    try:
        trainer.train(resume_from_checkpoint=last)
    except NotFinite as problem:
        if trainer.state.global_step == 0:  # it began so
            raise
        kept = _last_good(trainer, checkpoints, out.parent / LAST_GOOD, made)
        advice = f"lower train.learning_rate or train.head_learning_rate; {kept}"
        raise InputError(f"training diverged, {problem.what}; {advice}") from problem
    with distributed.first_rank_alone() as first:
        if first:
            save_adapter(trainer, out, made)
            tables.write("history", history_table(trainer.state.log_history), history, made)
            shutil.rmtree(checkpoints)
            shutil.rmtree(out.parent / LAST_GOOD, ignore_errors=True)


def _last_good(trainer: RecommenderTrainer, checkpoints: Path, out: Path, made: Provenance) -> str:
    """Write the policy of the best checkpoint, or else of the last one, as an adapter; what became of it, in words."""
    good = trainer.state.best_model_checkpoint or get_last_checkpoint(str(checkpoints))
    if good is not None:
        trainer._load_from_checkpoint(good)
    with distributed.first_rank_alone() as first:
        if first:
            shutil.rmtree(out, ignore_errors=True)  # of an earlier run
            if good is not None:
                save_adapter(trainer, out, made)
    return "there is no checkpoint yet" if good is None else f"the policy of {Path(good).name} is kept in {out}"


def _validator(policy: Policy, head: Head, valid: Split, max_new_tokens: int) -> Any:
    own = valid.take(distributed.local_rows(len(valid)))

    def validate(items: Tensor) -> float:
        policy.model.eval()
        try:
            ranked = ranking.rank(policy, head.merged_whitening(), items, own, max_new_tokens, 0, "valid")
            total = torch.tensor(metrics.ndcg(ranked.rank, 10).sum(), device=policy.device)
        except NotFinite:
            total = torch.tensor(torch.nan, dtype=torch.float64, device=policy.device)  # so that every process stops
        return distributed.all_reduce_sum(total).item() / len(valid)

    return validate
