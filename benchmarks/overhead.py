"""What the workflow costs beside the work: imports, help, a run with nothing to do, the plan of 500 jobs.

In a folder of its own, where every stage only writes what it would; the best of some tries. Aims: importing the package
0.2 s, help 0.3 s, nothing to do 3 s, the plan 10 s.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLD = 1_000_000_000  # time of the first files; what is made of them is newer
TOY = """
datasets: {toy: {source: own}}
models: {tiny: {source: tiny, dataset: toy}}
main: {model: tiny, selector: tiny, method: minirec, budget: 8, seeds: [0]}
compare:
  models: [tiny]
  selectors: [tiny]
  methods: [minirec, random, no_diversity, no_curriculum]
  budgets: [8, 16, 32, 64]
  seeds: [SEEDS]
"""


def seconds(command: list[str], folder: Path, tries: int) -> tuple[float, str]:
    """(Least wall time of a command that must succeed, what it said)."""
    environment = os.environ | {"PYTHONPATH": str(folder / "src")}
    best, said = float("inf"), ""
    for _ in range(tries):
        started = time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        best, said = min(best, time.perf_counter() - started), done.stdout
        if done.returncode:
            sys.exit(said)
    return best, said


def project(folder: Path) -> None:
    """A copy of the workflow and an own data set of two empty files."""
    for part in ("src", "workflow", "config"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "environment.yml", folder)
    (folder / "data" / "toy").mkdir(parents=True)
    for name in ("interactions", "items"):
        file = folder / "data" / "toy" / f"{name}.parquet"
        file.touch()
        os.utime(file, (OLD, OLD))
    (folder / "toy.yaml").write_text(TOY.replace("SEEDS", ", ".join(map(str, range(8)))), encoding="utf-8")


def pretend(said: str, folder: Path) -> None:
    """Make the outputs of every job that a dry run names, in its order, so that nothing is left to do."""
    for number, files in enumerate(re.findall(r"^    output: (.*)$", said, re.MULTILINE)):
        for file in files.split(", "):
            path = folder / file
            if path.suffix:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            else:
                path.mkdir(parents=True)
            os.utime(path, (OLD + 1 + number, OLD + 1 + number))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tries", type=int, default=3)
    given = options.parse_args()
    python, snakemake = [sys.executable], [sys.executable, "-m", "snakemake", "--cores", "2", "--nocolor"]
    layered = ["--configfile", "toy.yaml", "--"]
    main_target, grid = "results/toy/metrics.json", "results/toy/comparison.parquet"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project(folder)
        bare, _ = seconds([*python, "-c", "pass"], folder, given.tries)
        imported, _ = seconds([*python, "-c", "import minirec"], folder, given.tries)
        helped, _ = seconds([*python, "-m", "minirec", "--help"], folder, given.tries)
        planned, said = seconds([*snakemake, "-n", "--quiet", "rules", *layered, grid], folder, given.tries)
        jobs = re.findall(r"^total +(\d+)$", said, re.MULTILINE)[0]
        pretend(seconds([*snakemake, "-n", *layered, main_target], folder, 1)[1], folder)
        idle, said = seconds([*snakemake, *layered, main_target], folder, given.tries)
        assert "Nothing to be done" in said, said
    print("| what | seconds | aim |")
    print("|---|--:|--:|")
    print(f"| python, nothing imported | {bare:.2f} | |")
    print(f"| python -c 'import minirec' | {imported:.2f} | 0.2 |")
    print(f"| python -m minirec --help | {helped:.2f} | 0.3 |")
    print(f"| snakemake {main_target}, nothing to do | {idle:.2f} | 3 |")
    print(f"| snakemake -n {grid}, {jobs} jobs | {planned:.2f} | 10 |")


if __name__ == "__main__":
    main()
