"""baselines: rank the test samples with recommenders that have no language model (METHOD 5)."""

from __future__ import annotations

from pathlib import Path

from minirec.data import splits
from minirec.evaluation.baselines import rank_split
from minirec.evaluation.rank_tables import write_baselines
from minirec.experiment.sections import SASRec
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output


def run(*, sasrec: SASRec, samples: Path, catalogue: Path, baselines: Output) -> None:
    """Write baselines.parquet: the ranks and recommended items of popularity, TF-IDF, item transitions and SASRec."""
    test = splits.load(samples, catalogue, "test", 1)
    ranks = dict(rank_split(samples, catalogue, test, sasrec))
    inputs = {"samples": samples, "catalogue": catalogue}
    write_baselines(ranks, baselines, Provenance("baselines", sasrec.model_dump(), inputs))
