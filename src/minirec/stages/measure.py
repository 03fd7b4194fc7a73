"""measure: metrics of a policy on the test samples, out of ranks that are there already (METHOD 5)."""

from __future__ import annotations

from pathlib import Path

from minirec.evaluation import significance
from minirec.evaluation.breakdown import EvaluationSet
from minirec.evaluation.ranks import read_baselines, read_ranks
from minirec.experiment import config
from minirec.progress import log
from minirec.storage import artefact
from minirec.storage.artefact import Provenance


def run(
    *,
    measure: config.Measure,
    samples: Path,
    catalogue: Path,
    ranks: Path,
    before: Path | None,
    baselines: Path,
    out: Path,
) -> None:
    """Write metrics.json of a policy: metrics, breakdown, paired tests with the baselines and the policy before RL."""
    test = EvaluationSet.load(samples, catalogue)
    policy = read_ranks(ranks, test.sample_id)
    start = read_ranks(before, test.sample_id) if before else None
    metrics = {
        "samples": len(policy.rank),
        **significance.measure([policy], start, read_baselines(baselines, test.sample_id), measure),
        "breakdown": test.breakdown(policy),
    }
    inputs = {"samples": samples, "catalogue": catalogue, "ranks": ranks, "baselines": baselines}
    inputs |= {"before": before} if before else {}
    artefact.write_json(metrics, out, Provenance("measure", measure.model_dump(), inputs))
    for name, value in metrics["metrics"].items():
        log.info("%s %.4f [%.4f, %.4f]", name, value["mean"], value["low"], value["high"])
