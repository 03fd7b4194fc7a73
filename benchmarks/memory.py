"""Memory of a training step: what `minirec plan` says against what is allocated, at the shapes of the paper's models.

A micro-batch is read again with its completions, its log-probabilities are computed, and their gradient is propagated:
with random weights of the true widths, and one and three of the layers. The profiler counts every allocation; the peak
grows by the same number of bytes a layer, so that two depths give that of the whole model. A second row a model has a
vocabulary of 1,024, where a layer that is run again needs more than the logits. Weights are left out on both sides.
"""

from __future__ import annotations

import argparse
import copy
import gc
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from minirec.experiment import config as config_file
from minirec.experiment import sections
from minirec.model.cache import BranchReader
from minirec.model.one_pass import OnePass
from minirec.model.policy import Policy
from minirec.planning import training_memory
from minirec.planning.paper_models import SHAPES
from minirec.planning.training_memory import Tokens
from minirec.planning.workload import LanguageModel, Sizes, shape_of

ROOT = Path(__file__).resolve().parents[1]
SIZES = Sizes(10_748, 1_000, 1_000, 10_000, 300, 200)  # samples, items, and tokens of their prompts
DEPTHS = (1, 3)


def policy_of(config: Any) -> Policy:
    """A policy with random weights, and an adapter on all layers."""
    settings = sections.Policy()
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings.dtype))
    policy = Policy(model.eval(), None, settings)
    policy.add_adapter(0)
    return policy


def peak_bytes(policy: Policy, given: argparse.Namespace) -> float:
    """Most bytes allocated at a time beyond what is there before, by reading a micro-batch forth and back."""
    prompts, completions = given.prompts, given.completions

    def ids(count: int) -> list[int]:
        return torch.randint(0, 1000, (count,)).tolist()

    bodies = [ids(given.length) for _ in range(prompts)]
    texts = [[ids(given.new) for _ in range(completions)] for _ in range(prompts)]
    prefix = ids(training_memory.PREFIX_TOKENS)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
        cache = OnePass(policy.decoder, prefix, prompts)
        reader = BranchReader(cache, completions, policy.width, "last")
        reader.read_with_prompts(bodies, texts)
        states = reader.states.flatten(0, 2)
        chosen = torch.tensor(texts).flatten()
        loss = policy.log_p(states, chosen).sum() + reader.pooled().sum()
        loss.backward()
    policy.model.zero_grad()
    current = most = 0
    for event in events.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            most = max(most, current)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1, help="prompts of the micro-batch; 1")
    parser.add_argument("--length", type=int, default=128, help="tokens of a prompt after the prefix; 128")
    parser.add_argument("--completions", type=int, default=4, help="4")
    parser.add_argument("--new", type=int, default=64, help="tokens of a completion; 64")
    given = parser.parse_args()
    row = given.length + given.completions * given.new
    print(f"a micro-batch of {given.prompts} x ({given.length} + {given.completions} x {given.new}) tokens")
    print("| model | vocabulary | layers | measured GB | formula GB | formula / measured |")
    print("|---|--:|--:|--:|--:|--:|")
    for name, vocabulary in product(SHAPES, (None, 1024)):
        config = AutoConfig.for_model(**SHAPES[name])
        depth = config.num_hidden_layers
        config.vocab_size = vocabulary or config.vocab_size
        measured = {}
        for layers in DEPTHS:
            short = copy.deepcopy(config)
            short.num_hidden_layers = layers
            short.layer_types = short.layer_types[:layers]
            measured[layers] = peak_bytes(policy_of(short), given)
        layer = (measured[DEPTHS[1]] - measured[DEPTHS[0]]) / (DEPTHS[1] - DEPTHS[0])
        measured[depth] = measured[DEPTHS[0]] + (depth - DEPTHS[0]) * layer
        for layers, found in measured.items():
            settings = sections.Policy(lora_layers=layers)
            step = Tokens(0, given.prompts * row, given.prompts * given.completions * given.new, row, 0)
            said = sum(training_memory.of_a_pass(shape_of(config, settings.dtype), settings, step).values())
            whole = " (extrapolated)" if layers == depth else ""
            print(
                f"| {name} | {config.vocab_size} | {layers}{whole} "
                f"| {found / 1e9:.3f} | {said / 1e9:.3f} | {said / found:.2f} |"
            )

    print("\nGB of a step with the defaults of config/config.yaml, by part; and with other resources")
    defaults = config_file.load(ROOT / "config" / "config.yaml")
    train, sampling = defaults.train, defaults.sampling
    columns = {}
    for name, (micro_batch, passes) in product(SHAPES, ((4, 4096), (1, 2048), (16, 16_384))):
        model = LanguageModel(SIZES, shape_of(AutoConfig.for_model(**SHAPES[name]), "bfloat16"), defaults.policy, False)
        step = training_memory.tokens(model, train, sampling, passes, micro_batch)
        by_part = training_memory.parts(model, model.shape, train, step)
        columns[f"{name}, {micro_batch} prompts, {passes} tokens"] = by_part | {"in all": sum(by_part.values())}
    print(f"| part | {' | '.join(columns)} |")
    print("|---|" + "--:|" * len(columns))
    for part in next(iter(columns.values())):
        print(f"| {part} | {' | '.join(f'{column[part] / 1e9:.2f}' for column in columns.values())} |")


if __name__ == "__main__":
    main()
