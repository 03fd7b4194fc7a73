"""plan: estimate what each stage of a target will need, before a long run.

Numbers of samples and items are read from prepare's tables; tokens are estimated, four characters each. Where a table
or a model does not exist yet, the numbers are unknown.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minirec.errors import InputError
from minirec.experiment import limits
from minirec.experiment.config import DEFAULTS, Config, load, remembered
from minirec.experiment.job_logs import by_rule, costs
from minirec.experiment.paths import Run, compared_runs, experiment_runs, folders, logs, signal_seed
from minirec.experiment.sections import Passes, Train
from minirec.storage import artefact, memory, tables

TEMPLATE_TOKENS = 50  # of a prompt's instruction and chat template
LINE_TOKENS = 10  # of a line of the history besides the title
BYTES = {"float32": 4, "bfloat16": 2}
_LINE = "  {:<16}{:<14}{:>5}{:>16}{:>13}{:>10}{:>9}{:>12}\n"


@dataclass(frozen=True)
class Sizes:
    """Numbers of samples and items, and the mean length of their prompts."""

    train: int
    valid: int
    test: int
    items: int
    user_tokens: float  # in a user prompt
    item_tokens: float  # in an item prompt


@dataclass(frozen=True)
class Shape:
    """Size of a model, by its config.json."""

    parameters: int
    width: int
    key_value_bytes: int  # per token


@dataclass(frozen=True)
class Need:
    """What the jobs of a rule need for one model, in all."""

    rule: str
    model: str
    jobs: int
    passes: float  # tokens read; a backward pass counts as reading them twice
    written: float = 0  # tokens sampled
    disk: float = 0  # bytes


def sizes(folder: Path, prompt_history: int, max_item_tokens: int) -> Sizes | None:
    """Sizes of a prepared data set; None if prepare has not run."""
    files = folder / "samples.parquet", folder / "catalogue.parquet"
    if not all(file.is_file() for file in files):
        return None
    split = tables.read("samples", files[0], ["split"])["split"].to_pylist()
    catalogue = tables.read("catalogue", files[1], ["title", "text"])
    title, text = (float(np.mean([len(value) for value in catalogue[c].to_pylist()])) / 4 for c in ("title", "text"))
    user = TEMPLATE_TOKENS + prompt_history * (LINE_TOKENS + title)
    item = TEMPLATE_TOKENS / 2 + min(text, max_item_tokens)
    train, valid, test = (split.count(name) for name in ("train", "valid", "test"))
    return Sizes(train, valid, test, catalogue.num_rows, user, item)


def shape(folder: Path, dtype: str) -> Shape | None:
    """Shape of a fetched model; None if it does not exist yet."""
    if not (folder / "config.json").is_file():
        return None
    declared = artefact.load_json(folder / "config.json")
    declared = declared.get("text_config", declared)
    width, layers = declared["hidden_size"], declared["num_hidden_layers"]
    heads = declared.get("head_dim") or width // declared["num_attention_heads"]
    keys = declared.get("num_key_value_heads") or declared["num_attention_heads"]
    attention = 2 * width * heads * (declared["num_attention_heads"] + keys)
    parameters = layers * (attention + 3 * width * declared["intermediate_size"]) + width * declared["vocab_size"]
    return Shape(parameters, width, 2 * layers * keys * heads * BYTES[dtype])


def needs(config: Config, size: Sizes, runs: list[Run], widths: dict[str, int]) -> list[Need]:
    """What the rules need for these runs; widths: size of a hidden state by model, 0 if unknown."""
    g, new = config.sampling.completions, config.sampling.max_new_tokens
    items, evaluated = size.items * size.item_tokens, size.user_tokens + new
    tested = size.test * evaluated, size.test * new

    def training(train: Train, samples: int) -> tuple[float, float]:
        """(tokens read, tokens sampled) of a training."""
        updates = train.updates_per_rollout
        steps = train.epochs * math.ceil(samples / train.batch_prompts) * updates
        seen = train.epochs * samples * (size.user_tokens + g * new)
        rows = min(train.batch_prompts + train.extra_negatives, size.items)
        evaluations = len(train.evaluated_steps(samples))
        refreshes = steps // train.item_refresh_steps + evaluations
        valid = evaluations * min(size.valid, train.max_valid or size.valid)
        read = (1 + 3 * updates) * seen + 3 * steps * rows * size.item_tokens + refreshes * items + valid * evaluated
        return read, train.epochs * samples * g * new + valid * new

    rows = []
    fitted = min(config.embed.whiten_prompts or size.train, size.train) if config.policy.whiten_dim else 0
    selectors = [run.selector for run in runs if run.selector != "none"]
    for model in dict.fromkeys([run.model for run in runs] + selectors):
        rows.append(
            Need("embed_base", model, 1, items + fitted * size.user_tokens, disk=4 * size.items * widths[model])
        )
    for model in dict.fromkeys(run.model for run in runs):
        rows.append(Need("evaluate_base", model, 1, *tested))
    for selector in dict.fromkeys(selectors):
        seeds = len({signal_seed(config, run.method, run.seed) for run in runs if run.selector == selector})
        width, train_samples = widths[selector], seeds * size.train
        whole, (read, new_tokens) = train_samples * g, training(config.proxy, config.proxy.size)
        rows += [
            Need("train_proxy", selector, seeds, seeds * read, seeds * new_tokens),
            Need("embed_proxy", selector, seeds, seeds * items, disk=4 * seeds * size.items * width),
            Need(
                "rollout",
                selector,
                seeds * config.rollout.shards,
                train_samples * size.user_tokens + whole * new,
                whole * new,
                4 * whole * (width + new),
            ),
            Need("gradient", selector, seeds, 0, disk=12 * train_samples * width),
        ]
    for model in dict.fromkeys(run.model for run in runs):
        of_model = [run for run in runs if run.model == model]
        budgets = [size.train if run.budget == "all" else int(run.budget) for run in of_model]
        train = [training(config.varied(run.method).train, n) for run, n in zip(of_model, budgets, strict=True)]
        rows.append(Need("train", model, len(of_model), sum(read for read, _ in train), sum(new for _, new in train)))
        jobs = len(of_model)
        rows.append(Need("evaluate", model, jobs, jobs * (items + tested[0]), jobs * tested[1]))
    return rows


def run(*, target: str, configfile: list[Path] | None) -> None:
    """Print the plan of results/DATASET/metrics.json or comparison.parquet; raises InputError for another target."""
    folder = Path(target).parent
    config = load(DEFAULTS, *remembered(folder, configfile))
    runs_of = {"metrics.json": experiment_runs, "comparison.parquet": compared_runs}
    if folder.name not in config.datasets or folder.parent != Path(config.results) or Path(target).name not in runs_of:
        raise InputError(
            f"the target {target} is not {config.results}/DATASET/{' or '.join(runs_of)} "
            f"with DATASET among {', '.join(config.datasets)}"
        )
    runs = runs_of[Path(target).name](config)
    limits.require(config, folder, runs)
    out = sys.stdout.write
    out(f"{target}: {len(runs)} runs\n")
    for configuration in dict.fromkeys(run.configuration for run in runs):
        seeds = [run.seed for run in runs if run.configuration == configuration]
        out(f"  {configuration}, seeds {seeds}\n")
    size = sizes(folder, config.policy.prompt_history, config.policy.max_item_tokens)
    if size is None:
        out("  samples and items: unknown until prepare has run; snakemake --until prepare makes them\n")
        return
    out(
        f"  {size.train} train, {size.valid} valid, {size.test} test samples; {size.items} items; "
        f"about {size.user_tokens:.0f} tokens a user prompt, {size.item_tokens:.0f} an item prompt\n\n"
    )
    names = dict.fromkeys([run.model for run in runs] + [run.selector for run in runs if run.selector != "none"])
    shapes = {name: shape(Path("data/models") / name, config.policy.dtype) for name in names}
    rows = needs(config, size, runs, {name: s.width if s else 0 for name, s in shapes.items()})
    _print_table(rows, shapes, by_rule(costs(folder, logs(folder, folders(config, runs)))))
    for name, model in shapes.items():
        out(f"\n  memory of {name}: {_memory(config, folder.name, size, model)}\n")


def _print_table(rows: list[Need], shapes: dict[str, Shape | None], seconds: dict[str, float]) -> None:
    head = ("rule", "model", "jobs", "tokens read", "sampled", "TFLOP", "disk MB", "measured s")
    sys.stdout.write(_LINE.format(*head))
    for row in rows:
        model = shapes[row.model]
        flops = f"{2 * model.parameters * row.passes / 1e12:,.0f}" if model else "unknown"
        disk = f"{row.disk / 1e6:,.0f}" if model else "unknown"
        measured = f"{seconds[row.rule]:,.0f}" if row.rule in seconds else "-"
        counts = f"{row.passes:,.0f}", f"{row.written:,.0f}"
        sys.stdout.write(_LINE.format(row.rule, row.model, row.jobs, *counts, flops, disk, measured))


def _memory(config: Config, dataset: str, size: Sizes, model: Shape | None) -> str:
    if model is None:
        return "unknown until the model is fetched"
    batch_tokens = Passes().batch_tokens
    weights = model.parameters * BYTES[config.policy.dtype]
    frozen = size.item_tokens if config.embed.keep_frozen_states and config.policy.lora_layers else 0
    table = 2 * 4 * model.width * size.items * (1 + frozen)  # as `embed` will require
    needed, free = weights + 3 * batch_tokens * model.key_value_bytes + table, memory.free()
    text = (
        f"about {needed / 1e9:.1f} GB ({model.parameters / 1e6:.0f} M parameters in {config.policy.dtype}, "
        f"{batch_tokens} tokens a pass, {table / 1e9:.1f} GB for the catalogue); less with the resource batch_tokens"
    )
    if needed > free:
        text += (
            f"\n  this machine has {free / 1e9:.1f} GB free: set a stricter datasets.{dataset}.filter, "
            "embed.keep_frozen_states to false, or take a larger one"
        )
    return text
