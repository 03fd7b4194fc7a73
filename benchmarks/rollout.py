"""Rollouts a second: one prefill a prompt with the cache shared by its group, against transformers' generate.

Both write G completions a prompt with the same model, prompts and lengths and end with the state at the marker. The
plain way is `generate(num_return_sequences=G)` and a forward pass over the finished texts; bare steps are the
prefill and decoding steps, without sampling. Each runs in a process of its own, so peak memory is its own.
Then the stage itself, from file to file with a tiny model: rate and memory do not depend on the number of samples.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import DynamicCache

from minirec.data import models
from minirec.experiment import config, sources
from minirec.experiment.sections import Generation, Passes
from minirec.model import generate
from minirec.model.policy import Policy
from minirec.report.style import plt
from minirec.stages import embed, rollout
from minirec.storage import tables
from minirec.storage.artefact import Provenance

GROWTH, ITEMS, FEW = (2_000, 4_000, 8_000, 16_000), 500, {"completions": 2, "max_new_tokens": 2}
ROOT = Path(__file__).resolve().parents[1]
PASSES = Passes(batch_tokens=4096)


def ours(policy: Policy, prompts: list[list[int]], groups: int, new: int) -> None:
    uniforms = generate.sampling_uniforms(0, range(len(prompts)), groups, new)
    generate.generate(policy, prompts, [new] * groups, uniforms, 1.5, 200)


def plain(policy: Policy, prompts: list[list[int]], groups: int, new: int) -> None:
    ids = torch.tensor([policy.user_prompts.prefix + prompt for prompt in prompts])
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": True, "temperature": 1.5, "top_k": 200}
    torch.manual_seed(0)
    written = policy.model.generate(
        ids, attention_mask=torch.ones_like(ids), num_return_sequences=groups, pad_token_id=0, **settings
    )
    marker = torch.tensor([policy.marker_ids]).expand(len(written), -1)
    policy.decoder(input_ids=torch.cat([written, marker], 1)).last_hidden_state[:, -1]


def bare(policy: Policy, prompts: list[list[int]], groups: int, new: int) -> None:
    cache = DynamicCache(config=policy.decoder.config)
    prefix = torch.tensor([policy.user_prompts.prefix])
    policy.decoder(input_ids=prefix, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(prompts))
    policy.decoder(input_ids=torch.tensor(prompts), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(groups)
    token = torch.zeros(len(prompts) * groups, 1, dtype=torch.long)
    for step in range(new + len(policy.marker_ids)):
        state = policy.decoder(input_ids=token, past_key_values=cache, use_cache=True).last_hidden_state
        if step < new:
            policy.logits(state[:, 0])


WAYS: dict[str, Callable[..., None]] = {"minirec": ours, "generate + forward": plain, "bare steps": bare}


@torch.no_grad()
def measure(way: str, model: Path, count: int, length: int, groups: int, new: int) -> tuple[float, float]:
    policy = Policy.load(model, settings().policy, batch_tokens=PASSES.batch_tokens)
    policy.__dict__["eos_ids"] = set()  # nobody stops early
    generator = torch.Generator().manual_seed(0)
    body = torch.randint(1000, 20_000, (count, length - len(policy.user_prompts.prefix)), generator=generator)
    prompts = body.tolist()
    WAYS[way](policy, prompts[:1], groups, 2)  # warm
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        WAYS[way](policy, prompts, groups, new)
        best = min(best, time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return best, peak


def settings() -> config.Config:
    return config.load(ROOT / "config" / "config.yaml", ROOT / "config" / "quickstart.yaml")


def prepared(folder: Path) -> dict[str, Path]:
    """A catalogue of made-up titles, a tiny model whose tokenizer knows them, and its item table."""
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("aeioulmnrst"), 5)) for _ in range(400)])
    titles = [" ".join(generator.choice(words, generator.integers(2, 9))) for _ in range(ITEMS)]
    ids = [f"i{row}" for row in range(ITEMS)]
    pq.write_table(pa.table({"item_id": ids, "title": titles}), folder / "items.parquet")
    paths = {"catalogue": folder / "catalogue.parquet", "model": folder / "model"}
    models.fetch(sources.Model(source="tiny", dataset="made.up"), folder / "items.parquet", paths["model"])
    rows = {"row": range(ITEMS), "item_id": ids, "title": titles, "text": titles, "popularity": [1] * ITEMS}
    tables.write(
        "catalogue", pa.table(rows, tables.TABLES["catalogue"].schema()), paths["catalogue"], Provenance("prepare")
    )
    paths |= {"whitening": folder / "whitening.safetensors", "item_table": folder / "items.safetensors"}
    policy = settings().policy.model_copy(update={"whiten_dim": None})
    files = {**paths, "samples": folder / "none", "frozen_states": folder / "frozen_states.safetensors"}
    embed.run(policy=policy, embed=settings().embed, passes=PASSES, **files)
    return paths


def users(n: int, file: Path) -> None:
    """n training samples with histories of one to five items."""
    generator = np.random.default_rng(0)
    with tables.writer("samples", file, Provenance("prepare")) as append:
        for ids in np.array_split(np.arange(n), -(-n // 10_000)):
            history = [generator.integers(0, ITEMS, count).tolist() for count in generator.integers(1, 6, len(ids))]
            columns = {"sample_id": ids, "split": ["train"] * len(ids), "user_id": ["u"] * len(ids)}
            columns |= {"target_row": generator.integers(0, ITEMS, len(ids)), "history_rows": history}
            columns |= {"history_rating": [[5.0] * len(h) for h in history], "timestamp": ids}
            columns |= {"history_age_ms": [[86_400_000] * len(h) for h in history]}
            append(pa.table(columns, tables.TABLES["samples"].schema()))


def stage(paths: dict[str, Path], folder: Path) -> tuple[float, float, float]:
    """Run the stage; (seconds, CPU seconds and peak GiB of its process)."""
    given = settings()
    policy = given.policy.model_copy(update={"whiten_dim": None})
    sections = {"sampling": given.sampling.model_copy(update=FEW), "reward": given.reward, "rollout": given.rollout}
    started = time.perf_counter()
    out = {"rollouts": folder / "rollouts.parquet", "hidden": folder / "hidden.safetensors"}
    rollout.run(policy=policy, **sections, passes=PASSES, generation=Generation(), **paths, **out)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime
    return time.perf_counter() - started, cpu, used.ru_maxrss / 2**20


def growth(plot: Path) -> None:
    """The stage on growing files, each in a process of its own."""
    print(f"\nthe stage, from file to file: a tiny model, {ITEMS:,} items, 2 completions of 2 tokens\n")
    print("| samples | seconds | samples/s | samples per CPU second | peak GiB |")
    print("|--------:|--------:|----------:|-----------------------:|---------:|")
    context = multiprocessing.get_context("spawn")
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = prepared(folder) | {"samples": folder / "samples.parquet"}
        for n in GROWTH:
            users(n, paths["samples"])
            with ProcessPoolExecutor(1, context) as alone:
                found.append(alone.submit(stage, paths, folder).result())
            seconds, cpu, peak = found[-1]
            print(f"| {n:7,} | {seconds:7.1f} | {n / seconds:9.1f} | {n / cpu:22.1f} | {peak:8.2f} |", flush=True)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    axes[0].semilogx(GROWTH, [n / cpu for n, (_, cpu, _) in zip(GROWTH, found, strict=True)], marker="o")
    axes[0].set(xlabel="samples", ylabel="samples per CPU second", ylim=(0, None))
    axes[1].semilogx(GROWTH, [peak for *_, peak in found], marker="o")
    axes[1].set(xlabel="samples", ylabel="peak memory, GiB", ylim=(0, None))
    for panel in axes:
        panel.set_xticks(GROWTH, [f"{n:,}" for n in GROWTH])
        panel.set_xticks([], minor=True)
    figure.suptitle("Rollouts of a tiny model")
    plot.parent.mkdir(exist_ok=True)
    figure.savefig(plot, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "models" / "smollm")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--new", type=int, default=16, help="tokens of a completion")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "rollout.png")
    given = parser.parse_args()
    if not (given.model / "config.json").is_file():
        sys.exit(f"{given.model} is not there; make it with: snakemake --cores 2 data/models/smollm")
    context = multiprocessing.get_context("spawn")
    found = {}
    for way in WAYS:
        arguments = (way, given.model, given.prompts, given.length, given.groups, given.new)
        with ProcessPoolExecutor(1, context) as alone:
            found[way] = alone.submit(measure, *arguments).result()
    slowest = found["generate + forward"][0]
    print(f"{given.prompts} prompts of {given.length} tokens, {given.groups} completions of {given.new} tokens")
    print("| way | seconds | samples/s | against generate + forward | speed of the bare steps | peak GiB |")
    print("|---|--:|--:|--:|--:|--:|")
    for way, (seconds, peak) in found.items():
        share = found["bare steps"][0] / seconds
        rate, ratio = given.prompts / seconds, slowest / seconds
        print(f"| {way} | {seconds:.2f} | {rate:.2f} | {ratio:.2f}x | {share:.0%} | {peak:.2f} |")
    growth(given.plot)


if __name__ == "__main__":
    main()
