"""A thousand shards are gathered for real, by a process that may open no more files than is usual at first."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT

from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance

SHARDS = 1_100
GATHER = "python -m minirec gather --shards-folder shards --rollouts rollouts.parquet --hidden hidden.safetensors"


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """A folder with shards of one sample each, whose one state is the number of the sample."""
    top, schema = tmp_path_factory.mktemp("many"), tables.TABLES["rollouts"].schema()
    made_by = Provenance("rollout", {"shards": SHARDS}, {"samples": "12"})
    for shard in range(SHARDS):
        folder = top / "shards" / str(shard)
        folder.mkdir(parents=True)
        values = {"sample_id": shard, "tokens": [1], "text": "", "hit": True, "completion": 0}
        row = {field.name: values.get(field.name, False if field.type == pa.bool_() else 1) for field in schema}
        tables.write("rollouts", pa.Table.from_pylist([row], schema), folder / "rollouts.parquet", made_by)
        states = {"sample_id": np.array([shard]), "hidden": np.full((1, 1, 2), shard, np.float32)}
        tensors.write(states, folder / "hidden.safetensors", made_by)
    return top


def gather(folder: Path, soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    command = f"{GATHER} --shards {SHARDS}".replace("python", sys.executable, 1).split()
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_more_shards_than_open_files_at_first_are_joined_in_the_order_of_the_samples(shards):
    done = gather(shards, 1024, 2048)
    assert done.returncode == 0, done.stderr
    assert tables.read("rollouts", shards / "rollouts.parquet")["sample_id"].to_pylist() == list(range(SHARDS))
    assert tensors.read(shards / "hidden.safetensors")["hidden"][:, 0, 1].tolist() == list(range(SHARDS))


def test_more_shards_than_the_system_lets_files_be_open_are_refused_in_one_sentence(shards):
    done = gather(shards, 1024, 1024)
    assert done.returncode == 1
    assert "1100 shards need 1120 open files, but only 1024 are allowed; lower rollout.shards" in done.stderr
