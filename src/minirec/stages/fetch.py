"""fetch: data sets and models from the net, a package or a folder; converted, nothing filtered."""

from __future__ import annotations

from pathlib import Path

from minirec.data import amazon, movielens
from minirec.data.download import Unreachable
from minirec.errors import InputError
from minirec.experiment import config
from minirec.storage.artefact import Provenance


def run(*, dataset: str | None, model: str | None, source: str, items: Path | None, out: Path) -> None:
    """Write a data set's two tables into the folder `out`, or a model's folder `out`."""
    if (dataset is None) == (model is None):
        raise InputError("fetch needs either --dataset or --model")
    try:
        if dataset is not None:
            _fetch_dataset(config.parse(config.Dataset, source, "--source"), out)
        else:
            from minirec.data import models

            models.fetch(config.parse(config.Model, source, "--source"), items, out)
    except Unreachable as problem:
        files = f"{out}/interactions.parquet and {out}/items.parquet" if dataset else f"the model's folder at {out}"
        raise InputError(f"{problem}; put {files} there yourself, or try again with a network") from problem


def _fetch_dataset(source: config.Dataset, out: Path) -> None:
    if source.source == "own":
        raise InputError(
            f"a data set of your own is not fetched; put interactions.parquet and items.parquet into {out}"
        )
    provenance = Provenance("fetch", source.model_dump(exclude={"filter"}))
    {"movielens": movielens.fetch, "amazon2023": amazon.fetch}[source.source](source, out, provenance)
