"""rollout: the proxy writes G completions for every training sample, and each is rewarded (METHOD 4.2).

Batches are formed within windows of samples, from the lengths of their prompts; a shard owns whole batches, so the
number of shards changes nothing but the wall time. A finished batch is kept at once, and all are joined at the end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from minirec.data import splits
from minirec.data.splits import Split
from minirec.errors import InputError
from minirec.experiment import config
from minirec.model import engines, generate
from minirec.model.items import read_table
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.progress import progress
from minirec.storage import artefact, tables, tensors
from minirec.storage.artefact import Provenance
from minirec.storage.provenance import code_digest
from minirec.training import rewards


@artefact.locked_stage("rollouts", "rollouts.unfinished")
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
    engines.require(rollout.engine)
    settings = {k: v for part in (policy, sampling, reward, rollout) for k, v in part.model_dump().items()}
    del settings["vllm_memory"]  # of the machine
    if shard is None:
        del settings["shards"]
    inputs = {"samples": samples, "catalogue": catalogue, "items": items, "model": model}
    made = Provenance("rollout", settings, inputs | ({"adapter": adapter} if adapter else {}))
    table = read_table(items, catalogue)
    whiten = Whitening.read(whitening, adapter)
    loaded = Policy.load(model, policy, adapter)
    table = table.to(loaded.device)
    engine = engines.load(loaded, sampling, rollout, model, adapter)
    extra = sampling.completions * (sampling.max_new_tokens + len(loaded.marker_ids))
    parts = RolloutCheckpoint(rollouts.with_name("rollouts.unfinished"), made, shard)
    total = splits.count(samples, "train")
    windows = splits.windows(samples, catalogue, "train", policy.prompt_history)
    done: dict[int, list[Path]] = {}
    count = 0
    with progress("rollout", total if shard is None else total // rollout.shards, "samples") as bar:
        own = owner(total, rollout.shards, shard)
        for window, batch, part, prompts in batches(loaded, windows, extra, own, engine.batches):
            path = parts.path(window, batch)
            done.setdefault(window, []).append(path)
            count += len(part)
            if parts.finished(path):
                bar.skip(len(part))
                continue
            written = engine.write(prompts, part.sample_id.tolist())
            judged = rewards.score_completions(written.hidden, table, part, whiten, policy.tau, reward)
            parts.write(path, _records(part, written, judged, loaded), part.sample_id, written.hidden.cpu().numpy())
            bar.add(len(part))
    parts.join(list(done.values()), (count, sampling.completions, loaded.width), rollouts, hidden)


def owner(total: int, shards: int, shard: int | None) -> tuple[Callable[[int], bool], Callable[[int], bool]]:
    """Which windows the shard reads, and which batches of those it works on, both counted from 0.

    Shards take turns with the batches; where each has windows enough, with the windows: it then reads no others.
    """

    def everything(_: int) -> bool:
        return True

    def turn(number: int) -> bool:
        return number % shards == shard

    if shard is None:
        return everything, everything
    return (turn, everything) if total >= 8 * shards * splits.WINDOW else (everything, turn)


def batches(
    policy: Policy,
    windows: Iterable[Split],
    extra: int,
    own: tuple[Callable[[int], bool], Callable[[int], bool]],
    times: int = 1,
) -> Iterator[tuple[int, int, Split, list[list[int]]]]:
    """(window, batch, its samples, their prompts) of all batches of `times batch_tokens` that are one's own."""
    own_window, own_batch = own
    batch = 0
    for window, split in enumerate(windows):
        if own_window(window):
            prompts = policy.user_bodies(split.bodies)
            for rows in policy.batches(prompts, extra, times):
                if own_batch(batch):
                    yield window, batch, split.take(rows), [prompts[row] for row in rows]
                batch += 1


class RolloutCheckpoint:
    """Finished batches of a rollout, in a folder beside it, so that a killed job goes on where it stopped.

    A part made from other inputs, settings or code is not used.
    """

    def __init__(self, folder: Path, made: Provenance, shard: int | None) -> None:
        self.folder, self.made = folder, made
        self.record = json.dumps({"made": json.loads(made.json()), "shard": shard, "code": code_digest("rollout")})
        note = folder / "made.json"
        if folder.is_dir() and not (note.is_file() and note.read_text(encoding="utf-8") == self.record):
            shutil.rmtree(folder)
        with artefact.atomic_write(note) as partial:
            partial.write_text(self.record, encoding="utf-8")

    def path(self, window: int, batch: int) -> Path:
        """The rollouts of a batch; its states lie beside them."""
        return self.folder / f"{window:06}" / f"{batch:06}.parquet"

    def finished(self, path: Path) -> bool:
        """Whether a batch is there, undamaged."""
        if not path.is_file():  # written last
            return False
        try:
            self._read(path)
        except InputError:
            return False
        return True

    def write(self, path: Path, records: list[dict[str, Any]], sample_id: np.ndarray, states: np.ndarray) -> None:
        """Keep a batch."""
        tensors.write({"sample_id": sample_id, "hidden": states}, path.with_suffix(".safetensors"), self.made)
        table = pa.Table.from_pylist(records, tables.TABLES["rollouts"].schema())
        tables.write("rollouts", table, path, self.made)

    def join(self, windows: list[list[Path]], shape: tuple[int, int, int], rollouts: Path, hidden: Path) -> None:
        """Write both artefacts in the order of sample_id, a window at a time, and remove the parts.

        shape: of the states of all samples, [n, G, d].
        """
        with (
            tables.writer("rollouts", rollouts, self.made) as append,
            tensors.writer({"hidden": shape}, hidden, self.made) as append_states,
        ):
            for paths in windows:
                parts, found = zip(*map(self._read, paths), strict=True)
                table = pa.concat_tables(parts)
                append(table.sort_by([("sample_id", "ascending"), ("completion", "ascending")]))
                states = {name: np.concatenate([f[name] for f in found]) for name in ("sample_id", "hidden")}
                order = np.argsort(states["sample_id"])
                append_states(**{name: values[order] for name, values in states.items()})
        shutil.rmtree(self.folder)

    def _read(self, path: Path) -> tuple[pa.Table, dict[str, np.ndarray]]:
        states = tensors.read(path.with_suffix(".safetensors"), "sample_id", "hidden")
        return tables.read("rollouts", path), states


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
