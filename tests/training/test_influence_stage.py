"""Influence as a file: of all training samples, whatever the order of the samples, and by the trained recommender."""

import numpy as np

from minirec.data import splits
from minirec.experiment import sections
from minirec.stages import influence
from minirec.storage import tables
from minirec.storage.artefact import Provenance
from minirec.training.influence import influence as influence_of


def run(project, folder, **changes):
    influence.run(
        sasrec=sections.SASRec(width=8, epochs=2),
        influence=sections.Influence(**changes),
        samples=folder / "samples.parquet" if (folder / "samples.parquet").exists() else project["samples"],
        catalogue=project["catalogue"],
        influences=folder / "influences.parquet",
    )
    return tables.read("influences", folder / "influences.parquet")


def test_every_training_sample_has_the_influence_of_its_own_history_and_target(project, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(influence, "influence_of", lambda *given: seen.append(given) or influence_of(*given))
    found = run(project, tmp_path, damping=0.5)
    train = splits.load(project["samples"], project["catalogue"], "train", 1)
    ((states, items, target, damping),) = seen
    assert found["sample_id"].to_pylist() == train.sample_id.tolist()
    assert (states.shape, items.shape, damping) == ((len(train), 8), (30, 8), 0.5)
    assert target.tolist() == train.target.tolist()
    assert np.allclose(found["influence"].to_pylist(), influence_of(states, items, target, 0.5))


def test_the_order_of_rows_in_the_file_does_not_matter(project, tmp_path):
    expected = run(project, tmp_path)
    turned = tables.read("samples", project["samples"])
    tables.write(
        "samples", turned.take(np.arange(len(turned))[::-1]), tmp_path / "samples.parquet", Provenance("prepare")
    )
    assert run(project, tmp_path).equals(expected)
