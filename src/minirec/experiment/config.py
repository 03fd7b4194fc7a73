"""The whole configuration: config/config.yaml and the files that override it, checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, model_validator

from minirec.errors import InputError
from minirec.experiment import sections, validation
from minirec.experiment.section import Section
from minirec.experiment.sections import Seed, teaches_nothing
from minirec.experiment.sources import Dataset, Model, Name
from minirec.selection.methods.registry import Method, methods

FOLDER = (
    "a folder, relative or absolute, spelled with the letters A-Z and a-z, digits and _ . - / only; "
    "for another folder, make a link to it"
)
Budget = Annotated[int, Field(ge=1)] | Literal["all"]
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # also what yaml raises over month 13 and over deep nesting
Changes = Annotated[dict[str, Any], Field(description="settings of this section to change")]
S = TypeVar("S", bound=Section)
DEFAULTS = Path("config/config.yaml")
HEADS = "heads"  # proxy.kind, and the name of their signals
MADE_BY = "config.yaml"  # in a data set's results: the configuration of the last run that worked on them


class Main(Section):
    """The main experiment, whose results are in results/DATASET/metrics.json."""

    model: Name = Field(description="the model that is trained, a name under models")
    selector: Name = Field(
        description="the model whose proxy or heads judge the samples; another one than model is transfer"
    )
    method: Name = Field(description="a selection method, or a name under variants")
    budget: Budget = Field(description="training samples to keep, or all")
    seeds: list[Seed] = Field(min_length=1, description="one run each")
    control: Name | None = Field(None, description="a method that picks as many samples to compare with, e.g. random")


class Compare(Section):
    """The grid of runs in results/DATASET/comparison.parquet, besides the main experiment."""

    models: list[Name] = Field([], description="as main.model")
    selectors: list[Name] = Field([], description="as main.selector")
    methods: list[Name] = Field([], description="as main.method")
    budgets: list[Budget] = Field([], description="as main.budget")
    seeds: list[Seed] = Field([], description="as main.seeds")


class Variant(Section):
    """An ablation under a name of its own, used like a method: a method with settings of these sections changed."""

    method: Name = Field("minirec", description="the selection method that it changes")
    sampling: Changes = {}
    reward: Changes = {}
    proxy: Changes = {}
    rollout: Changes = {}
    crossfit: Changes = {}
    gradient: Changes = {}
    score: Changes = {}
    select: Changes = {}
    curriculum: Changes = {}
    train: Changes = {}

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        """The changed settings by section."""
        return {name: values for name, values in self if name != "method" and values}


class Config(Section):
    """The whole configuration, as in config/config.yaml."""

    results: Annotated[str, validation.spelled(r"/?[A-Za-z0-9_.][A-Za-z0-9_./-]*", FOLDER)] = "results"
    datasets: dict[Name, Dataset]
    models: dict[Name, Model]
    main: Main
    compare: Compare = Compare()
    variants: dict[Name, Variant] = {}
    policy: sections.Policy = sections.Policy()
    sampling: sections.Sampling = sections.Sampling()
    reward: sections.Reward = sections.Reward()
    prepare: sections.Prepare = sections.Prepare()
    sasrec: sections.SASRec = sections.SASRec()
    embed: sections.Embed = sections.Embed()
    proxy: sections.Proxy = sections.Proxy()
    rollout: sections.Rollout = sections.Rollout()
    crossfit: sections.Crossfit = sections.Crossfit()
    gradient: sections.Gradient = sections.Gradient()
    score: sections.Score = sections.Score()
    influence: sections.Influence = sections.Influence()
    select: sections.Select = sections.Select()
    curriculum: sections.Curriculum = sections.Curriculum()
    train: sections.Train = sections.Train()
    measure: sections.Measure = sections.Measure()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if ".." in self.results.split("/"):
            raise ValueError("results must not contain '..'")
        self._names_are_free()
        self._names_are_known()
        for where, seeds in (("main", self.main.seeds), ("compare", self.compare.seeds)):
            if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
                raise ValueError(f"{where}.seeds has {twice[0]} twice; a seed is one run, so name each once")
        for name, variant in self.variants.items():
            if "shards" in variant.rollout:
                raise ValueError(f"variants.{name}.rollout.shards changes no result; set rollout.shards for all")
        asked = {None, self.main.method, self.main.control, *self.compare.methods}
        for one in (None, *self.variants):
            where, config = f"variants.{one}: " if one else "", self.varied(one)
            heads = config.proxy.kind == HEADS
            for training in (config.train,) if heads else (config.train, config.proxy):
                if one in asked and (reason := teaches_nothing(config.sampling, training)):
                    raise ValueError(where + reason)
            if heads and config.proxy.head == "none":
                raise ValueError(f"{where}proxy.kind is heads, but proxy.head is none; set it to shared or separate")
        if self.main.selector == "none" and self.method(self.main.method).reads:
            raise ValueError(
                f"main.selector is none, but {self.main.method} needs one; name one of {', '.join(self.models)}"
            )
        return self

    def _names_are_free(self) -> None:
        for where, taken in [
            ("datasets", ("models", "logs")),  # folders beside those of the data sets
            ("models", ("none",)),  # the selector of methods without signals
            ("variants", [*methods(), HEADS]),  # HEADS: the folder of their signals
        ]:
            for name in taken:
                if name in getattr(self, where):
                    raise ValueError(f"{where}.{name} has a name that minirec uses itself; choose another")

    def _names_are_known(self) -> None:
        tokenizers = {f"models.{name}.dataset": model.dataset for name, model in self.models.items() if model.dataset}
        names: list[tuple[str, Sequence[Any], Iterable[str]]] = [
            *[(f"variants.{name}.method", [variant.method], methods()) for name, variant in self.variants.items()],
            ("main.model", [self.main.model], self.models),
            ("main.selector", [self.main.selector], [*self.models, "none"]),
            ("main.method", [self.main.method], self.method_names),
            ("main.control", [self.main.control or self.main.method], self.method_names),
            ("compare.models", self.compare.models, self.models),
            ("compare.selectors", self.compare.selectors, self.models),
            ("compare.methods", self.compare.methods, self.method_names),
            *[(where, [dataset], self.datasets) for where, dataset in tokenizers.items()],
        ]
        for where, values, known in names:
            for value in values:
                if value not in known:
                    hint = validation.suggestion(value, known)
                    raise ValueError(f"{where} is {value}, which is not among {', '.join(known)}{hint}")

    @property
    def method_names(self) -> list[str]:
        """The names that `method` may have: methods and variants."""
        return [*methods(), *self.variants]

    def method(self, name: str) -> Method:
        """The method of this name, or the method that the variant of this name changes."""
        return methods()[self.variants[name].method if name in self.variants else name]

    def by_heads(self, name: str) -> bool:
        """Whether cross-fitted heads make the signals that a method or variant reads: they give no gradients."""
        if name not in self.method_names:  # no method, but the signals of all
            return False
        reads = self.method(name).reads
        return bool(reads) and "gradients" not in reads and self.varied(name).proxy.kind == HEADS

    def varied(self, name: str | None) -> Config:
        """This configuration with the changes of the variant `name`; unchanged if no variant has that name."""
        if name not in self.variants:
            return self
        changed = {}
        for section, values in self.variants[name].changes.items():
            whole = getattr(self, section).model_dump() | values
            changed[section] = validation.validate(type(getattr(self, section)), whole, f"variants.{name}.{section}")
        return self.model_copy(update={**changed, "variants": {}})

    def used_by(self, name: str) -> Config:
        """This configuration as a method or variant uses it: what it does not read has its default.

        Only a method that reads embeddings has shards; the work of others is not worth sharing. A selection made
        without signals keeps its order, so no setting of the curriculum counts.
        """
        varied, method = self.varied(name), self.method(name)
        shards = varied.select.shards if "embeddings" in method.reads else 1
        read = {setting: getattr(varied.select, setting) for setting in method.settings}
        curriculum = varied.curriculum if method.reads else sections.Curriculum()
        return varied.model_copy(update={"select": sections.Select(shards=shards, **read), "curriculum": curriculum})


def validate(raw: Mapping[str, Any]) -> Config:
    """Check a merged configuration; raises InputError that names the wrong key."""
    return validation.validate(Config, raw, "")


def load(*files: str | Path) -> Config:
    """The checked configuration of YAML files; later ones override earlier ones, as with Snakemake's --configfile.

    Raises InputError, which names the file if the others are right without it.
    """
    whole = merged(*files)
    try:
        return validate(whole)
    except InputError as error:
        for file in files:
            if _valid(*(other for other in files if other != file)):
                raise InputError(f"{file}: {error}") from error
        raise


def _valid(*files: str | Path) -> bool:
    try:
        validate(merged(*files))
    except InputError:
        return False
    return True


def parse(kind: type[S], text: str, where: str) -> S:
    """Check a part of the configuration that a flag passes as JSON; where: the flag, which the InputError names."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    return validation.validate(kind, raw, where)


def merged(*files: str | Path) -> dict[str, Any]:
    """Keys and values of YAML files, unchecked; later files override earlier ones."""
    layers: dict[str, Any] = {}
    for file in files:
        layers = overlay(layers, read(file))
    return layers


def remembered(results: Path, configfile: list[Path] | None) -> list[Path]:
    """The files that override config/config.yaml: `configfile`, else the configuration stored with the results."""
    made_by = results / MADE_BY
    return configfile or ([made_by] if made_by.is_file() else [])


def read(file: str | Path) -> dict[str, Any]:
    """Keys and values of a YAML file; raises InputError if it cannot be read or holds something else."""
    try:
        layer = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, *NOT_YAML) as error:
        raise InputError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(layer, dict):
        raise InputError(f"{file} must hold keys and values")
    return layer


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `top`, key by key; mappings in both are merged the same way."""
    whole = dict(base)
    for key, value in top.items():
        old = whole.get(key)
        whole[key] = overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return whole
