"""What RL teaches a small recommender: before and after, by loss, on several data sets and seeds.

Every run is a target of the workflow, so an interrupted benchmark goes on where it stopped. Each finished run is a row
of docs/results/learning.csv, and the README's table is made of these rows. MovieLens is fetched; `cds` and `toys` take
part where data/NAME holds their two files.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from minirec import artefact, config, experiment, metrics, schemas

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "results" / "learning.csv"
ARMS = ("full", "item_loss", "token_loss")
K = 10
NAMES = ("dataset", "model", "arm", "seed", "samples", "steps", "train_seconds")
VALUES = ("before", "after", "low", "high", "p", "before_without_reasoning", "after_without_reasoning")
REFERENCES = ("popularity", "tfidf_last", "tfidf_history", "transitions")
AGAINST = tuple(f"p_{name}" for name in REFERENCES)  # paired, after against the reference
README, BEGIN, END = ROOT / "README.md", "<!-- learning -->\n", "<!-- end learning -->"
COLUMNS = ("NDCG@10 on test", "before", "after", "the same without reasoning", "item loss only", "token loss only")
COLUMNS += ("popularity", "TF-IDF", "transitions")


def row(top: Path, run: Path, model: str, arm: str, seed: int) -> dict[str, object]:
    """What one finished run says, NDCG@10 on test."""
    after, before = (
        schemas.read("ranks", path / "ranks.parquet").sort_by("sample_id") for path in (run, top / "base" / model)
    )
    history = schemas.read("history", run / "history.parquet")
    quality = {
        f"{when}{suffix}": metrics.ndcg(schemas.numpy(table, column), K)
        for when, table in (("before", before), ("after", after))
        for suffix, column in (("", "rank"), ("_without_reasoning", "rank_without_reasoning"))
    }
    found = artefact.read_json(run / "metrics.json")["metrics"][f"ndcg@{K}"]
    simple = schemas.read("references", top / "references.parquet").to_pandas()
    reference = {name: metrics.ndcg(ranks_of(simple, name), K) for name in REFERENCES}
    return {
        "dataset": top.name,
        "model": model.split("_")[0],
        "arm": arm,
        "seed": seed,
        "samples": sum(map(len, history["sample_ids"].to_pylist())),
        "steps": history.num_rows,
        "train_seconds": round(float(np.sum(schemas.numpy(history, "seconds")))),
        **{name: round(float(values.mean()), 4) for name, values in quality.items()},
        "low": round(found["low"], 4),
        "high": round(found["high"], 4),
        "p": paired_p(quality["after"], quality["before"]),
        **{name: round(float(values.mean()), 4) for name, values in reference.items()},
        **{f"p_{name}": paired_p(quality["after"], values) for name, values in reference.items()},
    }


def ranks_of(references: pd.DataFrame, name: str) -> np.ndarray:
    """Ranks of one reference in the order of sample_id."""
    return references[references["reference"] == name].sort_values("sample_id")["rank"].to_numpy()


def paired_p(a: np.ndarray, b: np.ndarray) -> float:
    """p of the paired permutation test, two digits."""
    return float(f"{metrics.paired_p(a, b, 0):.2g}")


def read() -> list[dict[str, str]]:
    """The rows of all runs that are finished."""
    if not OUT.is_file():
        return []
    with OUT.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def keep(new: dict[str, object]) -> None:
    """Put a row into the CSV, in place of an older one of the same run."""
    key = [str(new[name]) for name in NAMES[:4]]
    rows = [r for r in read() if [r[name] for name in NAMES[:4]] != key] + [{k: str(v) for k, v in new.items()}]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with artefact.replacing(OUT) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [*NAMES, *VALUES, *REFERENCES, *AGAINST], lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda r: [r[name] for name in NAMES[:4]]))


def table(rows: list[dict[str, str]]) -> str:
    """The README's table: a line for each data set and model, means over the seeds that are finished."""
    lines = [f"| {' | '.join(COLUMNS)} |\n", "|---" * len(COLUMNS) + "|\n"]
    for dataset, model in sorted({(r["dataset"], r["model"]) for r in rows}):
        found = {
            arm: [r for r in rows if [r["dataset"], r["model"], r["arm"]] == [dataset, model, arm]] for arm in ARMS
        }
        if not found["full"]:
            continue
        first = found["full"][0]
        cells = [f"{dataset}, {model}", mean(found["full"], "before"), gain(found["full"])]
        cells += [mean(found["full"], "after_without_reasoning"), *(gain(found[arm]) for arm in ARMS[1:])]
        better = max(first["tfidf_last"], first["tfidf_history"], key=float)
        cells += [f"{float(value):.4f}" for value in (first["popularity"], better, first["transitions"])]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def mean(rows: list[dict[str, str]], name: str) -> str:
    """The mean over seeds."""
    return f"{np.mean([float(r[name]) for r in rows]):.4f}" if rows else "not run"


def gain(rows: list[dict[str, str]]) -> str:
    """The mean after training, the spread over seeds, and how many of them are significantly better than before."""
    if not rows:
        return "not run"
    after = [float(r["after"]) for r in rows]
    better = sum(float(r["p"]) < 0.05 and float(r["after"]) > float(r["before"]) for r in rows)
    return f"{np.mean(after):.4f} ({min(after):.4f} to {max(after):.4f}; {better} of {len(rows)})"


def show() -> None:
    """Put the table of all finished runs into the README."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    with artefact.replacing(README) as partial:
        partial.write_text(f"{before}{BEGIN}{table(read())}{END}{after}", encoding="utf-8")


def settings_of(model: str, dataset: str) -> tuple[list[Path], config.Config, str]:
    """The configuration files of a model, what they say together, and the model's name for a data set."""
    files = [ROOT / "config" / f"{name}.yaml" for name in ("quickstart", "learning", f"learning_{model}")]
    return files, config.load(ROOT / "config" / "config.yaml", *files), f"tiny_{dataset}" if model == "tiny" else model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "smollm"], choices=["tiny", "smollm"], help="all")
    parser.add_argument("--datasets", nargs="+", default=["movielens", "cds", "toys"], help="all")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="losses; all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training; 0 1 2")
    parser.add_argument("--cores", type=int, default=2, help="2")
    given = parser.parse_args()
    runs = product(given.models, given.arms, given.datasets, given.seeds)  # the full loss on everything first
    for model, arm, dataset, seed in runs:
        files, settings, name = settings_of(model, dataset)
        own = settings.datasets[dataset].source == "own"
        if own and not (ROOT / "data" / dataset / "interactions.parquet").is_file():
            sys.stdout.write(f"{dataset}: left out, data/{dataset} does not hold its two files\n")
            continue
        top = Path(settings.results) / dataset
        run = top / "runs" / experiment.run_path(settings, name, "none", arm, "all", seed)
        wanted = [run / "metrics.json", top / "base" / name / "metrics.json", top / "references.json"]
        command = ["snakemake", "--cores", str(given.cores), "--quiet", "host", "reason", "rules"]
        command += ["--configfile", *map(str, files), "--", *map(str, wanted)]
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
        found = row(ROOT / top, ROOT / run, name, arm, seed)
        keep(found)
        show()
        sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    main()
