"""What the default experiment and grid cost on the paper's models: tokens to write and operations, by job.

Arithmetic, by the formulas of `minirec plan`, for 10,748 training samples, 1,343 valid and 1,343 test ones, 10,000
items, prompts of 300 tokens and items of 200. Trainings that stop early cost less.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from minirec.experiment import config as config_file
from minirec.experiment import paths
from minirec.planning.jobs import Job, PlannedWork, jobs
from minirec.planning.paper_models import SHAPES
from minirec.planning.workload import Shape, Sizes, Work, shape_of

ROOT = Path(__file__).resolve().parents[1]
SIZES = Sizes(10_748, 1_343, 1_343, 10_000, 300, 200)
NAMES = {"gemma": "Gemma-2-2B", "qwen": "Qwen2.5-3B"}


class PaperScale(PlannedWork):
    """The work of jobs on the paper's models, which need not be there."""

    def sizes(self, model: str) -> Sizes:
        return SIZES

    def shape(self, model: str) -> Shape:
        return shape_of(AutoConfig.for_model(**SHAPES[NAMES[model]]), self.config.policy.dtype)


def cell(job: Job) -> str:
    """The name of a row: a method and budget, or the rule of a job that several runs share."""
    return f"{job.rule}, {job.method} {job.budget}" if job.rule == "train" else job.rule


def main() -> None:
    settings = config_file.load(ROOT / "config" / "config.yaml")
    planned = PaperScale(settings, ROOT)
    for what, runs, last in (
        ("metrics.json", paths.experiment_runs(settings), "summarise"),
        ("comparison.parquet", paths.compared_runs(settings), "compare"),
    ):
        rows: dict[tuple[str, str], tuple[int, Work]] = {}
        for job in jobs(settings, runs, last):
            if job.language_model:
                key = job.language_model, cell(job)
                count, work = rows.get(key, (0, Work()))
                rows[key] = count + 1, work + planned.work(job)
        print(f"\n{what}: {len(runs)} runs\n")
        print("| model | job | jobs | M tokens written | PFLOP |\n|---|---|--:|--:|--:|")
        for (model, name), (count, work) in rows.items():
            print(f"| {NAMES[model]} | {name} | {count} | {work.written / 1e6:,.1f} | {work.flop / 1e15:,.0f} |")
        total = sum((work for _, work in rows.values()), Work())
        print(f"| | **in all** | | **{total.written / 1e6:,.0f}** | **{total.flop / 1e15:,.0f}** |")


if __name__ == "__main__":
    main()
