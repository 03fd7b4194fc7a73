"""summarise: put the main experiment into one metrics.json, a text for the terminal and pictures.

The costs come from the logs of the jobs.
"""

from __future__ import annotations

from pathlib import Path

from minirec.data.stored_signals import rewards
from minirec.evaluation.main_experiment import summarise
from minirec.experiment.paths import Run
from minirec.experiment.sections import Measure
from minirec.progress import log
from minirec.report.summary import summary_text
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output, atomic_write


def run(
    *,
    measure: Measure,
    runs: list[str],
    folders: list[str],
    shared_signals: bool = False,
    scores: Path | None = None,
    rollouts: Path | None = None,
    metrics: Output,
    summary: Output,
) -> None:
    """Write metrics.json, summary.txt and figures/.

    scores, rollouts: the signals of the first run, if its method reads any; scores have those of rollouts and more.
    runs: of several seeds, then those of the control, if there is one. folders: whose jobs are the cost.
    shared_signals: one proxy made the signals of all seeds, so that the choice of the proxy is not covered.
    """
    from minirec.report import figures  # takes longer to import than all the rest

    top, every = metrics.parent, [Run.parse(name) for name in runs]
    signals = tables.read("scores", scores) if scores else rewards(rollouts) if rollouts else None
    selection = tables.read("selection", every[0].selection(top) / "selection.parquet")
    curriculum = tables.read("curriculum", every[0].selection(top) / "curriculum.parquet").sort_by("position")
    summarised = summarise(top, every, folders, selection, signals, shared_signals, measure)
    histories = figures.histories_of(top, every)
    pictures = figures.draw(top / "figures", summarised, histories, signals, selection, curriculum)
    with atomic_write(summary) as partial:
        partial.write_text(summary_text(summarised, top, pictures), encoding="utf-8")
    inputs = {str(one): one.folder(top) / "metrics.json" for one in every}
    artefact.write_json(summarised, metrics, Provenance("summarise", measure.model_dump(), inputs))
    log.info("wrote %s, %s and %d pictures", metrics, summary, len(pictures))
