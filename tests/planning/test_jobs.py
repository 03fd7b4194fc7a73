"""Which jobs a plan counts, and that a job that has ended tells the work that was planned for it."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import PASSES, ROOT

from minirec.experiment import config, sections
from minirec.experiment.paths import compared_runs, main_runs
from minirec.planning.jobs import Job, PlannedWork, jobs, work_done
from minirec.planning.planned_jobs import planned_jobs

GRID = {
    "main": {"budget": 8, "seeds": [0, 1]},
    "rollout": {"shards": 2},
    "select": {"shards": 2},
    "variants": {
        "cool": {"sampling": {"top_k": 9}},
        "sharp": {"score": {"mu": 0.4}},
        "ours": {"method": "random"},
        "by_heads": {"method": "learnable", "proxy": {"kind": "heads", "head": "shared"}},
    },
    "compare": {
        "models": ["gemma", "qwen"],
        "selectors": ["gemma"],
        "methods": [
            "cool",
            "sharp",
            "ours",
            "by_heads",
            "full",
            "hardest",
            "diversity",
            "grand",
            "coverage",
            "dealrec",
        ],
        "budgets": [4, 8],
        "seeds": [0],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "runs_of", "last", "more"),
    [
        ("metrics.json", main_runs, "summarise", {}),
        ("comparison.parquet", compared_runs, "compare", {}),
        ("comparison.parquet", compared_runs, "compare", {"proxy": {"seeds": "shared", "seed": 3}}),
    ],
)
def test_the_jobs_are_those_that_snakemake_plans(tmp_path, monkeypatch, target, runs_of, last, more):
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(GRID | more))
    monkeypatch.chdir(ROOT)
    found = planned_jobs("--forceall", "--configfile", str(file), "--", f"results/cds/{target}")
    expected = {Job.of(one.log.stem, one.wildcards) for one in found if one.log.is_relative_to("results")}
    settings = config.load("config/config.yaml", file)
    counted = jobs(settings, runs_of(settings), last)
    assert len(counted) == len(set(counted))
    assert set(counted) ^ expected == {Job("prepare")}  # has run before there is a plan


def test_a_plan_has_the_small_recommender_of_the_methods_that_read_it_once(defaults):
    for method, count in (("dealrec", 1), ("minirec", 0)):
        main = defaults.main.model_copy(update={"method": method, "seeds": [0, 1]})
        settings = defaults.model_copy(update={"main": main})
        assert jobs(settings, main_runs(settings), "summarise").count(Job("influence")) == count


def given(**more) -> dict:
    return {"adapter": None, "item_table": None, "frozen_states": None, "shard": None, "passes": PASSES} | more


@pytest.fixture
def planned(judged, defaults, tmp_path, monkeypatch) -> PlannedWork:
    """What is planned for the data set of `judged`, whose model is called gemma, with two shards."""
    monkeypatch.chdir(tmp_path)
    Path("data/models").mkdir(parents=True)
    Path("data/models/gemma").symlink_to(judged["model"])
    for name in ("samples", "catalogue"):
        Path(f"{name}.parquet").symlink_to(judged[name])
    return PlannedWork(defaults.model_copy(update={"rollout": sections.Rollout(shards=2)}), Path())


def test_a_stage_that_has_ended_did_the_work_that_was_planned(planned, judged, defaults, tmp_path):
    import pyarrow as pa

    from minirec.storage import tables
    from minirec.storage.artefact import Provenance

    files = {name: judged[name] for name in ("samples", "catalogue", "model")}
    same = given(policy=defaults.policy, sampling=defaults.sampling, embed=defaults.embed, **files)
    curriculum = {"position": pa.array(range(5), pa.int32()), "sample_id": pa.array(range(5), pa.int64())}
    curriculum |= {"group": pa.array([0] * 5, pa.int32()), "mean_reward": pa.nulls(5, pa.float64())}
    tables.write("curriculum", pa.table(curriculum), tmp_path / "curriculum.parquet", Provenance("curriculum"))
    training = {name: value for name, value in same.items() if name != "embed"}
    training |= {"train": defaults.train, "curriculum": tmp_path / "curriculum.parquet"}
    for job, stage, more in (
        (Job("embed_base", "gemma"), "embed", {}),
        (Job("embed_proxy", signal_set="gemma"), "embed", {"adapter": judged["adapter"]}),
        (Job("evaluate_base", "gemma"), "evaluate", {"item_table": judged["item_table"]}),
        (Job("evaluate", "gemma"), "evaluate", {"adapter": judged["adapter"]}),
        (Job("train", "gemma", method="random", budget="5"), "train", training),
        (Job("rollout", signal_set="gemma", shard="1"), "rollout", {"rollout": planned.config.rollout, "shard": 1}),
        (Job("embed_users", "gemma"), "embed_users", {}),
    ):
        expected = planned.work(job)
        assert expected.flop > 0, job
        used = more if stage == "train" else same | more
        assert work_done(stage, used).flop == pytest.approx(expected.flop), job


def test_stages_without_a_language_model_tell_theirs_from_their_files(planned, judged, defaults, tmp_path):
    from minirec.storage import tensors
    from minirec.storage.artefact import Provenance

    width, n = 32, 22
    arrays = {"hvp": np.zeros((n, width), np.float32), "sample_id": np.arange(n)}
    tensors.write(arrays, tmp_path / "g.safetensors", Provenance("gradient"))
    tensors.write({"embedding": arrays["hvp"]}, tmp_path / "z.safetensors", Provenance("gradient"))
    tensors.write({"embedding": arrays["hvp"]}, tmp_path / "users.safetensors", Provenance("embed_users"))
    heads = {"train": defaults.proxy, "crossfit": defaults.crossfit, "users": tmp_path / "users.safetensors"}
    chosen = {"select": defaults.select, "budget": "8", "embeddings": tmp_path / "z.safetensors", "scores": None}
    files = {name: judged[name] for name in ("samples", "catalogue")}
    for job, stage, used in (
        (Job("crossfit", signal_set="gemma"), "crossfit", given(item_table=judged["item_table"], **heads)),
        (Job("score", signal_set="gemma"), "score", {"gradients": tmp_path / "g.safetensors"}),
        (Job("select", selector="gemma", method="minirec", budget="8"), "select", given(**chosen)),
        (Job("baselines"), "baselines", files),
        (Job("influence"), "influence", files),
        (Job("measure", "gemma"), "measure", files | {"measure": defaults.measure}),
    ):
        assert work_done(stage, used).flop == planned.work(job).flop > 0, job


def test_work_grows_with_the_configuration_of_a_variant(planned):
    variants = {"long": config.Variant(sampling={"max_new_tokens": 12})}
    planned.config = planned.config.model_copy(update={"variants": variants})
    usual, longer = (planned.work(Job("rollout", signal_set=name)).written for name in ("gemma", "gemma@long"))
    assert longer == 2 * usual


def test_the_log_of_a_job_says_its_startup_and_its_work(tmp_path, monkeypatch):
    from minirec.cli import main

    words = ["baselines", "--samples", "s", "--catalogue", "c", "--baselines", "b", "--log", str(tmp_path / "b.log")]
    monkeypatch.setattr("minirec.stages.baselines.run", lambda **given: None)
    monkeypatch.setattr("minirec.planning.jobs.work_done", lambda stage, given: 1 / 0)
    assert main.main(words) == 0  # that the work is not known is no failure
    end = json.loads((tmp_path / "b.log").read_text().splitlines()[-1])
    assert (end["reason"], end["flop"]) == ("done", 0)
    assert 0 <= end["startup_seconds"] <= end["seconds"]
