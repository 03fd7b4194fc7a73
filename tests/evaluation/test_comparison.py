"""Runs of a grid beside each other."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from minirec.errors import InputError
from minirec.evaluation import comparison
from minirec.evaluation.rank_tables import PolicyRanks, write_ranks
from minirec.evaluation.significance import interval
from minirec.experiment.paths import Run
from minirec.experiment.sections import Measure
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance


def a_run(top, name, ndcg, seconds):
    folder, run = top / "runs", name
    (folder / run).mkdir(parents=True)
    metrics = {"metrics": {"ndcg@10": {"mean": ndcg, "low": ndcg - 0.01, "high": ndcg + 0.01}}}
    artefact.write_json(metrics, folder / run / "metrics.json", Provenance("evaluate"))
    step = dict.fromkeys(tables.TABLES["history"].columns, 0.0)
    rows = [step | {"step": i + 1, "seconds": s, "sample_ids": [1], "valid_ndcg": None} for i, s in enumerate(seconds)]
    table = pa.Table.from_pylist(rows, tables.TABLES["history"].schema())
    tables.write("history", table, folder / run / "history.parquet", Provenance("train"))


def test_a_run_becomes_a_row_with_the_names_of_its_path_and_the_seconds_of_its_steps(tmp_path):
    a_run(tmp_path, "gemma/none/random-64/seed3", 0.2, [1.5, 2.5])
    logs = [("a", "done", 10.0), ("b", "done", 5.0), ("c", "killed", 7.0)]
    for number, (name, reason, seconds) in enumerate(logs):
        log = tmp_path / f"signals/seed3/{number}/logs/{name}.log"
        log.parent.mkdir(parents=True)
        end = {"event": "end", "reason": reason, "seconds": seconds, "cpu_seconds": 1.0, "peak_mib": 1.0}
        log.write_text(json.dumps(end) + "\n")
    patterns = ["signals/seed{seed}/**/logs/*.log", "signals/seed{seed}/0/logs/a.log"]
    (row,) = comparison.run_rows(tmp_path, Run.parse("gemma/none/random-64/seed3"), patterns)
    assert row == {
        "model": "gemma",
        "selector": "none",
        "method": "random",
        "budget": "64",
        "seed": 3,
        "metric": "ndcg@10",
        "value": 0.2,
        "low": pytest.approx(0.19),
        "high": pytest.approx(0.21),
        "train_seconds": 4.0,
        "selection_seconds": 15.0,  # a job counts once, a failed one not at all
    }
    for unknown in ("signals/seed{seed}/2/logs/c.log", "signals/seed{seed}/logs/lost.log"):
        (row,) = comparison.run_rows(tmp_path, Run.parse("gemma/none/random-64/seed3"), [*patterns, unknown])
        assert row["selection_seconds"] is None  # a cost that nobody has recorded is not 0
        known = row | {"seed": 4, "selection_seconds": 5.0}
        for rows in ([row], [row, known]):  # nor is the mean that of the seeds whose cost is known
            cells = comparison.over_seeds(pd.DataFrame(rows), "ndcg@10")
            assert cells["total_seconds"].isna().all()
            assert cells["seconds"].tolist() == [4.0]


def test_the_interval_of_a_configuration_covers_its_own_seeds_and_no_other_runs(tmp_path):
    n, generator = 30, np.random.default_rng(0)
    rows = dict.fromkeys(tables.TABLES["samples"].columns, 0) | {"split": "test", "history_rows": [1]}
    rows |= {"history_rating": [None], "history_age_ms": [1]}
    samples = [rows | {"sample_id": i, "user_id": f"u{i // 2}"} for i in range(n)]
    table = pa.Table.from_pylist(samples, tables.TABLES["samples"].schema())
    tables.write("samples", table, tmp_path / "samples.parquet", Provenance("prepare"))
    ranks, runs = {}, [Run("m", "none", "random", budget, seed) for budget, seed in ((8, 0), (8, 1), ("all", 0))]
    for run in runs:
        ranks[run] = generator.integers(1, 20, n).astype(np.int32)
        found = PolicyRanks(np.arange(n), ranks[run], np.zeros((n, 1), int), ranks[run])
        write_ranks(found, run.folder(tmp_path) / "ranks.parquet", Provenance("evaluate"))
    configurations = pd.DataFrame([run.shared for run in (runs[0], runs[2])]).astype(str)
    of_runs = comparison.ranks_of(tmp_path, runs, tmp_path / "samples.parquet")
    found = comparison.with_intervals(configurations, *of_runs, Measure(bootstrap=100))
    users = np.arange(n) // 2
    for row, of_seeds in zip(found.to_dict("records"), ([runs[0], runs[1]], [runs[2]]), strict=True):
        values = [[1 / np.log2(1 + rank) if rank <= 10 else 0 for rank in ranks[run]] for run in of_seeds]
        expected = interval(np.array(values), users, Measure(bootstrap=100))
        assert (row["low"], row["high"]) == pytest.approx((expected["low"], expected["high"]))


def test_seeds_are_averaged_within_a_configuration_only(tmp_path):
    for seed, ndcg in enumerate((0.1, 0.3)):
        a_run(tmp_path, f"gemma/gemma/minirec-64/seed{seed}", ndcg, [seed + 1.0])
    a_run(tmp_path, "gemma/gemma/minirec-128/seed0", 0.9, [9.0])
    table = pd.DataFrame(
        [
            row
            for run in tmp_path.glob("runs/*/*/*/*")
            for row in comparison.run_rows(tmp_path, Run.parse("/".join(run.parts[-4:])), [])
        ]
    )
    cells = comparison.over_seeds(table, "ndcg@10").set_index("budget")
    assert cells.loc["64", "mean"] == pytest.approx(0.2)
    assert cells.loc["64", "std"] == pytest.approx(0.1 * 2**0.5)
    assert cells.loc["64", "seconds"] == cells.loc["64", "total_seconds"] == pytest.approx(1.5)
    assert cells.loc["128", "mean"] == pytest.approx(0.9)
    assert cells.loc["128", "seeds"] == 1


def with_ranks(folder, runs):
    for run, ranks in runs.items():
        n = len(ranks)
        top = pa.array([[1]] * n, pa.list_(pa.int32()))
        columns = {"sample_id": np.arange(n), "rank": np.array(ranks, np.int32), "top": top}
        columns["rank_without_reasoning"] = columns["rank"]
        tables.write("ranks", pa.table(columns), folder / run / "ranks.parquet", Provenance("evaluate"))


def with_samples(path, users):
    rows = [
        {
            "sample_id": number,
            "split": "test",
            "user_id": f"u{user}",
            "target_row": 0,
            "history_rows": [1],
            "history_rating": [None],
            "history_age_ms": [1],
            "timestamp": 1,
        }
        for number, user in enumerate(users)
    ]
    table = pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())
    tables.write("samples", table, path, Provenance("prepare"))
    return path


def paired(top, runs, samples, settings):
    return comparison.tests_of(runs, *comparison.ranks_of(top, runs, samples), settings.measure)


def test_the_tests_count_users_not_samples(tmp_path, defaults):
    ours, theirs = [1] * 12 + [3] * 2, [3] * 12 + [1] * 2  # 12 samples gain as much as 2 lose
    with_ranks(tmp_path / "runs", {"m/s/minirec-8/seed0": ours, "m/none/random-8/seed0": theirs})
    compared = [Run.parse(name) for name in ("m/s/minirec-8/seed0", "m/none/random-8/seed0")]
    p = {}
    for name, users in {"one sample each": range(14), "one user has the 12": [0] * 12 + [1, 2]}.items():
        samples = with_samples(tmp_path / f"{name}.parquet", list(users))
        found = paired(tmp_path, compared, samples, defaults)
        p[name] = found["paired_tests"]["m/none/random-8"]["p"]
    assert p["one sample each"] < 0.05
    assert p["one user has the 12"] == 1.0  # of 8 sign patterns the 12 weigh more than the rest in all, either way


def test_the_main_experiment_is_compared_with_every_configuration_sample_by_sample_over_all_seeds(tmp_path, defaults):
    better, worse, other = [1] * 20, [3] * 20, [1, 3] * 10
    runs = {"m/s/minirec-8/seed0": better, "m/s/minirec-8/seed1": worse}  # on average .75 of each sample
    runs |= {"m/none/random-8/seed0": worse, "m/none/random-8/seed5": worse, "m/none/full-all/seed0": other}
    with_ranks(tmp_path / "runs", runs)
    samples = with_samples(tmp_path / "samples.parquet", [number // 2 for number in range(20)])
    compared = [Run.parse(name) for name in runs]
    found = paired(tmp_path, compared, samples, defaults)
    assert found["main"] == "m/s/minirec-8"
    assert list(found["paired_tests"]) == ["m/none/random-8", "m/none/full-all"]
    random, full = found["paired_tests"].values()
    assert random["mean"] == 0.25
    assert random["low"] < 0 < random["high"]  # of two seeds, one is no better
    assert not random["significant"]
    assert full["mean"] == pytest.approx(0)
    assert full["low"] < 0 < full["high"]
    assert not full["significant"]
    with_ranks(tmp_path / "runs", {"m/none/full-all/seed0": other[:-1]})
    with pytest.raises(InputError, match=r"full-all/seed0/ranks.parquet is of other test samples"):
        comparison.ranks_of(tmp_path, compared, samples)


def test_every_configuration_is_compared_with_random_of_its_budget_and_with_full(tmp_path, defaults):
    best, middle, worst = [1] * 40, [3] * 40, [50] * 40  # NDCG@10 of 1, .5 and 0
    runs = {"m/s/minirec-8/seed0": best, "m/s/kmeans-8/seed0": middle, "m/s/kmeans-9/seed0": middle}
    runs |= {"m/none/random-8/seed0": worst, "m/none/full-all/seed0": middle, "other/s/kmeans-8/seed0": best}
    with_ranks(tmp_path / "runs", runs)
    samples = with_samples(tmp_path / "samples.parquet", list(range(40)))
    found = paired(tmp_path, [Run.parse(name) for name in runs], samples, defaults)
    random = {name: test["mean"] for name, test in found["minus_random"].items()}
    assert random == {"m/s/minirec-8": 1.0, "m/s/kmeans-8": 0.5}  # none has the budget 9, or is of the other model
    full = {name: test["mean"] for name, test in found["minus_full"].items()}
    assert full == {"m/s/minirec-8": 0.5, "m/s/kmeans-8": 0.0, "m/s/kmeans-9": 0.0, "m/none/random-8": -0.5}
    test = found["minus_random"]["m/s/kmeans-8"]
    assert test["p_holm"] == 2 * test["p"] < 0.001  # one of two


def test_a_variant_of_full_stands_for_it_where_full_itself_is_not_run(tmp_path, defaults):
    best, middle, worst = [1] * 40, [3] * 40, [50] * 40  # NDCG@10 of 1, .5 and 0
    runs = {"m/s/minirec-8/seed0": best, "m/none/item_loss-all/seed0": worst, "m/none/full_once-all/seed0": middle}
    runs |= {"other/none/full_twice-all/seed0": worst}
    with_ranks(tmp_path / "runs", runs)
    samples = with_samples(tmp_path / "samples.parquet", list(range(40)))
    found = paired(tmp_path, [Run.parse(name) for name in runs], samples, defaults)["minus_full"]
    assert {name: test["mean"] for name, test in found.items()} == {"m/s/minirec-8": 0.5, "m/none/item_loss-all": -0.5}
