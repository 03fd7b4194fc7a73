"""measure: compute the metrics of a policy from its ranks on the test samples (METHOD 5)."""

from __future__ import annotations

from pathlib import Path

from minirec.evaluation import significance
from minirec.evaluation.breakdown import EvaluationSet
from minirec.evaluation.rank_tables import read_baselines, read_ranks
from minirec.experiment.sections import Measure
from minirec.progress import log
from minirec.storage import artefact
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output


def run(
    *,
    measure: Measure,
    samples: Path,
    catalogue: Path,
    ranks: Path,
    before: Path | None = None,
    baselines: Path,
    metrics: Output,
) -> None:
    """Write metrics.json of a policy: metrics, breakdown, paired tests with the baselines and the policy before RL."""
    test = EvaluationSet.load(samples, catalogue)
    policy = read_ranks(ranks, test.sample_id)
    start = read_ranks(before, test.sample_id) if before else None
    measured = {
        "samples": len(policy.rank),
        **significance.measure([policy], start, read_baselines(baselines, test.sample_id), test.user, measure),
        "breakdown": test.breakdown(policy),
    }
    inputs = {"samples": samples, "catalogue": catalogue, "ranks": ranks, "baselines": baselines}
    inputs |= {"before": before} if before else {}
    artefact.write_json(measured, metrics, Provenance("measure", measure.model_dump(), inputs))
    for name, value in measured["metrics"].items():
        log.info("%s %.4f [%.4f, %.4f]", name, value["mean"], value["low"], value["high"])
