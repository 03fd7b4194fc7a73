"""fetch: data sets and models from the net, a package or a folder; converted, nothing filtered."""

from __future__ import annotations

from pathlib import Path

from minirec.data import amazon, movielens
from minirec.data.download import Unreachable, download
from minirec.errors import InputError
from minirec.experiment import config
from minirec.storage.artefact import Provenance

MEMORY = "1GB"  # of the query engine that converts


def run(*, dataset: str | None, model: str | None, source: str, items: Path | None, out: Path) -> None:
    """Write a data set's two tables into the folder `out`, or a model's folder `out`."""
    if (dataset is None) == (model is None):
        raise InputError("fetch needs either --dataset or --model")
    try:
        if dataset is not None:
            _dataset(config.parse(config.Dataset, source, "--source"), out)
        else:
            from minirec.data import models

            models.fetch(config.parse(config.Model, source, "--source"), items, out)
    except Unreachable as problem:
        files = f"{out}/interactions.parquet and {out}/items.parquet" if dataset else f"the model's folder at {out}"
        raise InputError(f"{problem}; put {files} there yourself, or try again with a network") from problem


def _dataset(source: config.Dataset, out: Path) -> None:
    made = Provenance("fetch", source.model_dump(exclude={"filter"}))
    if source.source == "own":
        raise InputError(
            f"a data set of your own is not fetched; put interactions.parquet and items.parquet into {out}"
        )
    if source.source == "movielens":
        movielens.fetch(source, out, made)
        return
    files = []
    for pattern in (amazon.INTERACTIONS, amazon.ITEMS):
        name = pattern.format(category=source.category)
        files.append(download(str(source.url).rstrip("/") + "/" + name, source.sha256.get(Path(name).name)))
    amazon.convert(files[0], files[1], out, MEMORY, made)
