"""influence: compute by how much each training sample lowers the loss of a small recommender (METHOD 4.6, dealrec)."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from minirec.data import splits
from minirec.evaluation import sasrec as recommender
from minirec.evaluation.sequences import training_sequences
from minirec.experiment import sections
from minirec.storage import tables
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output
from minirec.training.influence import influence as influence_of


def run(
    *, sasrec: sections.SASRec, influence: sections.Influence, samples: Path, catalogue: Path, influences: Output
) -> None:
    """Train SASRec as for the baselines, and write influences.parquet: a row for each training sample."""
    train, valid = (splits.load(samples, catalogue, name, 1) for name in ("train", "valid"))
    count = len(splits.titles(catalogue))
    model = recommender.fit(training_sequences(tables.read("samples", samples)), valid, count, sasrec)
    values = influence_of(model.last_states(train.history), model.item_vectors(), train.target, influence.damping)
    provenance = Provenance(
        "influence", sasrec.model_dump() | influence.model_dump(), {"samples": samples, "catalogue": catalogue}
    )
    tables.write("influences", pa.table({"sample_id": train.sample_id, "influence": values}), influences, provenance)
