"""Is `minirec plan` right? What it would have said of the jobs of each data set, from the logs of the others.

    python benchmarks/long/plan.py results/evidence/tiny

Estimated seconds divided by those that the job took, for every finished job of a stage that runs a language model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from minirec.planning.estimates import Estimates, Finished

FACTOR = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="folders of results, each with several data sets")
    rows = []
    for results in parser.parse_args().results:
        logs = {log: Finished.read(log) for log in sorted(results.rglob("logs/*.log"))}
        jobs = [(log.relative_to(results).parts[0], job) for log, job in logs.items() if job is not None]
        for dataset, finished in jobs:
            others = Estimates([job for other, job in jobs if other != dataset], lambda: float("nan"))
            if not finished.job.language_model or finished.flop <= 0:
                continue
            estimate = others.of(finished.job, finished.flop)
            assert estimate is not None
            rows.append((finished.job.rule, finished.seconds, estimate.seconds / finished.seconds))
    table = pd.DataFrame(rows, columns=["rule", "seconds", "ratio"]).dropna()
    if table.empty:
        sys.exit("no finished jobs of two data sets lie there; run the same experiment on several")
    print("| stage | jobs | seconds | estimate / taken: median | least | most | within a factor 1.5 |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for rule, of_rule in [*table.groupby("rule"), ("all", table)]:
        ratio = of_rule["ratio"]
        within = ratio.between(1 / FACTOR, FACTOR).mean()
        numbers = f"{ratio.median():.2f} | {ratio.min():.2f} | {ratio.max():.2f} | {within:.0%}"
        print(f"| {rule} | {len(ratio)} | {of_rule['seconds'].sum():,.0f} | {numbers} |")


if __name__ == "__main__":
    main()
