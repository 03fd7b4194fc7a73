"""What the profiles hand to the commands, and what a cluster is asked for, without a Slurm."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import ROOT, snakemake

from minirec.experiment.commands import command
from minirec.planning.jobs import STAGES

SCHEDULED = ("mem_mb", "runtime")  # what only a cluster is asked for


def profile(name: str) -> dict:
    return yaml.safe_load((ROOT / "workflow" / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))


def inheritance() -> dict[str, tuple[str, str | None]]:
    """Of every rule the one that it inherits from, and the stage it names itself."""
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "workflow" / "rules").glob("*.smk")]
    blocks = re.findall(r"^ *use rule (\w+) as (\w+) with:\n((?:(?! *use rule ).*\n)*)", "".join(texts), re.MULTILINE)
    found = {rule: (parent, re.search(r'job\(\s*"(\w+)"', body)) for parent, rule, body in blocks}
    return {rule: (parent, job and job[1]) for rule, (parent, job) in found.items()}


def stage_of(rule: str) -> str:
    """The stage that a rule runs."""
    parent, stage = inheritance()[rule]
    return stage or stage_of(parent)


def asked(folder: Path, attempt: int = 1, **changes: dict) -> dict[str, dict[str, Any]]:
    """Threads and resources of every rule as Snakemake reads the profile for Slurm, with changes of some rules."""
    for part in ("workflow", "config"):
        shutil.copytree(ROOT / part, folder / part, dirs_exist_ok=True)
    shutil.copy(ROOT / "environment.yml", folder)
    changed = profile("slurm")
    for rule, more in changes.items():
        changed["set-resources"][rule] |= more
    file = folder / "workflow" / "profiles" / "slurm" / "config.yaml"
    file.write_text(yaml.safe_dump(changed), encoding="utf-8")
    words = ["--workflow-profile", "workflow/profiles/slurm", "--attempt", str(attempt), "results/cds/metrics.json"]
    done = snakemake(folder, "-n", *words)
    assert done.returncode == 0, done.stdout
    found: dict[str, dict[str, Any]] = {}
    for block in re.split(r"^(?=rule \w+:$)", done.stdout, flags=re.MULTILINE)[1:]:
        rule, values = block[5:].partition(":")[0], re.findall(r"^    resources: (.*)$", block, re.MULTILINE)[0]
        pairs = [pair.split("=", 1) for pair in values.split(", ")]
        found[rule] = {name: int(value) if value.isdigit() else value for name, value in pairs}
    return found


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> dict[str, dict[str, Any]]:
    pytest.importorskip("snakemake_executor_plugin_slurm")
    return asked(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("name", ["default", "slurm"])
def test_every_line_of_a_profile_is_a_rule_and_names_resources_its_command_has_or_slurm_knows(name):
    given = profile(name)
    for rule, threads in given["set-threads"].items():
        assert rule in inheritance(), rule
        assert isinstance(threads, int), rule
        assert threads > 0, rule
    for rule, resources in given["set-resources"].items():
        settings = {setting for _, setting, _ in command(stage_of(rule)).settings()}
        assert set(resources) - {*SCHEDULED, "gpu"} <= settings, rule


@pytest.mark.parametrize("name", ["default", "slurm"])
def test_every_rule_that_runs_the_model_has_a_gpu_and_batch_tokens_and_a_plan(name):
    reading = {rule for rule in inheritance() if "passes" in command(stage_of(rule)).sections}
    given = profile(name)["set-resources"]
    for resource in ("gpu", "batch_tokens"):
        assert {rule for rule, resources in given.items() if resource in resources} == reading
    assert set(STAGES) == reading - {"gradient"}  # it runs the model only with gradient.space lora


def test_a_cluster_is_asked_in_units_of_slurm():
    given = profile("slurm")
    for rule, resources in {"default": given["default-resources"], **given["set-resources"]}.items():
        memory = re.fullmatch(r"(\d+) \* attempt", resources["mem_mb"])
        assert int(memory[1]) >= 600, f"{rule}: the step that Slurm starts takes 300 MB itself"
        assert isinstance(resources.get("runtime", 60), int), rule


def test_memory_grows_with_every_attempt_and_nothing_else_does(usual, tmp_path):
    later = asked(tmp_path, attempt=3)
    grows = ("mem_mb", "mem_mib", "mem")
    for rule in usual:
        assert later[rule]["mem_mb"] == 3 * usual[rule]["mem_mb"], rule
        first, third = ({k: v for k, v in all_of[rule].items() if k not in grows} for all_of in (usual, later))
        assert first == third
    assert usual["train"]["mem_mb"] == 48_000


def test_a_partition_in_the_profile_reaches_its_rule_alone(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    needs = asked(tmp_path, train={"slurm_partition": "a100"})
    assert [rule for rule, resources in needs.items() if "slurm_partition" in resources] == ["train"]
    assert needs["train"]["slurm_partition"] == "a100"


def test_the_profiles_differ_in_where_jobs_run_and_in_nothing_a_result_depends_on():
    slurm, default = profile("slurm"), profile("default")
    assert default.pop("resources") == ["gpu=1"]
    assert "resources" not in slurm  # a cap here would keep GPUs of the cluster idle
    names = []
    for given in (slurm, default):
        resources = given.pop("set-resources").items()
        names.append({rule: own for rule, line in resources if (own := line.keys() - set(SCHEDULED))})
    assert names[0] == names[1]
    assert default.items() <= slurm.items()  # threads among them


def test_the_profile_asks_squeue_and_before_slurm_has_forgotten_a_job():
    assert profile("slurm")["slurm-status-command"] == "squeue"
    assert 3 * profile("slurm")["slurm-init-seconds-before-status-checks"] <= 300  # MinJobAge where nobody set it


def submission(resources: dict[str, Any], threads: int = 8) -> list[str]:
    """The words of the sbatch line for a job with these resources."""
    submit = pytest.importorskip("snakemake_executor_plugin_slurm.submit_string")
    gres = pytest.importorskip("snakemake_executor_plugin_slurm.utils")

    class Resources(dict):
        __getattr__ = dict.__getitem__

    job = SimpleNamespace(resources=Resources(resources), threads=threads)
    names = {"run_uuid": "u", "slurm_logfile": "l", "comment_str": "c", "account": "", "partition": "", "workdir": "."}
    return (submit.get_submit_command(job, names) + gres.set_gres_string(job)).split()


def test_a_job_asks_slurm_for_what_the_profile_says(usual):
    words = submission(usual["train"])
    assert {"--gpus=1", "--cpus-per-task=8"} <= set(words)
    assert words[words.index("--mem") + 1] == "48000"
    assert words[words.index("-t") + 1] == "2880"
    assert not [word for word in submission(usual["score"]) if word.startswith(("--gpus", "--gres"))]


def advised(start: str) -> dict[str, Any]:
    """What a comment of the profile advises for train."""
    text = (ROOT / "workflow" / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^# {start}.*train: (\{{.*\}})$", text, re.MULTILINE)
    return yaml.safe_load(line.replace("…, ", ""))


def test_a_job_with_four_gpus_is_one_task_on_one_node(usual):
    words = submission(usual["train"] | advised("Several GPUs"))
    assert {"--nodes=1", "--gpus=4"} <= set(words)
    assert not [word for word in words if word.startswith("--ntasks")]


def test_a_job_on_two_nodes_is_one_task_with_all_its_gpus_on_each(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    train = asked(tmp_path, train=advised("Several nodes"))["train"]
    words = submission(train)
    assert {"--nodes=2", "--ntasks=2", "--cpus-per-task=8", "--gres=gpu:4"} <= set(words)
    assert not [word for word in words if word.startswith(("--gpus", "--ntasks-per"))]
    assert (train["processes"], train["nodes"]) == (4, 2)
    assert "mpi" in train  # without, the plugin starts the job within a step of one task, on one node


def test_snakemake_takes_every_option_of_the_profile(usual):
    assert usual["train"]["gpu"] == 1
