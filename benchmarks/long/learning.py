"""What RL teaches a small recommender: before and after, by loss, on several data sets and seeds.

Each finished run is a row of docs/results/learning.csv, with the tree and a digest of the settings that made it, and is
not run again while these settings hold; a run that was interrupted goes on where it stopped. The tables of
docs/results.md and docs/learning.md are made of these rows. MovieLens is fetched; `cds` and `toys` take part where
data/NAME holds their two files.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from minirec.experiment import commands, config, paths
from minirec.storage import artefact, tables
from minirec.storage.files import atomic_write, exclusive_lock

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "results" / "learning.csv"
ARMS = ("full", "item_loss", "token_loss")
ABLATIONS = ("no_head", "group_advantage")  # config/learning.yaml; of the tiny model
STAGES = ("prepare", "embed", "curriculum", "train", "evaluate", "measure")  # whose settings decide what comes out
RULES = ("embed_base", "train", "evaluate", "evaluate_base")  # that run the model
KINDS = dict.fromkeys(("budget", "settings", "commit"), str)
BATCH_TOKENS = {"tiny": 4096, "smollm": 2048}  # of a forward pass: what is fastest on a CPU
MICRO_BATCH_PROMPTS = {"tiny": 24, "smollm": 16}
NDCG = "ndcg@10"
KEY = ("dataset", "model", "arm", "seed")
NAMES = (*KEY, "settings", "commit", "samples", "steps", "train_seconds", "test_samples")
VALUES = ("before", "after", "low", "high", "p", "before_without_reasoning", "after_without_reasoning")
BASELINES = ("popularity", "tfidf_last", "tfidf_history", "transitions")
P_VALUES = tuple(f"p_{name}" for name in BASELINES)  # of paired tests: after against the baseline
RESULTS, DOCS = ROOT / "docs" / "results.md", ROOT / "docs" / "learning.md"
COLUMNS = ("NDCG@10 on test", "before", "after", "the same without reasoning", "item loss only", "token loss only")
COLUMNS += ("popularity", "TF-IDF", "transitions")


def digest(settings: config.Config, dataset: str, model: str, arm: str) -> str:
    """Of all settings on which a run depends; the data set and the model by where they come from."""
    sections = {section for stage in STAGES for section in commands.command(stage).sections}
    said = settings.model_dump(mode="json", include=sections)
    said |= {"dataset": settings.datasets[dataset].model_dump(mode="json")}
    said |= {"model": settings.models[model].model_dump(mode="json")}
    said |= {"arm": settings.variants[arm].model_dump(mode="json") if arm in settings.variants else arm}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def commit() -> str:
    """The tree that is measured."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "workflow", "config")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def row(run: Path) -> dict[str, object]:
    """What one finished run says of itself and of the policy before it, NDCG@10 on test."""
    found = artefact.read_json(run / "metrics.json")
    history = tables.read("history", run / "history.parquet")
    after = found["metrics"][NDCG]
    return {
        "samples": sum(map(len, history["sample_ids"].to_pylist())),
        "steps": history.num_rows,
        "train_seconds": round(float(np.sum(tables.numpy(history, "seconds")))),
        "test_samples": found["samples"],
        "before": mean_of(found["before"]),
        "after": mean_of(found["metrics"]),
        "low": round(after["low"], 4),
        "high": round(after["high"], 4),
        "p": p_of(found["improvement"]),
        "before_without_reasoning": mean_of(found["before_without_reasoning"]),
        "after_without_reasoning": mean_of(found["metrics_without_reasoning"]),
        **{name: mean_of(found["baselines"][name]) for name in BASELINES},
        **{f"p_{name}": p_of(found["paired_tests"][name]) for name in BASELINES},
    }


def mean_of(summary: dict[str, dict[str, float]]) -> float:
    """The mean over the test samples."""
    return round(summary[NDCG]["mean"], 4)


def p_of(test: dict[str, float]) -> float:
    """p of a paired permutation test, two digits."""
    return float(f"{test['p']:.2g}")


def read() -> list[dict[str, str]]:
    """The rows of all runs that are finished."""
    if not OUT.is_file():
        return []
    with OUT.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def keep(rows: pd.DataFrame, path: Path, key: list[str], kinds: Mapping[str, type] = KINDS) -> None:
    """Put rows into a CSV or Parquet file, in place of older ones with the same values in the columns `key`.

    kinds: types of columns that a CSV file does not tell.
    """
    table = path.suffix == ".parquet"
    with exclusive_lock(path, wait=True), atomic_write(path) as partial:
        former = [pd.read_parquet(path) if table else pd.read_csv(path, dtype=kinds)] if path.is_file() else []
        rows = rows.astype({name: kind for name, kind in kinds.items() if name in rows})
        rows = pd.concat([*former, rows]).drop_duplicates(key, keep="last").sort_values(key)
        if table:
            rows.to_parquet(partial, index=False, compression="zstd")
        else:
            rows.to_csv(partial, index=False, float_format="%.4g", lineterminator="\n")


def into_page(page: Path, name: str, made: str) -> None:
    """Put a part that is made by a program into a page, between the comments of its name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    if not found:
        sys.exit(f"{page} has no {begin.strip()}; put it where the part belongs, and {end} below it")
    with atomic_write(page) as partial:
        partial.write_text(f"{before}{begin}{made}{end}{rest.partition(end)[2]}", encoding="utf-8")


def table(rows: list[dict[str, str]]) -> str:
    """The table of docs/results.md: a line for each data set and model, means over the seeds that are finished."""
    lines = [f"| {' | '.join(COLUMNS)} |\n", "|---" * len(COLUMNS) + "|\n"]
    for dataset, model in sorted({(r["dataset"], r["model"]) for r in rows}):
        found = {arm: of(rows, dataset, model, arm) for arm in ARMS}
        if not found["full"]:
            continue
        first = found["full"][0]
        cells = [f"{dataset}, {model}", mean(found["full"], "before"), gain(found["full"])]
        cells += [mean(found["full"], "after_without_reasoning"), *(gain(found[arm]) for arm in ARMS[1:])]
        better = max(first["tfidf_last"], first["tfidf_history"], key=float)
        cells += [f"{float(value):.4f}" for value in (first["popularity"], better, first["transitions"])]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def ablations(rows: list[dict[str, str]]) -> str:
    """The table of docs/learning.md: what the tiny model learns without one of the changes that let it learn."""
    lines = [f"| NDCG@10 on test | before | after | {' | '.join(ABLATIONS)} |\n", "|---" * (3 + len(ABLATIONS)) + "|\n"]
    for dataset in sorted({r["dataset"] for r in rows}):
        whole = of(rows, dataset, "tiny", "full")
        cells = [dataset, mean(whole, "before"), gain(whole), *(gain(of(rows, dataset, "tiny", a)) for a in ABLATIONS)]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def of(rows: list[dict[str, str]], dataset: str, model: str, arm: str) -> list[dict[str, str]]:
    """The seeds of one arm."""
    return [r for r in rows if [r["dataset"], r["model"], r["arm"]] == [dataset, model, arm]]


def mean(rows: list[dict[str, str]], name: str) -> str:
    """The mean over seeds."""
    return f"{np.mean([float(r[name]) for r in rows]):.4f}" if rows else "not run"


def gain(rows: list[dict[str, str]]) -> str:
    """The mean after training, the spread over seeds, and how many of them are significantly better than before."""
    if not rows:
        return "not run"
    after = [float(r["after"]) for r in rows]
    better = sum(float(r["p"]) < 0.05 and float(r["after"]) > float(r["before"]) for r in rows)
    spread = f"{min(after):.4f} to {max(after):.4f}; " if len(rows) > 1 else ""
    return f"{np.mean(after):.4f} ({spread}{better} of {len(rows)})"


def show() -> None:
    """Put the tables of all finished runs into docs/results.md and docs/learning.md."""
    into_page(RESULTS, "learning", table(read()))
    into_page(DOCS, "learning", ablations(read()))


def settings_of(model: str, dataset: str, *more: str) -> tuple[list[Path], config.Config, str]:
    """The configuration files of a model and any more, what they say together, and the model's name for a data set."""
    files = [ROOT / "config" / f"{name}.yaml" for name in ("quickstart", "learning", f"learning_{model}")]
    files += [Path(file).absolute() for file in more]
    return files, config.load(ROOT / "config" / "config.yaml", *files), f"tiny_{dataset}" if model == "tiny" else model


def workflow(
    files: Sequence[Path], model: str, rules: Sequence[str], wanted: Iterable[Path | str], cores: int, *words: str
) -> None:
    """Let the workflow make files, with the fastest resources on a CPU for the rules that run a model.

    files: of the configuration. words: further words of Snakemake's command line.
    """
    command = ["snakemake", "--cores", str(cores), "--quiet", "host", "reason", "rules", "--set-resources"]
    for rule in rules:
        command += [f"{rule}:gpu=1", f"{rule}:batch_tokens={BATCH_TOKENS[model]}"]
        if rule.startswith("train"):
            command.append(f"{rule}:micro_batch_prompts={MICRO_BATCH_PROMPTS[model]}")
    command += [*words, "--configfile", *map(str, files), "--", *map(str, wanted)]
    if subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode:
        sys.exit("the workflow has failed, and says why above; after mending it, run the same command again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "smollm"], choices=["tiny", "smollm"], help="all")
    parser.add_argument("--datasets", nargs="+", default=["movielens", "cds", "toys"], help="all")
    parser.add_argument("--arms", nargs="+", choices=ARMS + ABLATIONS, help="all; of SmolLM2 no ablations")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training; 0 1 2")
    parser.add_argument("--cores", type=int, default=2, help="2")
    parser.add_argument("--again", action="store_true", help="ask the workflow also for runs that have a row")
    given = parser.parse_args()
    runs = product(given.models, given.arms or ARMS + ABLATIONS, given.datasets, given.seeds)  # by worth
    for model, arm, dataset, seed in runs:
        if model != "tiny" and arm in ABLATIONS and not given.arms:
            continue
        files, settings, name = settings_of(model, dataset)
        key = {"dataset": dataset, "model": model, "arm": arm, "seed": seed}
        key["settings"] = digest(settings, dataset, name, arm)
        if not given.again and any(all(r.get(k) == str(v) for k, v in key.items()) for r in read()):
            sys.stdout.write(f"{key}: finished in an earlier run, {OUT.name} has its row\n")
            continue
        own = settings.datasets[dataset].source == "own"
        if own and not (ROOT / "data" / dataset / "interactions.parquet").is_file():
            sys.stdout.write(f"{dataset}: left out, data/{dataset} does not hold its two files\n")
            continue
        run = paths.run_of(settings, name, "none", arm, "all", seed).folder(Path(settings.results) / dataset)
        key["commit"] = commit()
        workflow(files, model, RULES, [run / "metrics.json"], given.cores)
        found = key | row(ROOT / run)
        keep(pd.DataFrame([found]).astype(str), OUT, [*KEY], dict.fromkeys(found, str))
        show()
        sys.stdout.write(f"{found}\n")


if __name__ == "__main__":
    main()
