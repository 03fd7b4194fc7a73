"""When a training evaluates valid (METHOD 3)."""

from __future__ import annotations

import math

from minirec.experiment.sections import Train


def evaluated_steps(train: Train, samples: int) -> list[int]:
    """The optimiser steps, from 1, after which a training on so many samples evaluates valid.

    They begin at the end of the warm-up, are whole rollouts apart, and include the last step.
    """
    if train.evaluation_steps == 0:
        return []
    updates = train.updates_per_rollout
    every = math.ceil((train.evaluation_steps or max(1, samples // 64)) / updates) * updates
    last = train.epochs * math.ceil(samples / train.batch_prompts) * updates
    first = 1 if train.scheduler == "constant" else train.warmup_steps
    return [step for step in range(1, last + 1) if step == last or (step >= first and step % every == 0)]
