"""Several processes train like one (METHOD 3), launched as on GPUs and nodes, here on the CPU with gloo."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import stage_forks
import torch
from accelerate.commands.launch import launch_command_parser
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.distributed.tensor import DTensor
from training_runs import policy, trained
from transformers import LlamaConfig, LlamaForCausalLM

from minirec.cli import launch
from minirec.cli.main import main
from minirec.errors import InputError
from minirec.experiment import commands, config
from minirec.model.distributed import all_reduce_sum, any_process, ignored_by_ddp, same_number, shard
from minirec.model.items import FrozenItemStates
from minirec.storage import tables
from minirec.storage.artefact import Provenance

SHARDED = ["--shard-layers", "true"]


@pytest.fixture
def command(project, tiny_model, defaults, tmp_path):
    """A command line of train, and the folder it writes to."""
    changes = {
        "batch_prompts": 5,  # of 11 samples: the processes' shares differ, and the last batch has one prompt
        "epochs": 2,
        "evaluation_steps": 3,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "extra_negatives": 4,
        "item_refresh_steps": 2,
        "head": "separate",
    }
    sampling = {"max_new_tokens": 3, "completions": 2}
    whole = config.load("config/config.yaml").model_dump(mode="json")
    whole["policy"] |= policy(defaults).model_dump(mode="json")
    whole["train"] |= changes
    whole["sampling"] |= sampling

    def made(out, processes, *words, all_layers=False, **more):
        whole["train"] |= more
        whole["policy"] |= {"lora_layers": None} if all_layers else {}
        flags = shlex.split(" ".join(commands.flags(config.validate(whole), "train")))
        files = {**project, "model": tiny_model, "history": out / "history.parquet", "adapter": out / "adapter"}
        if all_layers:
            files["frozen_states"] = tmp_path / "frozen_states.safetensors"
            FrozenItemStates.write(None, files["frozen_states"], Provenance("embed"))
        paths = [word for name, path in files.items() for word in (commands.flag(name), str(path))]
        more_words = ["--seed", "0", "--log", str(out / "log"), "--processes", str(processes), *words]
        return ["train", *flags, *paths, *more_words]

    return made


def train(arguments, **environment):
    """The command in a process of its own, which launches those that train."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", "minirec", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def side_by_side(words, first=""):
    """Exit status and words of two processes that train together, as a launcher starts them, after the code `first`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    both = meeting | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [both | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    running = [stage_forks.start(words, Path.cwd(), environment, first) for environment in ranks]
    return [process.end() for process in running]


SLOW_IN_ONE = """
import os, time

if os.environ.get("RANK") == "1":
    from minirec.training.trainer import RecommenderTrainer

    whole = RecommenderTrainer._load_best_model
    RecommenderTrainer._load_best_model = lambda self: time.sleep(3) or whole(self)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("all_layers", "resources", "more", "first"),
    [
        (False, [], {}, SLOW_IN_ONE),
        (False, SHARDED, {"updates_per_rollout": 2, "scheduler": "linear", "warmup_steps": 3, "max_valid": 2}, ""),
        (True, [*SHARDED, "--micro-batch-prompts", "1"], {}, ""),
    ],
    ids=["whole, one reads the best checkpoint late", "sharded, two updates", "sharded, all layers trained"],
)
def test_two_processes_give_the_weights_and_the_history_of_one(command, tmp_path, all_layers, resources, more, first):
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        words = command(out, processes, *resources, all_layers=all_layers, **more)
        ends = [(main(words), "")] if processes == 1 else side_by_side(words, first)
        assert [code for code, _ in ends] == [0] * processes, ends
        found.append((trained(out / "adapter"), tables.read("history", out / "history.parquet").to_pydict()))
        assert not (out / "checkpoints").exists()
        assert (out / "log").read_text().count('"event": "end"') == 1
    (one, history), (two, again) = found
    assert any("lora_B" in name and tensor.abs().max() > 1e-3 for name, tensor in one.items())
    assert all((one[name] - two[name]).abs().max() < 1e-5 for name in one)
    assert history["sample_ids"] == again["sample_ids"]
    values = ["loss", "token_loss", "item_loss", "item_nll", "reward", "reward_std", "forced_share", "gradient_norm"]
    for name in values:
        assert again[name] == pytest.approx(history[name], abs=1e-5, rel=1e-4)


FAILS_IN_ONE = """
import importlib, os
from minirec.errors import NotFinite

if os.environ.get("RANK") == "1":
    module = importlib.import_module("minirec.{module}")
    whole, calls = module.{function}, []

    def fails(*given, **named):
        calls.append(1)
        if len(calls) == {call}:
            raise NotFinite("a score is not finite")
        return whole(*given, **named)

    module.{function} = fails
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "function", "call", "said"),
    [
        # of the third step's one prompt it has none
        ("training.rewards", "score_completions", 3, "score of an item is nan at step 4"),
        ("evaluation.ranking", "rank", 2, "NDCG on valid is nan at step 6"),
    ],
)
def test_when_one_process_diverges_both_stop_and_the_best_policy_is_kept(
    command, tmp_path, module, function, call, said
):
    fails = FAILS_IN_ONE.format(module=module, function=function, call=call)
    ends = side_by_side(command(tmp_path, 2), fails)
    assert [code for code, _ in ends] == [1, 1], ends
    log = (tmp_path / "log").read_text()
    assert re.search(rf"error: training diverged, .*{said}; .*policy of checkpoint-3 is kept in .*last_good", log)
    assert len(trained(tmp_path / "last_good")) > 0
    assert not (tmp_path / "adapter").exists()


def sharded(rank, meeting):
    """One of two processes, of which each writes and reads another number of batches of another length."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    models = [LlamaForCausalLM(LlamaConfig(**size, vocab_size=50)).eval()]
    models.append(deepcopy(models[0]))
    layers = models[1].get_decoder().layers
    of_layer = sum(weight.nbytes for weight in layers[0].parameters())
    shard(layers, torch.device("cpu"))
    held = sum(weight.to_local().nbytes for weight in layers.parameters())
    assert held == 4 * of_layer / 2
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    for place, model in enumerate(models):
        torch.manual_seed(1)
        models[place] = get_peft_model(model, lora)
    assert not any(isinstance(w, DTensor) for name, w in models[1].named_parameters() if "lora_" in name)
    assert len(ignored_by_ddp(models[1])) == 4 * 9
    for number, batch in enumerate(same_number(list(range(2 + 3 * rank)))):
        ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(number + 10 * rank))
        assert (batch is None) == (rank == 0 and number > 1)
        with torch.set_grad_enabled(number % 3 == 1):
            found = []
            for model in models:
                model.zero_grad()
                logits = model(ids).logits
                if logits.requires_grad:
                    logits.square().mean().backward()
                found.append([logits, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
        assert len(found[0]) == (1 + 4 * 7 * 2 if number % 3 == 1 else 1)
        assert all(map(torch.equal, *found))
    steps = 0
    while any_process(steps < 3 * rank):
        steps += 1
    assert steps == 3
    assert all_reduce_sum(torch.ones(1)).item() == 2
    distributed.destroy_process_group()


@pytest.mark.slow
def test_layers_sharded_by_fsdp_compute_what_whole_ones_do_and_a_process_holds_half(tmp_path):
    torch.multiprocessing.spawn(sharded, (str(tmp_path / "meeting"),), nprocs=2)


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
    assert main(command(tmp_path / "one", 1)) == 0
    foreign = tmp_path / "home" / "accelerate" / "default_config.yaml"  # what `accelerate config` may have left
    foreign.parent.mkdir(parents=True)
    foreign.write_text("distributed_type: FSDP\nmixed_precision: bf16\nnum_processes: 8\nmachine_rank: 5\n")
    job = {"SLURM_JOB_ID": str(os.getpid()), "HF_HOME": str(tmp_path / "home")}
    job["PATH"] = f"{slurm}:{os.environ['PATH']}"
    done = train(command(tmp_path / "two", 1, "--nodes", "2"), **job)
    assert done.returncode == 0, done.stderr
    assert (slurm / "started").read_text().split() == ["0", "1"]
    one, two = (trained(tmp_path / name / "adapter") for name in ("one", "two"))
    assert all((one[name] - two[name]).abs().max() < 1e-5 for name in one)


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.setattr(launch.shutil, "which", {"srun": "/bin/srun", "scontrol": "/bin/scontrol"}.get)


def test_several_nodes_need_slurm_which_starts_a_task_on_each(tools):
    with pytest.raises(InputError, match="--nodes is 2, but this is no Slurm job"):
        launch.command(["train"], 4, 2, {})
    words = launch.command(["train"], 4, 2, {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_NODES": "1"})
    assert words[0] == "srun"
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} <= set(words)


def test_every_node_starts_its_own_processes_and_all_know_where_to_meet(tools, monkeypatch):
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


def test_no_processes_and_no_srun_are_one_sentence(monkeypatch):
    with pytest.raises(InputError, match="--processes is 0 and --nodes 1; both are 1 or more"):
        launch.command(["train"], 0, 1, {})
    monkeypatch.setattr(launch.shutil, "which", {"srun": "/bin/srun"}.get)
    with pytest.raises(InputError, match="--nodes is 2, but scontrol is not on the PATH"):
        launch.command(["train"], 4, 2, {"SLURM_JOB_ID": "7"})


@pytest.mark.parametrize(("threads", "each"), [("", "1"), ("8,2", "2"), ("3", "1")])
def test_the_processes_share_the_threads_of_the_job(threads, each):
    words = launch.command(["train"], 4, 1, {"OMP_NUM_THREADS": threads})
    assert words[words.index("--num_cpu_threads_per_process") + 1] == each


def test_what_a_launcher_started_starts_no_other():
    assert launch.command(["train"], 1, 1, {}) is None
    assert launch.command(["train"], 4, 2, {"RANK": "5"}) is None


@pytest.mark.slow
def test_two_processes_go_on_from_the_last_whole_checkpoint_also_where_one_has_no_items(command, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("minirec.stages.train.tables.write", lambda *_: 1 / 0)  # after the adapter, before the end
        assert main(command(tmp_path, 1, extra_negatives=0)) == 70
    adapter = tmp_path / "adapter"
    one = trained(adapter)
    shutil.rmtree(adapter)
    newest = tmp_path / "checkpoints" / "checkpoint-6"
    (newest / "adapter_model.safetensors").unlink()
    done = train(command(tmp_path, 2, extra_negatives=0))
    assert done.returncode == 0, done.stderr
    assert "checkpoint-6 is left out" in done.stderr
    two = trained(adapter)
    assert all((one[name] - two[name]).abs().max() < 1e-5 for name in one)
