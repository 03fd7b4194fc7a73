"""prepare: turn interactions and items into samples and a catalogue (METHOD 1)."""

from __future__ import annotations

from pathlib import Path

from minirec.data.interactions import catalogue as catalogue_tables
from minirec.data.samples import prepare as prepare_samples
from minirec.experiment import config
from minirec.experiment.sections import Prepare, Queries
from minirec.experiment.sources import Filter, Format
from minirec.progress import log, progress
from minirec.storage import artefact, database, tables
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output


def run(
    *,
    prepare: Prepare,
    queries: Queries,
    interactions: Path,
    item_metadata: Path,
    filter: str = "{}",
    format: str = "{}",
    samples: Output,
    catalogue: Output,
    dropped: Output,
) -> None:
    """Write samples.parquet, catalogue.parquet, and prepare.json, which counts what was dropped and why."""
    rules = config.parse(Filter, filter, "--filter")
    meaning = config.parse(Format, format, "--format")
    settings = prepare.model_dump() | {"filter": rules.model_dump(), "format": meaning.model_dump()}
    provenance = Provenance("prepare", settings, {"interactions": interactions, "items": item_metadata})
    with database.connect(queries.memory, samples.parent) as engine:
        prepared = prepare_samples(engine, interactions, item_metadata, rules, meaning, prepare)
        with tables.writer("catalogue", catalogue, provenance) as append:
            for part in catalogue_tables(engine, item_metadata, prepared.item_codes, prepared.popularity, prepare):
                append(part)
    count = sum(map(len, prepared.splits.values()))
    with (
        tables.writer("samples", samples, provenance) as append,
        progress("samples", count, "samples") as bar,
    ):
        for part in prepared.tables():
            append(part)
            bar.add(part.num_rows)
    for name, value in prepared.report.items():
        counts = ", ".join(f"{reason} {n}" for reason, n in value.items()) if isinstance(value, dict) else value
        log.info("%s: %s", name.replace("_", " "), counts)
    artefact.write_json(prepared.report, dropped, provenance)
