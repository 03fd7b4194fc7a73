"""The quickstart on a GPU and on the CPU of the same machine: seconds, and how far states and rewards are apart.

Part of `make bench-gpu`, and a command of its own: `python benchmarks/long/gpu_quickstart.py`. It needs all that
`make setup` installs, and downloads what `make quickstart` downloads; both runs stay in results/bench_gpu.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def compared(*layers: str) -> Iterator[tuple[str, float, str]]:
    """(what, value, unit) of both runs; layers: configuration files over that of the quickstart."""
    for library in ("snakemake", "trl", "peft"):
        importlib.import_module(library)
    from safetensors.numpy import load_file

    from minirec.storage import tables

    results = ROOT / "results" / "bench_gpu"
    states, rewards = [], []
    for place, hidden in (("GPU", {}), ("CPU", {"CUDA_VISIBLE_DEVICES": ""})):
        shutil.rmtree(results / place, ignore_errors=True)
        top = results / place / "movielens"
        words = ["snakemake", "--cores", str(os.cpu_count()), "--quiet", "host", "reason", "rules"]
        words += ["--configfile", "config/quickstart.yaml", *layers]
        words += ["--config", f"results={(results / place).relative_to(ROOT)}"]
        words += ["--", str((top / "metrics.json").relative_to(ROOT))]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=os.environ | hidden, check=True)
        yield f"quickstart, {place}", time.perf_counter() - started, "s"
        found = json.loads((top / "metrics.json").read_text(encoding="utf-8"))
        yield f"quickstart, {place}: NDCG@10", found["metrics"]["ndcg@10"]["mean"], ""
        states.append(load_file(top / "base" / "smollm" / "frozen_states.safetensors")["states"].astype(float))
        (table,) = top.glob("signals/*/seed0/rollouts.parquet")
        rewards.append(tables.numpy(tables.read("rollouts", table, ["reward"]), "reward"))
    (theirs, ours), (gpu, cpu) = states, rewards
    apart = float(((theirs - ours) ** 2).sum() ** 0.5 / (ours**2).sum() ** 0.5)
    yield "quickstart, states of the items: relative difference", apart, ""
    yield "quickstart, rewards: mean difference", float(abs(gpu - cpu).mean()), ""


if __name__ == "__main__":
    for what, value, unit in compared(*sys.argv[1:]):
        print(f"{what:<60}{value:>12.4g} {unit}", flush=True)
