"""Engines side by side: seconds to write the same completions of one model with a LoRA adapter, and operations a token.

`merged` is the built-in engine with the adapter merged into the weights while it writes, which is no setting: in
bfloat16 a merged weight loses what is smaller than its last bit. `log p apart` is the largest difference between the
log-probabilities of a token by two plain passes: with the weights as they are while the engine writes, and afterwards.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minirec.experiment import sections
from minirec.model import engines
from minirec.model.completions import Completions
from minirec.model.policy import Policy

ROOT = Path(__file__).parents[1]


class Launches(TorchDispatchMode):
    """Counts the operations that torch runs; on a GPU each would be a kernel launch or more."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def merged(policy: Policy, wanted: bool) -> Iterator[None]:
    """The adapter merged into the weights, which are put back bit by bit."""
    weights = {n: w for n, w in policy.model.named_parameters() if n.endswith("base_layer.weight")} if wanted else {}
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    if wanted:
        policy.model.merge_adapter()
    yield
    if wanted:
        policy.model.unmerge_adapter()
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(kept[name])


def log_p(policy: Policy, prompts: list[list[int]], written: Completions) -> torch.Tensor:
    """Log-probabilities of all written tokens, by a plain pass over each text."""
    found = []
    for prompt, row in zip(prompts, written.tokens, strict=True):
        for tokens in row:
            ids = torch.tensor([[*policy.user_prompts.prefix, *prompt, *tokens]], device=policy.device)
            states = policy.decoder(input_ids=ids).last_hidden_state[0][-len(tokens) - 1 : -1]
            found.append(policy.log_p(states, ids[0, -len(tokens) :]))
    return torch.cat(found)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "models" / "smollm", help="its folder")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--length", type=int, default=100, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens of a completion")
    parser.add_argument("--scale", type=float, default=0.01, help="standard deviation of the adapter's weights B")
    given = parser.parse_args()
    policy = Policy.load(given.model, sections.Policy(dtype=given.dtype), batch_tokens=4096)
    policy.add_adapter(seed=0)
    policy.__dict__["eos_ids"] = set()  # nobody stops early
    torch.manual_seed(0)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=given.scale)
    prompts = torch.randint(100, 1000, (given.prompts, given.length)).tolist()
    print("| engine | seconds | tokens/s | operations a token | log p apart |")
    print("|---|--:|--:|--:|--:|")
    for way in ("builtin", "merged", "transformers"):
        name = "builtin" if way == "merged" else way
        engine = engines.load(policy, sections.Sampling(engine=name), sections.Generation(), given.model)
        best = float("inf")
        with merged(policy, way == "merged"):
            for _ in range(2):
                started = time.perf_counter()
                written = engine.write(prompts, [given.new] * 4, range(given.prompts))
                best = min(best, time.perf_counter() - started)
            with Launches() as launches:  # of this thread alone
                engine.write(prompts[:4], [given.new] * 4, range(4))
            while_written = log_p(policy, prompts, written)
        apart = (log_p(policy, prompts, written) - while_written).abs().max().item()
        tokens = sum(len(row) for group in written.tokens for row in group)
        count = f"{launches.count / given.new / 4:.0f}" if name == "builtin" else "–"
        print(f"| {way} | {best:.1f} | {tokens / best:.0f} | {count} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    main()
