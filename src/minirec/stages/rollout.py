"""rollout: the proxy generates G completions for every training sample, and each is rewarded (METHOD 4.2).

A finished batch is kept at once, so that a killed job resumes, and all are joined at the end.
"""

from __future__ import annotations

from pathlib import Path

import torch

from minirec.data import splits
from minirec.experiment import config
from minirec.experiment.validation import require_shard
from minirec.model import engines
from minirec.model.items import read_table
from minirec.model.policy import Policy
from minirec.model.rollouts import UNFINISHED, RolloutCheckpoint, records, shard_batches
from minirec.model.whitening import Whitening
from minirec.progress import progress
from minirec.storage.artefact import Provenance
from minirec.storage.files import locked_stage
from minirec.training import judge


@locked_stage("rollouts", UNFINISHED)
@torch.no_grad()
def run(
    *,
    policy: config.Policy,
    sampling: config.Sampling,
    reward: config.Reward,
    rollout: config.Rollout,
    samples: Path,
    catalogue: Path,
    items: Path,
    whitening: Path,
    model: Path,
    adapter: Path | None,
    shard: int | None,
    rollouts: Path,
    hidden: Path,
) -> None:
    """Write rollouts.parquet and hidden.safetensors of all training samples, or of one shard."""
    require_shard("rollout", shard, rollout.shards)
    engines.require(rollout.engine)
    settings = {k: v for section in (policy, sampling, reward, rollout) for k, v in section.model_dump().items()}
    del settings["vllm_memory"]  # of the machine
    if shard is None:
        del settings["shards"]
    inputs = {"samples": samples, "catalogue": catalogue, "items": items, "model": model}
    provenance = Provenance("rollout", settings, inputs | ({"adapter": adapter} if adapter else {}))
    item_vectors = read_table(items, catalogue)
    whiten = Whitening.read(whitening, adapter)
    loaded = Policy.load(model, policy, adapter)
    item_vectors = item_vectors.to(loaded.device)
    engine = engines.load(loaded, sampling, rollout, model, adapter)
    checkpoint = RolloutCheckpoint(rollouts.with_name(UNFINISHED), provenance, shard)
    total = splits.count(samples, "train")
    batches = shard_batches(
        loaded,
        splits.windows(samples, catalogue, "train", policy.prompt_history),
        total,
        extra=sampling.completions * (sampling.max_new_tokens + len(loaded.marker_ids)),
        shard=shard,
        shards=rollout.shards,
        batches_per_call=engine.batches_per_call,
    )
    with progress("rollout", total if shard is None else total // rollout.shards, "samples") as bar:
        for batch in batches:
            if checkpoint.holds(batch):
                bar.skip(len(batch.samples))
                continue
            completions = engine.generate(batch.prompts, batch.samples.sample_id.tolist())
            scored = judge.score_completions(
                completions.hidden, item_vectors, batch.samples, whiten, policy.tau, reward
            )
            checkpoint.write(batch, records(batch.samples, completions, scored, loaded), completions.hidden)
            bar.add(len(batch.samples))
    checkpoint.join(sampling.completions, loaded.width, rollouts, hidden)
