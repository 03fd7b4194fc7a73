"""rollout: the proxy writes G completions for every training sample, and each is rewarded (METHOD 4.2).

Batches are formed once, from the lengths of all prompts; a shard owns every shards-th batch, so the number of shards
changes nothing but the wall time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from minirec import config, generate, judge, schemas, splits, tensors
from minirec.artefact import Made
from minirec.errors import InputError
from minirec.policy import Policy
from minirec.progress import progress
from minirec.splits import Split
from minirec.whitening import Whitening


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
    if shard is not None and not 0 <= shard < rollout.shards:
        raise InputError(f"--shard is {shard}, but rollout.shards is {rollout.shards}; take 0 to {rollout.shards - 1}")
    settings = {k: v for part in (policy, sampling, reward, rollout) for k, v in part.model_dump().items()}
    inputs = {"samples": samples, "catalogue": catalogue, "items": items, "model": model}
    made = Made("rollout", settings, inputs | ({"adapter": adapter} if adapter else {}))
    train = splits.load(samples, catalogue, "train", policy.prompt_history)
    table = torch.from_numpy(tensors.read(items, "items")["items"])
    whiten = Whitening.read(whitening)
    loaded = Policy.load(model, policy, adapter)
    table = table.to(loaded.device)
    prompts = loaded.user_bodies(train.bodies)
    extra = sampling.completions * (sampling.max_new_tokens + len(loaded.marker_ids))
    own = list(loaded.batches(prompts, extra))[(shard or 0) :: rollout.shards if shard is not None else 1]
    rows_done: list[int] = []
    records: list[dict[str, Any]] = []
    states: list[np.ndarray] = []
    with progress("rollout", sum(map(len, own)), "samples") as bar:
        for rows in own:
            part = train.take(rows)
            stream = generate.noise(
                rollout.seed, part.sample_id.tolist(), sampling.completions, sampling.max_new_tokens
            )
            written = generate.write(
                loaded,
                [prompts[row] for row in rows],
                [sampling.max_new_tokens] * sampling.completions,
                stream.to(loaded.device),
                sampling.temperature,
                sampling.top_k,
            )
            judged = judge.judge(written.hidden, table, part, whiten, policy.tau, reward)
            records += _records(part, written, judged, loaded)
            states.append(written.hidden.cpu().numpy())
            rows_done += rows
            bar.add(len(rows))
    write(records, train.sample_id[rows_done], np.concatenate(states), rollouts, hidden, made)


def write(
    records: list[dict[str, Any]], sample_id: np.ndarray, states: np.ndarray, rollouts: Path, hidden: Path, made: Made
) -> None:
    """Write both artefacts in the order of sample_id."""
    table = pa.Table.from_pylist(records, schemas.TABLES["rollouts"].schema())
    schemas.write("rollouts", table.sort_by([("sample_id", "ascending"), ("completion", "ascending")]), rollouts, made)
    order = np.argsort(sample_id)
    tensors.write({"sample_id": sample_id[order], "hidden": states[order]}, hidden, made)


def _records(
    part: Split, written: generate.Completions, judged: dict[str, Tensor], policy: Policy
) -> list[dict[str, Any]]:
    columns = {name: values.tolist() for name, values in judged.items()}
    return [
        {
            "sample_id": int(part.sample_id[i]),
            "completion": g,
            "tokens": tokens,
            "text": policy.tokenizer.decode(tokens),
            **{name: values[i][g] for name, values in columns.items()},
        }
        for i, group in enumerate(written.tokens)
        for g, tokens in enumerate(group)
    ]
