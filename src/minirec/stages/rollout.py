"""rollout: let the proxy write G completions for every training sample, and reward each (METHOD 4.2).

Each finished batch is stored at once, so that a killed job can resume; at the end all are joined.
"""

from __future__ import annotations

from pathlib import Path

import torch

from minirec.data import splits
from minirec.experiment import sections
from minirec.experiment.validation import require_shard
from minirec.model import engines
from minirec.model.items import read_table
from minirec.model.policy import Policy
from minirec.model.rollouts import UNFINISHED, RolloutCheckpoint, records, shard_batches
from minirec.model.whitening import Whitening
from minirec.progress import progress
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output, locked_stage
from minirec.training import rewards


@locked_stage("rollouts", UNFINISHED)
@torch.no_grad()
def run(
    *,
    policy: sections.Policy,
    sampling: sections.Sampling,
    reward: sections.Reward,
    rollout: sections.Rollout,
    passes: sections.Passes,
    generation: sections.Generation,
    samples: Path,
    catalogue: Path,
    item_table: Path,
    model: Path,
    adapter: Path | None = None,
    whitening: Path | None = None,
    seed: int = 0,
    shard: int | None = None,
    rollouts: Output,
    hidden: Output,
) -> None:
    """Write rollouts.parquet and hidden.safetensors of all training samples, or of one shard of them."""
    require_shard("rollout", shard, rollout.shards)
    engines.require(sampling)
    inputs = {"samples": samples, "catalogue": catalogue, "items": item_table, "model": model}
    item_vectors = read_table(item_table, catalogue)
    whiten = Whitening.read(whitening, adapter)
    loaded = Policy.load(model, policy, adapter, passes.batch_tokens)
    item_vectors = item_vectors.to(loaded.device)
    writer = engines.load(loaded, sampling, generation, model, adapter, seed)
    settings = {k: v for section in (policy, sampling, reward, rollout) for k, v in section.model_dump().items()}
    if shard is None:
        del settings["shards"]
    else:
        settings["generation_tokens"] = writer.tokens  # shards share batches, so all must form the same ones
    provenance = Provenance("rollout", settings | {"seed": seed}, inputs | ({"adapter": adapter} if adapter else {}))
    checkpoint = RolloutCheckpoint(rollouts.with_name(UNFINISHED), provenance, shard)
    total = splits.count(samples, "train")
    limits = [sampling.max_new_tokens] * sampling.completions
    batches = shard_batches(
        writer,
        splits.windows(samples, catalogue, "train", policy.prompt_history),
        total,
        limits=limits,
        shard=shard,
        shards=rollout.shards,
    )
    with progress("rollout", total if shard is None else total // rollout.shards, "samples") as bar:
        for batch in batches:
            if checkpoint.holds(batch):
                bar.skip(len(batch.samples))
                continue
            completions = writer.write(batch.prompts, limits, batch.samples.sample_id.tolist())
            scored = rewards.score_completions(
                completions.hidden, item_vectors, batch.samples, whiten, policy.tau, reward
            )
            checkpoint.write(batch, records(batch.samples, completions, scored, loaded), completions.hidden)
            bar.add(len(batch.samples))
    checkpoint.join(sampling.completions, loaded.width, rollouts, hidden)
