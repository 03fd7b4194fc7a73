"""The comparison table of several runs."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest

from minirec import artefact, compare, schemas
from minirec.artefact import Made


def a_run(folder, run, ndcg, seconds):
    (folder / run).mkdir(parents=True)
    metrics = {"metrics": {"ndcg@10": {"mean": ndcg, "low": ndcg - 0.01, "high": ndcg + 0.01}}}
    artefact.write_json(metrics, folder / run / "metrics.json", Made("evaluate"))
    step = dict.fromkeys(schemas.TABLES["history"].columns, 0.0)
    rows = [step | {"step": i + 1, "seconds": s, "sample_ids": [1], "valid_ndcg": None} for i, s in enumerate(seconds)]
    table = pa.Table.from_pylist(rows, schemas.TABLES["history"].schema())
    schemas.write("history", table, folder / run / "history.parquet", Made("train"))


def test_a_run_becomes_a_row_with_the_names_of_its_path_and_the_seconds_of_its_steps(tmp_path):
    a_run(tmp_path, "gemma/none/random-64/seed3", 0.2, [1.5, 2.5])
    (row,) = compare.rows(tmp_path, "gemma/none/random-64/seed3")
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
    }


def test_seeds_are_averaged_within_a_cell_only(tmp_path):
    for seed, ndcg in enumerate((0.1, 0.3)):
        a_run(tmp_path, f"gemma/gemma/minirec-64/seed{seed}", ndcg, [seed + 1.0])
    a_run(tmp_path, "gemma/gemma/minirec-128/seed0", 0.9, [9.0])
    table = pd.DataFrame(
        [row for run in tmp_path.glob("*/*/*/*") for row in compare.rows(tmp_path, "/".join(run.parts[-4:]))]
    )
    cells = compare.over_seeds(table, "ndcg@10").set_index("budget")
    assert cells.loc["64", "mean"] == pytest.approx(0.2)
    assert cells.loc["64", "std"] == pytest.approx(0.1 * 2**0.5)
    assert cells.loc["64", "seconds"] == pytest.approx(1.5)
    assert cells.loc["128", "mean"] == pytest.approx(0.9)
    assert cells.loc["128", "seeds"] == 1
    said = compare.text(compare.over_seeds(table, "ndcg@10"), "ndcg@10", tmp_path)
    assert "0.2000 ± 0.1414" in said
