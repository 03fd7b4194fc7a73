"""Settings and callbacks for TRL's trainer: when it evaluates, saves and stops; and its log as history.parquet."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import torch
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import GRPOConfig

from minirec.experiment import sections
from minirec.progress import log, progress
from minirec.storage import tables

CHECKPOINTS_PER_EPOCH = 4  # in a run without evaluations; else every evaluation saves one


def grpo_arguments(train: sections.Train, completions: int, seed: int, folder: Any, validated: bool) -> Any:
    """TRL's settings (GRPOConfig) of a run; all that can change its results is set here, none left to TRL's defaults.

    folder: of the checkpoints. validated: evaluate on the valid split, and end with the policy of the best evaluation.
    If a launcher started several processes, this call connects them.
    """
    groups = max(2, completions)  # TRL refuses 1; it never handles our completions
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
        eval_steps=1,  # `Cadence` chooses among the steps
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


def training_callbacks(train: sections.Train, samples: int) -> list[TrainerCallback]:
    """The callbacks of a run whose epochs have `samples` samples."""
    steps = math.ceil(samples / train.batch_prompts)
    times = train.evaluations_per_epoch
    patience = [Patience(train.patience)] if times else []
    return [Cadence(steps, times or CHECKPOINTS_PER_EPOCH), ProgressBar(), *patience]


def evaluated_after(steps: int, times: int) -> set[int]:
    """After which of an epoch's steps, from 1, to evaluate: `times` of them, evenly spread, always the last one.

    >>> sorted(evaluated_after(steps=6, times=4))
    [2, 3, 5, 6]
    """
    return {-(-steps * number // times) for number in range(1, times + 1)}


class Cadence(TrainerCallback):
    """Lets the trainer evaluate and save only after the steps of each epoch that `evaluated_after` names."""

    def __init__(self, steps: int, times: int) -> None:
        self.steps, self.due = steps, evaluated_after(steps, times)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Cancel evaluation and checkpoint after a step that is not due."""
        due = (state.global_step - 1) % self.steps + 1 in self.due
        control.should_evaluate &= due
        control.should_save &= due


class ProgressBar(TrainerCallback):
    """Shows a progress bar of the steps, and logs NDCG@10 on the valid split."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar, at the step that the run resumes from."""
        self.context = progress("train", state.max_steps, "steps", done=state.global_step)
        self.bar = self.context.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count one step."""
        self.bar.add()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        """Log the evaluation."""
        log.info("valid: NDCG@10 %.4f after step %d", metrics["eval_ndcg"], state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.context.__exit__(None, None, None)


class Patience(EarlyStoppingCallback):
    """Stops after `train.patience` evaluations in a row that do not beat the best.

    Writes no checkpoint when it stops: a run interrupted then repeats that step and stops again, instead of going on.
    """

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **more: Any) -> None:
        """Count the evaluation."""
        super().on_evaluate(args, state, control, metrics, **more)
        control.should_save &= self.early_stopping_patience_counter < self.early_stopping_patience


def history_table(log_history: list[dict[str, Any]]) -> pa.Table:
    """The trainer's log as the table history.parquet: one row per step, with the evaluation after it, if any."""
    valid = {entry["step"]: entry["eval_ndcg"] for entry in log_history if "eval_ndcg" in entry}
    names = tables.TABLES["history"].columns
    rows = []
    for entry in log_history:
        if "loss" in entry:
            row = {name: entry.get(name, 0.0) for name in names}
            row |= {"gradient_norm": entry["grad_norm"], "valid_ndcg": valid.get(entry["step"])}
            rows.append(row)
    return pa.Table.from_pylist(rows, tables.TABLES["history"].schema())
