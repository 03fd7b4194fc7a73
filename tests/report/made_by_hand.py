"""Every artefact of an experiment, made by hand, for the tests of what is said of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from minirec.evaluation.rank_tables import PolicyRanks, Ranks, write_baselines, write_ranks
from minirec.experiment import config, paths
from minirec.experiment.rules import Rules
from minirec.report import figures
from minirec.stages import measure, summarise
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance

TESTED, TRAINED, ITEMS, PICKED = 40, 12, 30, 4
BASE = np.arange(TESTED) % ITEMS + 1
TFIDF = np.maximum(BASE - 1, 1).astype(np.int32)
PNG, SVG = b"\x89PNG\r\n\x1a\n", b"<?xml"


TOP = np.tile(np.arange(3), (TESTED, 1))
FIRST = TRAINED + 3  # sample id of the test samples


def write_policy(folder: Path, rank, first_id: int = FIRST) -> None:
    """ranks.parquet of a policy."""
    ids, rank = np.arange(TESTED) + first_id, np.asarray(rank, dtype=np.int32)
    write_ranks(PolicyRanks(ids, rank, TOP, unreasoned(rank)), folder / "ranks.parquet", Provenance("evaluate"))


def measured(top: Path, folder: Path, settings, before: Path | None = None) -> dict:
    """What `measure` writes beside the ranks of a policy."""
    files = {"samples": top / "samples.parquet", "catalogue": top / "catalogue.parquet"}
    files |= {"ranks": folder / "ranks.parquet", "baselines": top / "baselines.parquet", "before": before}
    measure.run(measure=settings, **files, metrics=folder / "metrics.json")
    return artefact.read_json(folder / "metrics.json")


def unreasoned(rank):
    """Ranks without reasoning that the tests give a policy."""
    return np.minimum(rank + 1, ITEMS).astype(np.int32)


def write_json(file: Path, content) -> None:
    artefact.write_json(content, file, Provenance("test"))


def write_selection(folder: Path, ids, signals: bool) -> None:
    n = len(ids)
    place, signal = pa.array(range(n), pa.int32()), pa.array([0.5] * n) if signals else pa.nulls(n, pa.float64())
    columns = {"position": place, "sample_id": ids}
    columns |= {name: signal for name in ("mean_reward", "value", "learnability", "representativeness", "diversity")}
    tables.write("selection", pa.table(columns), folder / "selection.parquet", Provenance("select"))
    groups = pa.array([i // 2 for i in range(n)], pa.int32())
    columns = {"position": place, "sample_id": ids, "group": groups, "mean_reward": signal}
    tables.write("curriculum", pa.table(columns), folder / "curriculum.parquet", Provenance("curriculum"))


def write_history(folder, forced):
    """history.parquet of as many steps; forced: share of each step's completions without a marker of their own."""
    step = dict.fromkeys(tables.TABLES["history"].columns, 0.0) | {"sample_ids": [1], "valid_ndcg": None}
    rows = [step | {"step": number + 1, "forced_share": share, "seconds": 2.0} for number, share in enumerate(forced)]
    table = pa.Table.from_pylist(rows, tables.TABLES["history"].schema())
    tables.write("history", table, folder / "history.parquet", Provenance("train"))


@pytest.fixture
def project(tmp_path, monkeypatch, defaults):
    """A function that writes every artefact of an experiment, made by hand, and summarises it.

    Without pictures unless asked: they take most of the time, and few tests look at them.
    """
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "results", ignore_errors=True)

    def made(after, method="minirec", write_only=False, control=(), pictures=False):
        budget = PICKED if method != "full" else "all"
        main = {"method": method, "budget": PICKED, "seeds": list(range(len(after)))}
        main |= {"control": "random"} if control else {}
        given = config.validate(config.overlay(json.loads(defaults.model_dump_json()), {"main": main}))
        top, selector = Path("results/movielens"), "none" if method in ("random", "full") else "gemma"
        rows = [
            {
                "sample_id": i,
                "split": "train" if i < TRAINED else "valid" if i < TRAINED + 3 else "test",
                "user_id": f"u{i}",
                "target_row": 0,
                "history_rows": list(range(1, length + 1)),
                "history_rating": [None] * length,
                "history_age_ms": [1] * length,
                "timestamp": i,
            }
            for i in range(FIRST + TESTED)
            for length in [1 + (i - FIRST) % 3]
        ]
        samples = pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())
        tables.write("samples", samples, top / "samples.parquet", Provenance("prepare"))
        names = [str(row) for row in range(ITEMS)]
        catalogue = {"row": pa.array(range(ITEMS), pa.int32()), "item_id": names, "title": names, "text": names}
        catalogue["popularity"] = pa.array(range(ITEMS), pa.int64())
        tables.write("catalogue", pa.table(catalogue), top / "catalogue.parquet", Provenance("prepare"))
        write_json(top / "prepare.json", {"dropped": {"no title": 7}})
        tfidf = {"tfidf_last": Ranks(FIRST + np.arange(TESTED), TFIDF, TOP)}
        write_baselines(tfidf, top / "baselines.parquet", Provenance("baselines"))
        write_policy(top / "base/gemma", BASE)
        measured(top, top / "base/gemma", given.measure)
        ids = [1, 3, 5, 7]
        for seed, rank in enumerate(after):
            run = f"{method}-{budget}/seed{seed}"
            write_policy(top / "runs/gemma" / selector / run, rank)
            measured(top, top / "runs/gemma" / selector / run, given.measure, top / "base/gemma/ranks.parquet")
            write_history(top / "runs/gemma" / selector / run, forced=[1.0, 0.5 - seed / 10])
            write_selection(top / "selections" / selector / run, ids, signals=selector != "none")
        for seed, rank in enumerate(control):
            run = f"none/random-{PICKED}/seed{seed}"
            write_policy(top / "runs/gemma" / run, rank)
            measured(top, top / "runs/gemma" / run, given.measure, top / "base/gemma/ranks.parquet")
            write_history(top / "runs/gemma" / run, forced=[0.0, 0.0, 0.0])
        if selector != "none":
            scores = {n: np.linspace(0, 1, TRAINED) for n in ("mean_reward", "learnability", "representativeness")}
            scores |= {"sample_id": np.arange(TRAINED), "reward_std": np.zeros(TRAINED)}
            scores |= {"gradient_norm": np.ones(TRAINED), "error_norm": np.ones(TRAINED)}
            scores |= {"hits": np.array([0] * 3 + [4] * 9, np.int32)}
            one = {"completion": pa.array([0] * TRAINED, pa.int32()), "rank": pa.array([1] * TRAINED, pa.int32())}
            one |= {name: pa.array([1.0] * TRAINED, pa.float32()) for name in ("reward", "ndcg", "pi", "advantage")}
            one |= {"sample_id": np.arange(TRAINED), "hit": [True] * TRAINED, "text": [""] * TRAINED}
            one["forced"] = [False] * TRAINED
            one["tokens"] = pa.array([[1]] * TRAINED, pa.list_(pa.int32()))
            tables.write("rollouts", pa.table(one), top / "signals/gemma/seed0/rollouts.parquet", Provenance("rollout"))
            if method == "minirec":
                tables.write(
                    "scores", pa.table(scores), top / "signals/gemma/seed0/scores.parquet", Provenance("score")
                )
        trained = f"gemma/{selector}/{method}-{budget}"
        spent = {
            "signals/gemma/seed0/rollout": 12.5,
            f"runs/{trained}/seed0/train": 30,
            f"runs/{trained}/seed1/train": 12,
        }
        spent |= {"runs/gemma/none/random-9/seed0/train": 5, f"runs/{trained}/seed7/train": 6}  # of others
        spent |= {"signals/other/rollout": 7}
        for job, seconds in spent.items():
            folder, rule = (top / job).parent, Path(job).name
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            end = {"event": "end", "reason": "done", "seconds": seconds, "cpu_seconds": 1.0, "peak_mib": 100.5}
            (folder / "logs" / f"{rule}.log").write_text(f'{{"event": "start"}}\n12:00 line\n{json.dumps(end)}\n')
        if not write_only:
            summarise_it(given, pictures)
        return given

    return made


def summarise_it(given, pictures: bool = False) -> None:
    top = Path("results/movielens")
    signals = Rules(given).summary_signals({"results": "results", "dataset": "movielens"})
    with pytest.MonkeyPatch.context() as patched:
        if not pictures:
            patched.setattr(figures, "draw", lambda *_: [])
        summarise.run(
            measure=given.measure,
            runs=[str(run) for run in paths.experiment_runs(given)],
            folders=paths.folders(given, paths.main_runs(given)),
            **{name: Path(file) for name, file in signals.items()},
            metrics=top / "metrics.json",
            summary=top / "summary.txt",
        )


def written() -> tuple[dict, str]:
    """The summary and its text."""
    top = Path("results/movielens")
    return json.loads((top / "metrics.json").read_text()), (top / "summary.txt").read_text(encoding="utf-8")
