"""The GPU benchmark at toy sizes on a CPU, where nothing but torch and transformers can be imported."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MISSING = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "pyarrow", "duckdb", "trl", "peft", "vllm"}:
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, Missing())
"""


@pytest.mark.slow
def test_all_parts_run_on_a_cpu_and_those_that_need_another_library_are_named(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(MISSING)
    out = tmp_path / "gpu.csv"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "long" / "gpu.py", "--tiny", "--models", "Gemma-2-2B", "--out", out],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("pydantic", "vllm"):
        assert f"left out (ModuleNotFoundError: No module named '{name}')" in done.stdout
    rows = {row["what"]: float(row["value"]) for row in csv.DictReader(out.open())}
    assert rows["log-probabilities: largest relative difference to the CPU"] == 0
    assert rows["greedy, share of equal picks in equal places"] == 1
    assert rows["a training step without writing"] > 2 * rows["a micro-batch, forth and back"]
    assert min(rows["built-in engine, one batch"], rows["transformers continuous batching"]) > 0
