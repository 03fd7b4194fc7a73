"""Settings and callbacks for TRL's trainer: when it evaluates, saves and stops; and its log as history.parquet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import GRPOConfig

from minirec.experiment import sections
from minirec.experiment.schedule import evaluated_steps
from minirec.progress import log, progress
from minirec.storage import tables

CHECKPOINT_ROLLOUTS = 16  # rollouts between two checkpoints; every evaluation saves one, too


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
    evaluated = evaluated_steps(train, samples)
    patience = [Patience(train.patience)] if evaluated else []
    return [Cadence(evaluated, CHECKPOINT_ROLLOUTS * train.updates_per_rollout), ProgressBar(), *patience]


def warmed_up(scheduler: LambdaLR, train: sections.Train) -> LambdaLR:
    """transformers' scheduler, but step k of w warm-up steps has k / w of the peak rate: the first step learns, too."""
    steps = 0 if train.scheduler == "constant" else train.warmup_steps
    later = scheduler.lr_lambdas[0]
    return LambdaLR(scheduler.optimizer, lambda done: (done + 1) / steps if done < steps else later(done))


class Cadence(TrainerCallback):
    """Lets the trainer evaluate after some steps only, and save after these, every `checkpoint_steps`, and the last."""

    def __init__(self, evaluated: Sequence[int], checkpoint_steps: int) -> None:
        self.evaluated, self.checkpoint_steps = set(evaluated), checkpoint_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Cancel evaluation and checkpoint after a step that is not due."""
        step, due = state.global_step, state.global_step in self.evaluated
        control.should_evaluate &= due
        control.should_save &= due or step % self.checkpoint_steps == 0 or step == state.max_steps


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
    valid = {entry["step"]: entry for entry in log_history if "eval_ndcg" in entry}
    names = tables.TABLES["history"].columns
    rows = []
    for entry in log_history:
        if "loss" in entry:
            evaluation = valid.get(entry["step"], {"eval_ndcg": None, "eval_seconds": 0.0})
            row = {name: entry.get(name, 0.0) for name in names} | {"gradient_norm": entry["grad_norm"]}
            row |= {"valid_ndcg": evaluation["eval_ndcg"], "seconds_valid": evaluation["eval_seconds"]}
            row["item_nll"] = entry.get("item_nll")
            rows.append(row | {"seconds": row["seconds"] + row["seconds_valid"]})
    return pa.Table.from_pylist(rows, tables.TABLES["history"].schema())
