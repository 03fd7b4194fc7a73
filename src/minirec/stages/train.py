"""train: train a fresh policy on a curriculum with GRPO and the item loss (METHOD 3, 4.8).

Checkpoints lie in `checkpoints/` beside the adapter: one after every evaluation on valid unless training stops there,
and one every 16 rollouts. An interrupted run resumes from the last complete one and ends with the same weights. A run
that diverges leaves the policy of its best checkpoint in `last_good/`.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from minirec.data import splits
from minirec.errors import InputError
from minirec.evaluation.validator import validator
from minirec.experiment import sections
from minirec.model import distributed, engines
from minirec.model.items import FrozenItemStates, ItemEncoder, read_table
from minirec.model.policy import Policy
from minirec.model.whitening import Head, Whitening
from minirec.storage import tables
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output, locked_stage
from minirec.training import checkpoints
from minirec.training.callbacks import grpo_arguments, history_table, training_callbacks
from minirec.training.trainer import RecommenderTrainer


@locked_stage("adapter", checkpoints.FOLDER)
def run(
    *,
    policy: sections.Policy,
    sampling: sections.Sampling,
    reward: sections.Reward,
    train: sections.Train,
    passes: sections.Passes,
    generation: sections.Generation,
    backward: sections.Backward,
    samples: Path,
    catalogue: Path,
    curriculum: Path,
    item_table: Path,
    whitening: Path,
    frozen_states: Path,
    model: Path,
    seed: int = 0,
    adapter: Output,
    history: Output,
) -> None:
    """Train a new adapter on a curriculum; write it and history.parquet, the log of its steps."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    sample_ids = tables.numpy(tables.read("curriculum", curriculum).sort_by("position"), "sample_id")
    settings = {k: v for part in (policy, sampling, reward, train) for k, v in part.model_dump().items()}
    inputs = {"samples": samples, "catalogue": catalogue, "items": item_table, "whitening": whitening, "model": model}
    inputs["curriculum"] = curriculum
    provenance = Provenance("train", settings | {"seed": seed}, inputs)
    if reason := sections.teaches_nothing(sampling, train):
        raise InputError(reason)
    folder, last_good = adapter.with_name(checkpoints.FOLDER), adapter.with_name(checkpoints.LAST_GOOD)
    validated = train.evaluation_steps != 0
    chosen = splits.load(samples, catalogue, "train", policy.prompt_history, sample_ids)
    arguments = grpo_arguments(train, sampling.completions, seed, folder, validated)  # connects the processes
    distributed.log_idle_gpus()
    shard_layers = backward.shard_layers and distributed.world_size() > 1
    engines.require(sampling, shard_layers)
    loaded = Policy.load(model, policy, batch_tokens=passes.batch_tokens, shard_layers=shard_layers)
    loaded.add_adapter(seed)
    writer = engines.load(loaded, sampling, generation, model, seed=seed)
    head = Head(Whitening.read(whitening), loaded.width, train.head)
    valid = None
    if validated:
        valid = splits.load(samples, catalogue, "valid", policy.prompt_history).draw(train.max_valid, seed)
    with distributed.first_rank_alone() as first:
        if first:
            checkpoints.remove_unusable(folder, provenance)
    trainer = RecommenderTrainer(
        writer,
        head,
        read_table(item_table, catalogue),
        ItemEncoder(loaded, splits.catalogue_texts(catalogue), FrozenItemStates.read(frozen_states)),
        chosen,
        train=train,
        reward=reward,
        validate=None if valid is None else validator(writer, head, valid, sampling.max_new_tokens),
        micro_batch_prompts=backward.micro_batch_prompts,
        seed=seed,
        args=arguments,
        callbacks=training_callbacks(train, len(chosen)),
    )
    checkpoints.train_or_keep_last_good(trainer, folder, last_good, provenance)
    with distributed.first_rank_alone() as first:
        if first:
            checkpoints.save_adapter(trainer, adapter, provenance)
            tables.write("history", history_table(trainer.state.log_history), history, provenance)
    with distributed.first_rank_alone() as first:  # by now every process has read its best checkpoint
        if first:
            shutil.rmtree(folder)
            shutil.rmtree(last_good, ignore_errors=True)
