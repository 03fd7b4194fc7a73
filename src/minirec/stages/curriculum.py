"""curriculum: put the selection in training order, easy to hard within random groups (METHOD 4.7)."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from minirec.experiment.sections import Curriculum
from minirec.selection.curriculum import curriculum_order, groups
from minirec.storage import tables
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output


def run(*, curriculum: Curriculum, selection: Path, out: Output) -> None:
    """Write curriculum.parquet; a selection without rewards keeps the order in which it was picked."""
    table = tables.read("selection", selection).sort_by("position")
    if table["mean_reward"].null_count == 0:
        sample_id = tables.numpy(table, "sample_id")
        order = curriculum_order(sample_id, tables.numpy(table, "mean_reward"), curriculum.group_size, curriculum.seed)
        table = table.take(tables.rows_of(sample_id, order, selection))
    columns = {
        "position": pa.array(range(table.num_rows), pa.int32()),
        "sample_id": table["sample_id"],
        "group": pa.array(groups(table.num_rows, curriculum.group_size), pa.int32()),
        "mean_reward": table["mean_reward"],
    }
    provenance = Provenance("curriculum", curriculum.model_dump(), {"selection": selection})
    tables.write("curriculum", pa.table(columns), out, provenance)
