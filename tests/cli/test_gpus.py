"""Which GPU a job gets where several jobs run on a machine with several; processes stand for jobs, numbers for GPUs."""

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import pytest
import torch

from minirec.cli import gpus

JOB = """
import os, sys
from minirec.cli import gpus
print(gpus.claim({wanted}, {count}), flush=True)
os.execvp("cat", ["cat"])  # as `train` becomes its launcher
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@contextmanager
def job(wanted: int, count: int):
    """A job that runs as long as the block lasts; the GPUs that it got."""
    command = [sys.executable, "-c", JOB.format(wanted=wanted, count=count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield eval(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def test_jobs_at_the_same_time_get_different_gpus_and_a_killed_job_frees_its_own():
    with job(1, 2) as first:
        with job(1, 2) as second:
            assert (first, second) == ([0], [1])
            with job(1, 2) as third, job(1, 2) as fourth:
                assert [third, fourth] == [[0], [1]]  # one more on each
        with job(1, 2) as next_one:
            assert next_one == [1]


def test_a_job_of_several_processes_gets_as_many_gpus_that_nobody_uses():
    with job(1, 4) as one, job(2, 4) as two, job(2, 4) as three:
        assert (one, two) == ([0], [1, 2])
        assert three == [3, 0]


def test_a_job_sees_only_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    first, second = {}, {}
    gpus.choose(1, first)
    gpus.choose(1, second)
    assert [first, second] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]


@pytest.mark.parametrize(
    "given", [{"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": ""}, {"SLURM_JOB_ID": "7"}, {"RANK": "0"}]
)
def test_what_slurm_the_user_or_a_launcher_chose_stays(monkeypatch, given):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment = dict(given)
    gpus.choose(1, environment)
    assert environment == given


@pytest.mark.parametrize("count", [0, 1, 2])
def test_nothing_is_chosen_where_a_job_wants_all_gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    environment = {}
    gpus.choose(2, environment)
    assert environment == {}


@pytest.mark.parametrize(("stage", "chosen"), [("rollout", True), ("score", False)])
def test_stages_that_run_the_language_model_choose_a_gpu_before_they_begin(monkeypatch, tmp_path, stage, chosen):
    from minirec.cli import main

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = []
    monkeypatch.setattr(main, "_run", lambda *_: (seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")), (0, "done"))[1])
    needed = [
        word
        for flag in main.command(stage).flags
        if flag.required
        for word in (f"--{flag.name.replace('_', '-')}", "x")
    ]
    assert main.main([stage, *needed]) == 0
    assert seen == ["0" if chosen else None]
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
