"""prepare: interactions and items to samples and a catalogue (METHOD 1)."""

from __future__ import annotations

from pathlib import Path

from minirec.data import samples
from minirec.data.interactions import catalogue
from minirec.experiment import config
from minirec.experiment.config import Filter, Prepare
from minirec.progress import log, progress
from minirec.storage import artefact, database, tables
from minirec.storage.artefact import Provenance


def run(*, prepare: Prepare, interactions: Path, items: Path, filter: str, out: Path) -> None:
    """Write samples.parquet, catalogue.parquet and prepare.json."""
    rules = config.parse(Filter, filter, "--filter")
    settings = prepare.model_dump() | {"filter": rules.model_dump()}
    provenance = Provenance("prepare", settings, {"interactions": interactions, "items": items})
    with database.connect(prepare.memory, out) as engine:
        prepared = samples.prepare(engine, interactions, items, rules, prepare)
        with tables.writer("catalogue", out / "catalogue.parquet", provenance) as append:
            for part in catalogue(engine, items, prepared.item_codes, prepared.popularity, prepare):
                append(part)
    count = sum(map(len, prepared.splits.values()))
    with (
        tables.writer("samples", out / "samples.parquet", provenance) as append,
        progress("samples", count, "samples") as bar,
    ):
        for part in prepared.tables():
            append(part)
            bar.add(part.num_rows)
    for name, value in prepared.report.items():
        counts = ", ".join(f"{reason} {n}" for reason, n in value.items()) if isinstance(value, dict) else value
        log.info("%s: %s", name.replace("_", " "), counts)
    artefact.write_json(prepared.report, out / "prepare.json", provenance)
