"""baselines: rank the test samples with recommenders that have no language model (METHOD 5)."""

from __future__ import annotations

from pathlib import Path

from minirec.data import splits
from minirec.evaluation import baselines
from minirec.evaluation.ranks import write_baselines
from minirec.storage.artefact import Provenance


def run(*, samples: Path, catalogue: Path, out: Path) -> None:
    """Write baselines.parquet: the ranks and recommended items of popularity, TF-IDF and item transitions."""
    test = splits.load(samples, catalogue, "test", 1)
    ranks = dict(baselines.rank_split(samples, catalogue, test))
    write_baselines(ranks, out, Provenance("baselines", inputs={"samples": samples, "catalogue": catalogue}))
