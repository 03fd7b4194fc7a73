"""Two processes train like one (METHOD 3), launched as on two GPUs, here on the CPU with gloo."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file
from test_train import policy, project  # noqa: F401 (a fixture)

from minirec import config, schemas
from minirec.__main__ import main


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

    def made(out, processes, **more):
        whole["train"] |= more
        flags = shlex.split(config.flags(config.validate(yaml.safe_load(yaml.safe_dump(whole))), "train"))
        files = {**project, "model": tiny_model, "history": out / "history.parquet", "out": out / "adapter"}
        paths = [word for name, path in files.items() for word in (f"--{name}", str(path))]
        return ["train", *flags, *paths, "--seed", "0", "--log", str(out / "log"), "--processes", str(processes)]

    return made


def train(arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
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
