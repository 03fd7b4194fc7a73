"""The jobs of the workflow, and how much work each is: of a job that is planned, or that has just ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open

from minirec.experiment.config import Config
from minirec.experiment.paths import MODELS, Run, signal_seed, signal_set
from minirec.experiment.sections import Policy
from minirec.planning import workload
from minirec.planning.workload import LanguageModel, Shape, Sizes, Work
from minirec.storage import tables

STAGES = {  # of the rules that run the language model
    "embed_base": "embed",
    "embed_proxy": "embed",
    "evaluate_base": "evaluate",
    "evaluate": "evaluate",
    "train_proxy": "train",
    "train": "train",
    "rollout": "rollout",
    "embed_users": "embed_users",
}
SIGNAL_RULES = {  # the rules that make files below signals/: the file, and the signals that it is made for
    "train_proxy": ("proxy/adapter", {"rewards"}),
    "embed_proxy": ("items.safetensors", {"rewards"}),
    "rollout": ("rollouts.parquet", {"rewards"}),
    "gradient": ("gradients.safetensors", {"gradients", "embeddings"}),
    "score": ("scores.parquet", {"gradients"}),
}


@dataclass(frozen=True)
class Job:
    """A job of the workflow: its rule and its wildcards, empty where it has none of that name."""

    rule: str
    model: str = ""
    signal_set: str = ""  # a selector, or selector@variant
    selector: str = ""
    method: str = ""
    budget: str = ""
    seed: str = ""
    shard: str = ""

    @classmethod
    def of(cls, rule: str, wildcards: Mapping[str, str]) -> Job:
        """Make it from Snakemake's wildcards, of which some say only where the results are."""
        names = {field.name for field in fields(cls)} - {"rule"}
        return cls(rule, **{name: str(value) for name, value in wildcards.items() if name in names})

    @property
    def language_model(self) -> str:
        """The model that the job runs; empty if it runs none."""
        return (self.model or self.signal_set.split("@")[0]) if self.rule in STAGES else ""


def jobs(config: Config, runs: list[Run], last: str) -> list[Job]:
    """The jobs that make these runs from prepared samples, each once.

    last: the rule that reads them all, summarise or compare.
    """
    found = [Job("baselines")]
    for run in runs:
        for model in (run.model, run.selector):
            if model != "none":
                found.append(Job("embed_base", model))
        found.append(Job("evaluate_base", run.model))
        if last == "summarise":
            found.append(Job("measure_base", run.model))
        if "influence" in config.method(run.method).reads:
            found.append(Job("influence"))
        if run.selector != "none":
            found += _signals(config, run)
        found += _chosen(config, run.selector, run.method, run.budget, run.seed)
        wildcards = {**run.shared, "budget": str(run.budget), "seed": str(run.seed)}
        found += [Job.of(rule, wildcards) for rule in ("train", "evaluate", "measure")]
    return list(dict.fromkeys([*found, Job(last)]))


def _signals(config: Config, run: Run) -> Iterator[Job]:
    """The jobs that make the signals that the run's method reads."""
    seed = str(signal_seed(config, run.method, run.seed))
    if config.by_heads(run.method):
        yield Job("embed_users", run.selector)
        yield Job("crossfit", signal_set=signal_set(config, "rollouts.parquet", run.selector, run.method), seed=seed)
        return
    yield from _chosen(config, "none", "random", config.varied(run.method).proxy.size, seed)
    for rule, (file, signals) in SIGNAL_RULES.items():
        if signals.isdisjoint(config.method(run.method).reads):
            continue
        job = Job(rule, signal_set=signal_set(config, file, run.selector, run.method), seed=seed)
        shards = config.rollout.shards if rule == "rollout" else 1
        if shards == 1:
            yield job
        else:
            yield from (Job(rule, signal_set=job.signal_set, seed=seed, shard=str(shard)) for shard in range(shards))
            yield Job("gather", signal_set=job.signal_set, seed=seed)


def _chosen(config: Config, selector: str, method: str, budget: int | str, seed: int | str) -> Iterator[Job]:
    """The jobs that make a selection and its curriculum."""
    shards = config.used_by(method).select.shards
    words = {"selector": selector, "method": method, "budget": str(budget), "seed": str(seed)}
    if shards > 1:
        yield from (Job("select", **words, shard=str(shard)) for shard in range(shards))
    yield from (Job(rule, **words) for rule in ("select", "curriculum"))


class PlannedWork:
    """The work of jobs that are planned for a data set, under one configuration."""

    def __init__(self, config: Config, folder: Path) -> None:
        """folder: results of the data set."""
        self.config, self.folder = config, folder

    @cache  # noqa: B019
    def sizes(self, model: str) -> Sizes | None:
        """Sizes of the data set for a model; None until prepare has run."""
        files = self.folder / "samples.parquet", self.folder / "catalogue.parquet"
        return workload.sizes(*files, self.config.policy, MODELS / model)

    @cache  # noqa: B019
    def shape(self, model: str) -> Shape | None:
        """Shape of a model; None until it is fetched."""
        return workload.shape(MODELS / model, self.config.policy.dtype)

    def language_model(self, model: str) -> LanguageModel | None:
        """A model's work on the data set; None until prepare has run."""
        config, size = self.config, self.sizes(model)
        if size is None:
            return None
        return LanguageModel(size, self.shape(model), config.policy, config.embed.keep_frozen_states)

    def work(self, job: Job) -> Work:
        """The work of a job; without operations where they are not known, or always about the same."""
        config = self.config.varied(job.signal_set.partition("@")[2] or None)
        config = config.used_by(job.method) if job.method else config
        model = job.model or job.signal_set.split("@")[0] or self.config.main.selector
        policy = self.language_model(model)
        if policy is None:
            return Work()
        size, width = policy.size, policy.shape.width if policy.shape else 0
        match job.rule:
            case "embed_base" | "embed_proxy":
                return policy.embed(job.rule == "embed_base", config.embed.whiten_prompts)
            case "evaluate_base" | "evaluate":
                return policy.evaluate(config.sampling, table=job.rule == "evaluate_base")
            case "train_proxy":
                return policy.train(config.proxy, config.sampling, config.proxy.size)
            case "train":
                return policy.train(config.train, config.sampling, _count(job.budget, size.train))
            case "rollout":
                return policy.rollout(config.sampling) * (1 / config.rollout.shards)
            case "embed_users":
                return policy.embed_users()
            case "crossfit":
                dim = config.policy.whiten_dim or width
                flop = workload.crossfit(size.train, size.items, dim, config.proxy, config.crossfit)
                return Work(flop=flop, disk=4 * size.train * dim)
            case "gradient":
                return policy.gradient(config.gradient, config.sampling.completions, config.sampling.max_new_tokens)
            case "score":
                return Work(flop=workload.score(size.train, width))
            case "select" if not {"embeddings", "gradients"}.isdisjoint(reads := self.config.method(job.method).reads):
                dim = (config.policy.whiten_dim or width) if "embeddings" in reads else 1
                samples = size.train / config.select.shards if job.shard else size.train
                return Work(flop=workload.select(samples, _count(job.budget, size.train), dim))
            case "baselines":
                return Work(flop=workload.baselines(size))
            case "influence":
                return Work(flop=workload.influence(size))
            case "measure" | "measure_base":
                return Work(flop=workload.measure(size))
        return Work()


def _count(budget: str, samples: int) -> int:
    return samples if budget == "all" else int(budget)


def work_done(stage: str, given: Mapping[str, Any]) -> Work:
    """The work of a stage that has ended, by what its `run` was given; without operations where they are not known."""
    policy: Policy = given.get("policy") or Policy()
    if stage in STAGES.values() or given.get("model"):
        if not (given.get("samples") and given.get("catalogue") and given.get("model")):
            return Work()
        size = workload.sizes(given["samples"], given["catalogue"], policy, given["model"])
        if size is None:
            return Work()
        model = LanguageModel(size, workload.shape(given["model"], policy.dtype), policy, _keeps_frozen_states(given))
    match stage:
        case "embed":
            return model.embed(given["adapter"] is None, given["embed"].whiten_prompts)
        case "evaluate":
            return model.evaluate(given["sampling"], table=given["item_table"] is not None)
        case "train":
            return model.train(given["train"], given["sampling"], pq.read_metadata(given["curriculum"]).num_rows)
        case "rollout":
            shards = 1 if given["shard"] is None else given["rollout"].shards
            return model.rollout(given["sampling"]) * (1 / shards)
        case "embed_users":
            return model.embed_users()
        case "crossfit":
            users, dim = _dimensions(given["users"], "embedding")
            items, _ = _dimensions(given["item_table"], "items")
            return Work(flop=workload.crossfit(users, items, dim, given["train"], given["crossfit"]))
        case "gradient":
            tokens = tables.read("rollouts", given["rollouts"], ["tokens"])["tokens"]
            samples, completions, _ = _dimensions(given["hidden"], "hidden")
            if given["model"]:
                return model.gradient(given["gradient"], completions, pc.mean(pc.list_value_length(tokens)).as_py())
            items, dim = _dimensions(given["item_table"], "items")
            items = min(given["gradient"].candidates or items, items)
            return Work(flop=workload.derivatives(samples * completions, items, dim))
        case "score":
            return Work(flop=workload.score(*_dimensions(given["gradients"], "hvp")))
        case "select" if given["embeddings"] or given["scores"]:
            samples, dim = _dimensions(given["embeddings"], "embedding") if given["embeddings"] else (0, 1)
            samples = samples or pq.read_metadata(given["scores"]).num_rows
            samples = samples if given["shard"] is None else samples / given["select"].shards
            return Work(flop=workload.select(samples, _count(given["budget"], int(samples)), dim))
        case "baselines" | "influence" | "measure":
            size = workload.sizes(given["samples"], given["catalogue"], policy, Path())
            if size is None:
                return Work()
            if stage == "measure":
                return Work(flop=workload.measure(size))
            return Work(flop=workload.baselines(size) if stage == "baselines" else workload.influence(size))
    return Work()


def _keeps_frozen_states(given: Mapping[str, Any]) -> bool:
    """Whether a stage keeps, or has read, states of the frozen layers for all items."""
    if given.get("embed") is not None and given.get("adapter") is None:
        return bool(given["embed"].keep_frozen_states)
    file = given.get("frozen_states")
    return file is not None and _dimensions(file, "lengths")[0] > 0


def _dimensions(path: Path, name: str) -> tuple[int, ...]:
    """Shape of a stored array, without a check of the file's digest: the stage has checked it."""
    with safe_open(path, framework="numpy") as file:
        return tuple(file.get_slice(name).get_shape())
