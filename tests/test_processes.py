"""Several processes train like one (METHOD 3), launched as on GPUs and nodes, here on the CPU with gloo."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file
from test_train import policy, project  # noqa: F401 (a fixture)

from minirec import config, launch, schemas
from minirec.__main__ import main
from minirec.errors import InputError


@pytest.fixture
def command(request, project, tiny_model, defaults, tmp_path):  # noqa: F811
    """A command line of train, and the folder it writes to."""
    changes = {
        "batch_prompts": 5,  # of 11 samples: the processes' shares differ, and the last batch has one prompt
        "epochs": 2,
        "evaluations_per_epoch": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "extra_negatives": 4,
        "item_refresh_steps": 2,
    }
    sampling = {"max_new_tokens": 3, "completions": 2}
    whole = config.load("config/config.yaml").model_dump(mode="json")
    whole["policy"] |= policy(defaults).model_dump()
    whole["train"] |= changes
    whole["sampling"] |= sampling

    def made(out, processes, *words, **more):
        whole["train"] |= more
        flags = shlex.split(config.flags(config.validate(yaml.safe_load(yaml.safe_dump(whole))), "train"))
        files = {**project, "model": tiny_model, "history": out / "history.parquet", "out": out / "adapter"}
        paths = [word for name, path in files.items() for word in (f"--{name}", str(path))]
        return [
            "train",
            *flags,
            *paths,
            "--seed",
            "0",
            "--log",
            str(out / "log"),
            "--processes",
            str(processes),
            *words,
        ]

    return made


def train(arguments, **environment):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", "minirec", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_two_processes_give_the_weights_and_the_history_of_one(command, tmp_path):
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = train(command(out, processes))
        assert done.returncode == 0, done.stderr
        weights = load_file(out / "adapter" / "adapter_model.safetensors")
        found.append((weights, schemas.read("history", out / "history.parquet").to_pydict()))
        assert not (out / "checkpoints").exists()
        assert (out / "log").read_text().count('"event": "end"') == 1
    (one, history), (two, again) = found
    assert any("lora_B" in name and tensor.abs().max() > 1e-3 for name, tensor in one.items())
    assert all((one[name] - two[name]).abs().max() < 1e-5 for name in one)
    assert history["sample_ids"] == again["sample_ids"]
    for name in ("loss", "token_loss", "item_loss", "reward", "reward_std", "gradient_norm"):
        assert again[name] == pytest.approx(history[name], abs=1e-5, rel=1e-4)


SRUN = """#!/bin/bash
# Runs every task on this machine.
while [[ $1 == --* ]]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; --nodes=*) nodes=${1#*=} ;; esac
    shift
done
export SLURM_STEP_NUM_NODES=$nodes SLURM_STEP_NUM_TASKS=$tasks SLURM_STEP_NODELIST="here[1-$nodes]"
for ((task = 0; task < tasks; task++)); do
    echo "$task" >> "$(dirname "$0")/started"
    SLURM_PROCID=$task "$@" &
done
for ((task = 0; task < tasks; task++)); do wait -n || exit; done
"""
SCONTROL = """#!/bin/sh
test "$*" = "show hostnames here[1-2]" && printf 'localhost\\nlocalhost\\n'
"""


@pytest.mark.slow
def test_a_launcher_on_each_of_two_nodes_gives_the_weights_of_one_process(command, tmp_path):
    slurm = tmp_path / "slurm"
    slurm.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (slurm / name).write_text(text)
        (slurm / name).chmod(0o755)
    done = train(command(tmp_path / "one", 1))
    assert done.returncode == 0, done.stderr
    job = {"SLURM_JOB_ID": str(os.getpid()), "PATH": f"{slurm}:{os.environ['PATH']}"}
    done = train(command(tmp_path / "two", 1, "--nodes", "2"), **job)
    assert done.returncode == 0, done.stderr
    assert (slurm / "started").read_text().split() == ["0", "1"]
    one, two = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert all((one[name] - two[name]).abs().max() < 1e-5 for name in one)


def test_several_nodes_need_slurm_which_starts_a_task_on_each():
    with pytest.raises(InputError, match="--nodes is 2, but this is no Slurm job"):
        launch.command(["train"], 4, 2, {})
    words = launch.command(["train"], 4, 2, {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_NODES": "1"})
    assert words[0] == "srun"
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} <= set(words)


def test_every_node_starts_its_own_processes_and_all_know_where_to_meet(monkeypatch):
    step = {"SLURM_JOB_ID": "30007", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2"}
    step |= {"SLURM_STEP_NODELIST": "gpu[03,07]", "OMP_NUM_THREADS": "8"}
    monkeypatch.setattr(launch, "_first_host", {"gpu[03,07]": "gpu03"}.get)
    for rank in ("0", "1"):
        words = launch.command(["train", "--seed", "0"], 4, 2, step | {"SLURM_PROCID": rank})
        understood = launch_command_parser().parse_args(words[words.index("accelerate.commands.launch") + 1 :])
        assert (understood.num_processes, understood.num_machines, understood.machine_rank) == (8, 2, int(rank))
        assert (understood.main_process_ip, understood.main_process_port) == ("gpu03", 20_007)
        assert understood.num_cpu_threads_per_process == 2
        assert understood.module
        assert [understood.training_script, *understood.training_script_args] == ["minirec", "train", "--seed", "0"]


def test_what_a_launcher_started_starts_no_other():
    assert launch.command(["train"], 1, 1, {}) is None
    assert launch.command(["train"], 4, 2, {"RANK": "5"}) is None


@pytest.mark.slow
def test_two_processes_go_on_from_the_last_whole_checkpoint_also_where_one_has_no_items(command, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("minirec.train.schemas.write", lambda *_: 1 / 0)  # after the adapter, before the end
        assert main(command(tmp_path, 1, extra_negatives=0)) == 70
    adapter = tmp_path / "adapter" / "adapter_model.safetensors"
    one = load_file(adapter)
    shutil.rmtree(adapter.parent)
    newest = tmp_path / "checkpoints" / "checkpoint-6"
    (newest / "adapter_model.safetensors").unlink()
    done = train(command(tmp_path, 2, extra_negatives=0))
    assert done.returncode == 0, done.stderr
    assert "checkpoint-6 is left out" in done.stderr
    two = load_file(adapter)
    assert all((one[name] - two[name]).abs().max() < 1e-5 for name in one)
