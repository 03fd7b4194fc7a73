"""plan: what each stage of a target will roughly need, before a long run.

Counts come from prepare's tables where they are there; tokens from the length of titles, four characters a token.
What is not known yet is said to be unknown, not guessed.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minirec.errors import InputError
from minirec.experiment import rules
from minirec.experiment.config import Config, load
from minirec.storage import artefact, memory, tables

TEMPLATE_TOKENS = 50  # instruction and chat template of a prompt
LINE_TOKENS = 10  # a history line besides its title
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Sizes:
    """What the tables say."""

    train: int
    valid: int
    test: int
    items: int
    user_tokens: float  # a user prompt
    item_tokens: float  # an item prompt


@dataclass(frozen=True)
class Shape:
    """What the model's config.json says."""

    parameters: int
    width: int
    key_value_bytes: int  # a token


@dataclass(frozen=True)
class Need:
    """What one stage needs."""

    stage: str
    jobs: int
    passes: float  # tokens read, a backward pass counted as two more readings
    written: float = 0  # tokens sampled, one at a time
    disk: float = 0  # bytes


def sizes(folder: Path, prompt_history: int, max_item_tokens: int) -> Sizes | None:
    """Sizes of a prepared data set, None where prepare has not run."""
    files = folder / "samples.parquet", folder / "catalogue.parquet"
    if not all(file.is_file() for file in files):
        return None
    split = tables.read("samples", files[0], ["split"])["split"].to_pylist()
    goods = tables.read("catalogue", files[1], ["title", "text"])
    title, text = (float(np.mean([len(value) for value in goods[c].to_pylist()])) / 4 for c in ("title", "text"))
    user = TEMPLATE_TOKENS + prompt_history * (LINE_TOKENS + title)
    item = TEMPLATE_TOKENS / 2 + min(text, max_item_tokens)
    train, valid, test = (split.count(name) for name in ("train", "valid", "test"))
    return Sizes(train, valid, test, goods.num_rows, user, item)


def shape(folder: Path, dtype: str) -> Shape | None:
    """Shape of a fetched model, None where it is not there."""
    if not (folder / "config.json").is_file():
        return None
    given = artefact.load_json(folder / "config.json")
    given = given.get("text_config", given)
    width, layers = given["hidden_size"], given["num_hidden_layers"]
    heads = given.get("head_dim") or width // given["num_attention_heads"]
    keys = given.get("num_key_value_heads") or given["num_attention_heads"]
    attention = 2 * width * heads * (given["num_attention_heads"] + keys)
    parameters = layers * (attention + 3 * width * given["intermediate_size"]) + width * given["vocab_size"]
    return Shape(parameters, width, 2 * layers * keys * heads * BYTES[dtype])


def needs(given: Config, size: Sizes, budget: int, width: int) -> list[Need]:
    """What the stages of the main experiment need; budget is the number of samples kept."""
    g, new, seeds = given.sampling.completions, given.sampling.max_new_tokens, len(given.main.seeds)
    items, evaluated = size.items * size.item_tokens, size.user_tokens + new
    rows = min(given.train.batch_prompts + given.train.extra_negatives, size.items)

    def training(samples: int, epochs: int) -> float:
        steps = epochs * math.ceil(samples / given.train.batch_prompts)
        seen = epochs * samples * (size.user_tokens + g * new)
        refreshes = steps // given.train.item_refresh_steps + epochs * given.train.evaluations_per_epoch
        valid = epochs * given.train.evaluations_per_epoch * size.valid * evaluated
        return 4 * seen + 3 * steps * rows * size.item_tokens + refreshes * items + valid

    fitted = min(given.embed.whiten_prompts or size.train, size.train) if given.policy.whiten_dim else 0
    proxy_epochs = given.train.proxy_epochs or given.train.epochs
    found = [
        Need("embed", 1, items + fitted * size.user_tokens, disk=4 * size.items * width),
        Need("evaluate (before RL)", 1, size.test * evaluated, size.test * new),
    ]
    if given.selector(given.main.method, given.main.selector) != "none":
        proxy = given.train.proxy_size
        found += [
            Need("train (proxy)", 1, training(proxy, proxy_epochs), proxy * proxy_epochs * g * new),
            Need("embed (proxy)", 1, items, disk=4 * size.items * width),
            Need(
                "rollout",
                given.rollout.shards,
                size.train * (size.user_tokens + g * new),
                size.train * g * new,
                4 * size.train * g * (width + new),
            ),
            Need("gradient", 1, 0, disk=12 * size.train * width),
        ]
    written = budget * given.train.epochs * g * new
    found.append(Need("train", seeds, seeds * training(budget, given.train.epochs), seeds * written))
    found.append(Need("evaluate", seeds, seeds * (items + size.test * evaluated), seeds * size.test * new))
    return found


def run(*, target: str, config: list[Path]) -> None:
    """Print the plan of results/DATASET/metrics.json; raises InputError for another target."""
    given = load(*config)
    parts = Path(target).parts
    dataset = parts[-2] if len(parts) > 1 else ""
    if parts[-1:] != ("metrics.json",) or dataset not in given.datasets:
        names = ", ".join(given.datasets)
        raise InputError(f"the target {target} is not {given.results}/DATASET/metrics.json with DATASET among {names}")
    out = sys.stdout.write
    main = given.main
    out(f"{target}: {main.method}, budget {main.budget}, model {main.model}, selector {main.selector}\n")
    runs = rules.main_runs(given)
    out(f"  runs: {', '.join(runs)}\n")
    model = shape(Path("data/models") / main.model, given.policy.dtype)
    size = sizes(Path(*parts[:-1]), given.policy.prompt_history, given.policy.max_item_tokens)
    if size is None:
        out("  samples and items: unknown until prepare has run; snakemake --until prepare makes them\n")
        return
    budget = size.train if main.budget == "all" or given.method(main.method) == "full" else int(main.budget)
    out(
        f"  {size.train} train, {size.valid} valid, {size.test} test samples; {size.items} items; "
        f"about {size.user_tokens:.0f} tokens a user prompt, {size.item_tokens:.0f} an item prompt\n\n"
    )
    head = (
        f"  {'stage':<22}{'jobs':>5}{'tokens read':>14}{'sampled':>12}{'TFLOP':>11}{'disk MB':>10}{'measured s':>12}\n"
    )
    out(head)
    recorded = _recorded(Path(given.results) / "benchmarks" / dataset)
    for need in needs(given, size, budget, model.width if model else 0):
        flops = f"{2 * model.parameters * need.passes / 1e12:,.0f}" if model else "unknown"
        disk = f"{need.disk / 1e6:,.0f}" if model else "unknown"
        seconds = recorded.get(need.stage)
        out(
            f"  {need.stage:<22}{need.jobs:>5}{need.passes:>14,.0f}{need.written:>12,.0f}{flops:>11}{disk:>10}"
            f"{f'{seconds:,.0f}' if seconds else '-':>12}\n"
        )
    if model is None:
        out(f"\n  memory: unknown until the model {main.model} is fetched\n")
        return
    weights = model.parameters * BYTES[given.policy.dtype]
    cache = given.policy.batch_tokens * model.key_value_bytes
    frozen_states = size.item_tokens if given.embed.keep_frozen_states and given.policy.lora_layers else 0
    table = 2 * 4 * model.width * size.items * (1 + frozen_states)  # as `embed` will require
    needed, there = weights + 3 * cache + table, memory.free()
    out(
        f"\n  memory: about {needed / 1e9:.1f} GB ({model.parameters / 1e6:.0f} M parameters in "
        f"{given.policy.dtype}, {given.policy.batch_tokens} tokens a pass, {table / 1e9:.1f} GB for the catalogue); "
        "less with a smaller policy.batch_tokens\n"
    )
    if needed > there:
        out(
            f"  this machine has {there / 1e9:.1f} GB free: set a stricter datasets.{dataset}.filter, "
            "embed.keep_frozen_states to false, or take a larger one\n"
        )


def _recorded(folder: Path) -> dict[str, float]:
    """Seconds of earlier runs by stage, from the workflow's benchmark files."""
    names = {
        "embed": "embed_base",
        "evaluate (before RL)": "evaluate_base",
        "train (proxy)": "train_proxy",
        "embed (proxy)": "embed_proxy",
        "rollout": "rollout",
        "gradient": "gradient",
        "train": "train",
        "evaluate": "evaluate",
    }
    found = {}
    for stage, name in names.items():
        seconds = [rules.recorded(file) for file in sorted((folder / name).rglob("*.tsv"))]
        known = [s for s in seconds if s is not None]
        if known:
            found[stage] = sum(known)
    return found
