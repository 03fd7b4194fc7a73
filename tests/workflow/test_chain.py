"""The whole workflow for real: every stage, a tiny model, data shaped like those of a shop."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, snakemake
from test_workflow import commands

from minirec.cli import main
from minirec.data import splits
from minirec.experiment import config, paths
from minirec.experiment.job_logs import costs_of
from minirec.storage import tables, tensors

pytestmark = pytest.mark.slow
CONFIG = """
datasets: {shop: {source: own, filter: {core: 2, title: true}}}
models: {tiny: {source: tiny, dataset: shop, hidden_size: 32, layers: 2, vocabulary: 500}}
main: {model: tiny, selector: tiny, method: minirec, budget: 20, seeds: [0]}
policy: {lora_layers: 1, whiten_dim: 16, max_item_tokens: 32}
prepare: {max_train: 60, max_valid: 20, max_test: 20}
rollout: {shards: 2}
train: &train {batch_prompts: 8, extra_negatives: 8, learning_rate: 0.001}
proxy: {<<: *train, size: 16}
sasrec: {width: 8, epochs: 2}
measure: {bootstrap: 100}
"""
RUN = "tiny/tiny/minirec-20/seed0"


def untimed(name: str, content: bytes) -> object:
    """What a result of this name says, but for the times it recorded."""
    if name == "history.parquet":
        table = pq.read_table(io.BytesIO(content))
        return table.drop_columns([column for column in table.column_names if "seconds" in column])
    if name == "metrics.json" and "cost" in (found := json.loads(content)):
        return found | {
            "cost": sorted(found["cost"]),
            "provenance": found["provenance"] | {"digest": "covers the times"},
        }
    if name == "summary.txt":
        return re.sub(rb"^  seconds by rule: .*?(?=^  files: )", b"", content, flags=re.MULTILINE | re.DOTALL)
    return content


def shop(folder: Path) -> None:
    """Interactions of 60 users with 80 items: skewed popularity, equal times, missing ratings, odd titles."""
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, 81)
    rows = []
    for user in range(60):
        count = int(rng.integers(1, 12))
        start = 1_600_000_000_000 + int(rng.integers(0, 1_000)) * 86_400_000
        for item in rng.choice(80, count, replace=False, p=weight / weight.sum()):
            rating = None if rng.random() < 0.2 else float(rng.integers(1, 6))
            rows.append((f"u{user}", f"i{item}", start + int(rng.integers(0, 5)) * 86_400_000, rating))
    odd = ["Kind of Blue <answer>", "<|im_end|> out", "日本の音楽", "  ", "a" * 900, "🎷", "10\n20", "مرحبا"]
    titles = [odd[i] if i < len(odd) else f"Record {i} of {['jazz', 'rock', 'folk'][i % 3]}" for i in range(80)]
    folder.mkdir(parents=True)
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    pq.write_table(pa.table(columns, ["user_id", "item_id", "timestamp", "rating"]), folder / "interactions.parquet")
    pq.write_table(pa.table({"item_id": [f"i{i}" for i in range(80)], "title": titles}), folder / "items.parquet")


def run(folder: Path, *arguments: str) -> str:
    words = ["--cores", "2", "--resources", "gpu=2", "--configfile", "config/quickstart.yaml", "shop.yaml"]
    done = snakemake(folder, *words, *arguments)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> tuple[Path, str]:
    """A folder in which the workflow has run, and what it said."""
    folder = tmp_path_factory.mktemp("chain")
    for part in ("workflow", "config"):
        shutil.copytree(ROOT / part, folder / part)
    shutil.copy(ROOT / "environment.yml", folder)
    (folder / "shop.yaml").write_text(CONFIG, encoding="utf-8")
    shop(folder / "data" / "shop")
    return folder, run(folder, "--", "results/shop/metrics.json")


def test_every_stage_leaves_its_artefact_and_the_terminal_the_summary(project):
    folder, said = project
    top = folder / "results" / "shop"
    assert "before RL" in said
    assert "after RL" in said
    assert "by Holm" in said
    curriculum = tables.read("curriculum", top / "selections" / "tiny" / "minirec-20" / "seed0" / "curriculum.parquet")
    history = tables.read("history", top / "runs" / RUN / "history.parquet")
    trained = [sample for step in history.sort_by("step")["sample_ids"].to_pylist() for sample in step]
    assert trained == curriculum.sort_by("position")["sample_id"].to_pylist()
    assert tables.read("rollouts", top / "signals" / "tiny" / "seed0" / "rollouts.parquet").num_rows == 60 * 4
    assert tensors.read(top / "signals" / "tiny" / "seed0" / "hidden.safetensors", "hidden")["hidden"].shape == (
        60,
        4,
        32,
    )
    metrics = json.loads((top / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["samples"] == {"train": 60, "valid": 20, "test": 20}
    jobs = {
        "prepare",
        "base/tiny/embed_base",
        "signals/tiny/seed0/proxy/train_proxy",
        "signals/tiny/seed0/shards/1/rollout",
    }
    jobs |= {f"runs/{RUN}/{rule}" for rule in ("train", "evaluate", "measure")}
    logs = {str(Path(job).parent / "logs" / f"{Path(job).name}.log") for job in jobs}
    assert set(metrics["cost"]) >= logs
    for file in (f"runs/{RUN}/metrics.json", "metrics.json"):
        found = json.loads((top / file).read_text(encoding="utf-8"))
        assert set(found["baselines"]) == {"popularity", "tfidf_last", "tfidf_history", "transitions", "sasrec"}, file
        assert set(found) >= {"before", "metrics_without_reasoning", "improvement", "breakdown"}, file
        assert set(found["paired_tests"]) == set(found["baselines"]), file
    assert sorted(path.name for path in (top / "figures").glob("*.png")) == [
        "curriculum.png",
        "learning.png",
        "result.png",
        "rewards.png",
        "scores.png",
    ]
    assert not list(folder.rglob("*.part"))
    assert not list(folder.rglob("checkpoints"))


def test_a_second_run_has_nothing_to_do(project):
    folder, _ = project
    before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*") if path.is_file()}
    assert "Nothing to be done" in run(folder, "--", "results/shop/metrics.json")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def jobs_of_selection(folder: Path, method: str, *files: str) -> list[str]:
    """The jobs of a selection whose costs are known; there is a log for each pattern."""
    settings = config.load(*(folder / name for name in (*files, "shop.yaml")))
    logs = [log.format(seed=0, budget=20) for log in paths.selection_logs(settings, "tiny", method)]
    known = costs_of(folder / "results/shop", logs)
    assert known is not None
    return [Path(log).stem for log in known]


def test_the_costs_of_all_jobs_of_a_selection_are_known(project):
    folder, _ = project
    found = jobs_of_selection(folder, "minirec", "config/config.yaml")
    chosen = ["select", "select", "curriculum", "curriculum"]  # of the proxy's samples and the run's
    of_policy = ["train_proxy", "embed_proxy", "rollout", "rollout", "gather", "gradient", "score", *chosen]
    assert sorted(found) == sorted(of_policy)


def test_heads_reward_every_sample_in_place_of_a_policy(project):
    folder, _ = project
    curriculum = "results/shop/selections/tiny/learnable-20/seed0/curriculum.parquet"
    words = ["--cores", "2", "--configfile", "config/quickstart.yaml", "shop.yaml", "--", curriculum]
    done = snakemake(folder, *words)
    assert done.returncode == 0, done.stdout
    assert sorted(set(re.findall(r"\(Rule: (\w+)\)", done.stdout))) == [
        "crossfit",
        "curriculum",
        "embed_users",
        "select",
    ]
    of_heads = ["embed_users", "crossfit", "select", "curriculum"]
    assert jobs_of_selection(folder, "learnable", "config/config.yaml", "config/quickstart.yaml") == of_heads
    rollouts = tables.read("rollouts", folder / "results/shop/signals/tiny@heads/seed0/rollouts.parquet")
    assert rollouts.num_rows == len(splits.sample_ids(folder / "results/shop/samples.parquet", "train"))
    rewards = dict(zip(*(rollouts[name].to_pylist() for name in ("sample_id", "reward")), strict=True))
    order = tables.read("curriculum", folder / curriculum).to_pydict()
    assert [rewards[sample] for sample in order["sample_id"]] == pytest.approx(order["mean_reward"])


@pytest.fixture
def two_threads():
    """As many as Snakemake gives the jobs of `run`: the bits of a sum depend on it."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_the_same_seed_gives_the_same_bytes_in_another_folder_and_in_one_process(project, two_threads, monkeypatch):
    folder, _ = project
    planned = run(folder, "-n", "-p", "--config", "results=again", "--", f"again/shop/runs/{RUN}/metrics.json")
    monkeypatch.chdir(folder)
    for line in commands(planned):
        assert main.main(shlex.split(line)) == 0, line
    signals, selection = "signals/tiny/seed0", "selections/tiny/minirec-20/seed0"
    for name in (
        "samples.parquet",
        "catalogue.parquet",
        f"{signals}/items.safetensors",
        f"{signals}/rollouts.parquet",
        f"{signals}/hidden.safetensors",
        f"{signals}/gradients.safetensors",
        f"{signals}/scores.parquet",
        f"{selection}/selection.parquet",
        f"{selection}/curriculum.parquet",
        f"runs/{RUN}/adapter/adapter_model.safetensors",
        f"runs/{RUN}/ranks.parquet",
        f"runs/{RUN}/metrics.json",
    ):
        first, second = (folder / top / "shop" / name for top in ("results", "again"))
        assert first.read_bytes() == second.read_bytes(), name


def test_status_says_what_is_done_and_what_a_change_makes_stale(project):
    folder, _ = project
    (folder / "mu.yaml").write_text("score: {mu: 0.4}\n", encoding="utf-8")
    told = {}
    for name, more in (("done", []), ("stale", ["mu.yaml"])):
        command = [sys.executable, "-m", "minirec", "status", "results/shop", "--configfile", "config/quickstart.yaml"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        told[name] = subprocess.run(
            [*command, "shop.yaml", *more], cwd=folder, env=environment, text=True, capture_output=True, check=True
        ).stdout
    assert "nothing is left to do" in told["done"]
    assert "left: 7 jobs, about" in told["stale"]  # score select curriculum train evaluate measure summarise
    assert "stale score: Params have changed" in told["stale"]
