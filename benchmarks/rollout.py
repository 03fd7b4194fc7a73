"""Rollouts a second: one prefill a prompt with the cache shared by its group, against transformers' generate.

Both write G completions a prompt with the same model, prompts and lengths and end with the state at the marker. The
plain way is `generate(num_return_sequences=G)` and a forward pass over the finished texts; bare steps are the
prefill and decoding steps, without sampling. Each runs in a process of its own, so peak memory is its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import DynamicCache

from minirec import config, generate
from minirec.policy import Policy

ROOT = Path(__file__).resolve().parents[1]


def ours(policy: Policy, prompts: list[list[int]], groups: int, new: int) -> None:
    noise = generate.noise(0, range(len(prompts)), groups, new)
    generate.write(policy, prompts, [new] * groups, noise, 1.5, 200)


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
def measure(way: str, model: Path, count: int, length: int, groups: int, new: int, results: object) -> None:
    settings = config.load(ROOT / "config" / "config.yaml", ROOT / "config" / "quickstart.yaml")
    policy = Policy.load(model, settings.policy)
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
    results.put((best, peak))  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "models" / "smollm")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--new", type=int, default=16, help="tokens of a completion")
    given = parser.parse_args()
    if not (given.model / "config.json").is_file():
        sys.exit(f"{given.model} is not there; make it with: snakemake --cores 2 data/models/smollm")
    context = multiprocessing.get_context("spawn")
    found = {}
    for way in WAYS:
        results = context.Queue()
        arguments = (way, given.model, given.prompts, given.length, given.groups, given.new, results)
        process = context.Process(target=measure, args=arguments)
        process.start()
        found[way] = results.get()
        process.join()
    slowest = found["generate + forward"][0]
    print(f"{given.prompts} prompts of {given.length} tokens, {given.groups} completions of {given.new} tokens")
    print("| way | seconds | samples/s | against generate + forward | speed of the bare steps | peak GiB |")
    print("|---|--:|--:|--:|--:|--:|")
    for way, (seconds, peak) in found.items():
        share = found["bare steps"][0] / seconds
        rate, ratio = given.prompts / seconds, slowest / seconds
        print(f"| {way} | {seconds:.2f} | {rate:.2f} | {ratio:.2f}x | {share:.0%} | {peak:.2f} |")


if __name__ == "__main__":
    main()
