"""What a cluster is asked for: the profile for Slurm and workflow/resources.yaml, without a Slurm."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT, snakemake

from minirec.cli import main
from minirec.experiment import rules

TABLE = ROOT / "workflow" / "resources.yaml"


def profile(name: str) -> dict:
    return yaml.safe_load((ROOT / "workflow" / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def table() -> dict[str, dict]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))


def test_every_line_of_the_resources_is_a_stage_and_asks_in_units_of_slurm(table):
    assert set(table) - {"default"} <= set(main.STAGES)
    for stage, line in table.items():
        assert set(line) - {"gpu", "nodes", "processes"} == {"threads", "mem_mb", "runtime"}, stage
        assert all(isinstance(value, int) and value > 0 for value in line.values()), stage
        assert line["mem_mb"] >= 600, f"{stage}: the step that Slurm starts takes 300 MB itself"


def test_memory_grows_with_every_attempt_and_nothing_else_does(table):
    asked = rules.resources(TABLE)("train")
    assert [asked["mem_mb"](None, attempt) for attempt in (1, 2, 3)] == [
        attempt * table["train"]["mem_mb"] for attempt in (1, 2, 3)
    ]
    assert (asked["runtime"], asked["gpu"]) == (table["train"]["runtime"], table["train"]["gpu"])


def test_a_partition_in_the_resources_reaches_its_stage_alone(tmp_path, table):
    changed = table | {"train": table["train"] | {"slurm_partition": "a100"}}
    (tmp_path / "resources.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    needs = rules.resources(tmp_path / "resources.yaml")
    assert needs("train")["slurm_partition"] == "a100"
    assert "slurm_partition" not in needs("evaluate")


def test_the_profiles_differ_in_where_jobs_run_and_in_nothing_a_result_depends_on():
    slurm, default = profile("slurm"), profile("default")
    assert default.pop("resources") == ["gpu=1"]
    assert "resources" not in slurm  # a cap here would keep GPUs of the cluster idle
    assert default.items() <= slurm.items()


def test_the_profile_asks_squeue_and_before_slurm_has_forgotten_a_job():
    assert profile("slurm")["slurm-status-command"] == "squeue"
    assert 3 * profile("slurm")["slurm-init-seconds-before-status-checks"] <= 300  # MinJobAge where nobody set it


def submission(stage: str, table: Path = TABLE, **more: object) -> list[str]:
    """The words of the sbatch line for a job of a stage, first attempt."""
    submit = pytest.importorskip("snakemake_executor_plugin_slurm.submit_string")
    gres = pytest.importorskip("snakemake_executor_plugin_slurm.utils")

    class Resources(dict):
        __getattr__ = dict.__getitem__

    asked = Resources(rules.resources(table)(stage) | more)
    asked["mem_mb"] = asked["mem_mb"](None, 1)
    job = SimpleNamespace(resources=asked, threads=rules.threads(table)(stage))
    names = {"run_uuid": "u", "slurm_logfile": "l", "comment_str": "c", "account": "", "partition": "", "workdir": "."}
    return (submit.get_submit_command(job, names) + gres.set_gres_string(job)).split()


def test_a_job_asks_slurm_for_what_the_resources_say():
    words = submission("train")
    assert {"--gpus=1", "--cpus-per-task=8"} <= set(words)
    assert words[words.index("--mem") + 1] == "48000"
    assert words[words.index("-t") + 1] == "2880"
    assert not [word for word in submission("score") if word.startswith(("--gpus", "--gres"))]


def test_a_job_with_four_gpus_is_one_task_and_not_four():
    assert not [word for word in submission("train", gpu=4) if word.startswith("--ntasks")]


def test_a_job_on_two_nodes_is_one_task_with_all_its_gpus_on_each(tmp_path, table):
    changed = table | {"train": table["train"] | {"nodes": 2, "gpu": 4}}
    (tmp_path / "resources.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    words = submission("train", tmp_path / "resources.yaml")
    assert {"--nodes=2", "--ntasks=2", "--cpus-per-task=8", "--gres=gpu:4"} <= set(words)
    assert not [word for word in words if word.startswith(("--gpus", "--ntasks-per"))]
    asked = rules.resources(tmp_path / "resources.yaml")("train")
    assert (asked["processes"], asked["nodes"]) == (4, 2)
    assert "mpi" in asked  # without, the plugin starts the job within a step of one task, on one node


def test_snakemake_takes_every_option_of_the_profile(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    for part in ("workflow", "config"):
        shutil.copytree(ROOT / part, tmp_path / part)
    shutil.copy(ROOT / "environment.yml", tmp_path)
    done = snakemake(tmp_path, "-n", "--workflow-profile", "workflow/profiles/slurm", "results/cds/metrics.json")
    assert done.returncode == 0, done.stdout
    assert "gpu=1" in done.stdout
