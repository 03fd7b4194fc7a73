"""The workflow on a real Slurm: `make test-slurm`. Without root or packages the tests say why they skip."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster
import pytest
import yaml
from test_chain import CONFIG, RUN, shop, untimed

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[2]
TARGET = "results/shop/metrics.json"
LONGER = CONFIG.replace("train: &train {", "train: &train {epochs: 20, patience: 100, ")  # time to be interrupted
LONGER = LONGER.replace("size: 16}", "size: 16, epochs: 1}")
PROFILE = Path("workflow/profiles/slurm/config.yaml")
STEP = "runner(stage)(**given)"


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[Path]:
    """A cluster of our own, as long as these tests run; yields the folder of its logs."""
    try:
        with cluster.running() as logs:
            yield logs
    except cluster.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(autouse=True)
def _no_job_is_left(slurm):
    yield
    cluster.cancel_all()


def project(folder: Path, **changes: dict) -> Path:
    """A folder with data, the workflow and its profile; every rule asks for one thread, and for what `changes` say."""
    for part in ("src", "workflow", "config"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "environment.yml", folder)
    (folder / "shop.yaml").write_text(LONGER, encoding="utf-8")
    shop(folder / "data" / "shop")
    ask(folder, **changes)
    return folder


def ask(folder: Path, **changes: dict) -> None:
    """Write the profile of a project: every rule asks for one thread, or `threads`, and some for other resources."""
    profile = yaml.safe_load((ROOT / PROFILE).read_text(encoding="utf-8"))
    profile["set-threads"] = dict.fromkeys(profile["set-threads"], 1)
    for rule, more in changes.items():
        profile["set-threads"][rule] = more.pop("threads", 1)
        profile["set-resources"][rule] |= more
    (folder / PROFILE).write_text(yaml.safe_dump(profile), encoding="utf-8")


def pretend(folder: Path, code: str) -> None:
    """Let every stage of a project run this code instead; it finds `stage` and `given`."""
    program = folder / "src" / "minirec" / "cli" / "main.py"
    text = program.read_text(encoding="utf-8")
    assert STEP in text
    call = '__import__("runpy").run_path("stage.py", {"stage": stage, "given": given})'
    program.write_text(text.replace(STEP, call), encoding="utf-8")
    (folder / "stage.py").write_text(code, encoding="utf-8")


WRITE = """
for name in ("samples", "catalogue", "dropped"):
    given[name].write_text("written")
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start snakemake with the profile as it is, but that it looks at its jobs, which are short, more often."""
    command = [sys.executable, "-m", "snakemake", "--workflow-profile", "workflow/profiles/slurm", "--nocolor"]
    command += ["--slurm-init-seconds-before-status-checks", "2", "--configfile", "config/quickstart.yaml", "shop.yaml"]
    environment = os.environ | {"PYTHONPATH": str(folder / "src")}
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and output of a started snakemake."""
    said, _ = process.communicate()
    return process.returncode, said


def jobs(folder: Path, states: str = "all") -> list[dict[str, str]]:
    """Slurm's own record of a folder's jobs in some states, in order of submission."""
    columns = {"id": "JobID", "state": "State", "rule": "Comment", "start": "StartTime", "end": "EndTime"}
    columns |= {"gpus": "tres-per-job", "memory": "MinMemory", "folder": "WorkDir", "nodes": "NumNodes"}
    form = ",".join(f"{column}:300" for column in columns.values())
    lines = cluster.said("squeue", "--noheader", "--sort", "i", "--states", states, "--Format", form).splitlines()
    found = [dict(zip(columns, map(str.strip, re.findall("(.{300})", line)), strict=True)) for line in lines]
    for job in found:
        job["rule"] = re.sub("_wildcards_.*", "", job["rule"]).removeprefix("rule_")
    return [job for job in found if job["folder"] == str(folder)]


def await_that(holds: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until something holds; fails where snakemake ends first."""
    while not holds():
        assert process is None or process.poll() is None, finish(process)[1]
        time.sleep(0.3)


def running(folder: Path, rule: str) -> list[str]:
    """The ids of the running jobs of a rule."""
    return [job["id"] for job in jobs(folder, "running") if job["rule"] == rule]


def complaints(said: str, rule: str) -> list[str]:
    """What snakemake said of every failure of a rule, its logs included."""
    parts = re.split(r"(?=Error in rule \w+:\n    message: SLURM)", said)
    return [part for part in parts if part.startswith(f"Error in rule {rule}:\n    message: SLURM")]


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    """A project in which the whole workflow ran on Slurm, and Slurm's record of its jobs."""
    folder = project(tmp_path_factory.mktemp("slurm") / "undisturbed")
    status, said = finish(start(folder, "--", TARGET))
    assert status == 0, said
    return folder, jobs(folder)


def test_the_whole_workflow_runs_as_jobs_of_slurm(undisturbed):
    folder, ran = undisturbed
    metrics = json.loads((folder / TARGET).read_text(encoding="utf-8"))
    assert metrics["samples"] == {"train": 60, "valid": 20, "test": 20}
    once = "fetch_model prepare baselines embed_base evaluate_base measure_base train_proxy embed_proxy gather gradient"
    once += " score train evaluate measure summarise"
    twice = ("rollout", "select", "curriculum")  # two shards; the proxy has a selection of its own
    assert Counter(job["rule"] for job in ran) == dict.fromkeys(once.split(), 1) | dict.fromkeys(twice, 2)
    assert {job["state"] for job in ran} == {"COMPLETED"}


def test_the_shards_of_a_rollout_run_side_by_side(undisturbed):
    first, second = (job for job in undisturbed[1] if job["rule"] == "rollout")
    assert first["start"] < second["end"]
    assert second["start"] < first["end"]


def test_slurm_is_asked_for_gpus_by_the_rules_that_want_one_and_no_others(undisturbed):
    wanted = yaml.safe_load((ROOT / PROFILE).read_text(encoding="utf-8"))["set-resources"]
    with_gpu = {rule for rule, line in wanted.items() if line.get("gpu")}
    assert with_gpu
    for job in undisturbed[1]:
        assert job["gpus"] == ("gres:gpu:1" if job["rule"] in with_gpu else "N/A"), job


def test_a_job_that_runs_out_of_memory_is_tried_again_with_more(tmp_path):
    folder = project(tmp_path / "project", prepare={"mem_mb": "900 * attempt"})
    pretend(folder, "import time; hog = b'x' * 1_000_000_000; time.sleep(15)" + WRITE)
    status, said = finish(start(folder, "--", "results/shop/samples.parquet"))
    assert status == 0, said
    (complaint,) = complaints(said, "prepare")
    assert "exceeded memory limit" in complaint
    assert [(job["memory"], job["state"]) for job in jobs(folder)] == [("900M", "FAILED"), ("1800M", "COMPLETED")]


def test_a_timeout_and_a_cancelled_job_are_reported_by_name_with_the_end_of_their_logs(tmp_path):
    folder = project(tmp_path / "project", prepare={"runtime": 1})
    pretend(
        folder,
        """
import logging, time
for step in range(6000):
    logging.getLogger("minirec").info("%s is at step %d", stage, step)
    time.sleep(0.5)
""",
    )
    process = start(folder, "--retries", "0", "--", "results/shop/samples.parquet", "data/models/tiny")
    prepare, fetch = folder / "results" / "shop" / "logs" / "prepare.log", folder / "data/logs/models/tiny.log"

    def words(log: Path) -> list[str]:
        return re.findall(r".*is at step \d+", log.read_text(encoding="utf-8"))

    await_that(lambda: fetch.exists() and len(words(fetch)) > 3, process)
    subprocess.run(["scancel", *running(folder, "fetch_model")], check=True)
    status, said = finish(process)
    assert status != 0
    (timeout,), (cancelled,) = complaints(said, "prepare"), complaints(said, "fetch_model")
    assert "TIMEOUT" in timeout
    assert "DUE TO TIME LIMIT" in timeout
    assert words(prepare)[-1] in timeout
    assert "CANCELLED" in cancelled
    assert words(fetch)[-1] in cancelled


def test_more_gpus_than_there_are_fail_at_once_and_say_so(tmp_path):
    folder = project(tmp_path / "project", prepare={"gpu": cluster.GPUS + 1})
    status, said = finish(start(folder, "--", "results/shop/samples.parquet"))
    assert status != 0
    assert "Requested node configuration is not available" in complaints(said, "prepare")[0]
    assert all(job["start"] == job["end"] for job in jobs(folder))  # refused, never run


def test_a_job_with_all_gpus_of_a_node_starts_one_launcher_in_the_partition_it_names(tmp_path):
    folder = project(tmp_path / "project", prepare={"gpu": cluster.GPUS, "threads": 2, "slurm_partition": "gpu"})
    pretend(
        folder,
        """
import os, pathlib
with pathlib.Path("launched").open("a") as launched:
    print(*map(os.environ.get, ("SLURM_GPUS_ON_NODE", "SLURM_NTASKS", "SLURM_JOB_PARTITION")), file=launched)
"""
        + WRITE,
    )
    status, said = finish(start(folder, "--", "results/shop/samples.parquet"))
    assert status == 0, said
    assert (folder / "launched").read_text(encoding="utf-8").splitlines() == [f"{cluster.GPUS} 1 gpu"]


def test_two_nodes_train_to_the_bytes_of_two_processes_on_one(undisturbed, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(undisturbed[0], folder, symlinks=True)
    two_nodes = {"nodes": 2, "mpi": "srun", "tasks": 2, "tasks_per_gpu": 0, "gpu": 0, "gres": "gpu:1"}
    adapter = Path("results/shop/runs") / RUN / "adapter"
    weights = []
    for more in ({"gpu": 2, "processes": 2}, two_nodes | {"processes": 1, "slurm_partition": "pair"}):
        ask(folder, train=more)
        shutil.rmtree(folder / adapter)
        status, said = finish(start(folder, "--", str(adapter)))
        assert status == 0, said
        weights.append((folder / adapter / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert [job["nodes"] for job in jobs(folder)] == ["1", "2"]


def recovery() -> str:
    """The README's command that cancels what a dead snakemake left running."""
    return next(
        line.split("  #")[0]
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("squeue --me") and "scancel" in line
    )


def undone(done: Path, folder: Path) -> Path:
    """A copy of a project in which everything from the rollouts on is still to be done."""
    shutil.copytree(done, folder)
    top = folder / "results" / "shop"
    kept = ("proxy", "items.safetensors", "logs")
    signals = [path for path in (top / "signals" / "tiny" / "seed0").iterdir() if path.name not in kept]
    others = ("selections/tiny", "runs", "figures", "metrics.json", "summary.txt")  # not the proxy's own selection
    for path in [*signals, *(top / name for name in others)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def kill(folder: Path, moment: Callable[[], object], cancel: bool) -> None:
    """Start the workflow and kill snakemake with -9 when the moment has come, then unlock; its jobs may go on."""
    process = start(folder, "--", TARGET)
    await_that(moment, process)
    process.kill()
    finish(process)
    assert jobs(folder, "running")
    if cancel:
        subprocess.run(recovery(), shell=True, cwd=folder, check=True)
        await_that(lambda: not jobs(folder, "pending,running,completing"))
    assert finish(start(folder, "--unlock"))[0] == 0


def test_after_two_deaths_of_the_main_process_the_results_are_those_of_an_undisturbed_run(undisturbed, tmp_path):
    folder = undone(undisturbed[0], tmp_path / "project")
    kill(folder, lambda: len(running(folder, "rollout")) == 2, cancel=False)
    checkpoints = folder / "results" / "shop" / "runs" / RUN / "checkpoints"
    kill(folder, lambda: any(checkpoints.glob("checkpoint-*/items.safetensors")), cancel=True)
    log = checkpoints.with_name("logs") / "train.log"
    status, said = finish(start(folder, "--", TARGET))
    assert status == 0, said
    assert "going on from" in log.read_text(encoding="utf-8")
    expected, found = (
        {
            str(file.relative_to(top)): untimed(file.name, file.read_bytes())
            for file in sorted(top.rglob("*"))
            if file.is_file() and "logs" not in file.parts
        }
        for top in (undisturbed[0] / "results" / "shop", folder / "results" / "shop")
    )
    assert list(found) == list(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
