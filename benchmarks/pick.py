"""minirec pick: seconds and memory for 100,000 prompts with 8 rewards each, against pandas with the same picks.

    python benchmarks/pick.py

A file with a list of rewards a prompt, and one with a row a completion, both made here. pandas reads the whole file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROMPTS, GROUP, BUDGET = 100_000, 8, 1024
BY_PANDAS = """
import json, sys
import numpy as np, pandas as pd
table = pd.read_json(sys.argv[1], lines=True)
if "score" in table:
    mean = table.groupby("input", sort=False)["score"].mean().to_numpy()
else:
    mean = np.array(table["rewards"].to_list()).mean(1)
print(np.abs(np.sort(np.abs(mean - 0.5))[:int(sys.argv[2])]).sum())
"""


def made(folder: Path) -> dict[str, Path]:
    """The two files: of prompts that are solved more or less often."""
    generator = np.random.default_rng(0)
    chance = generator.beta(0.5, 1.5, PROMPTS)
    rewards = (generator.random((PROMPTS, GROUP)) < chance[:, None]).astype(float).tolist()
    wide, long = folder / "wide.jsonl", folder / "long.jsonl"
    with wide.open("w") as by_prompt, long.open("w") as by_completion:
        for number, of_prompt in enumerate(rewards):
            prompt = f"what comes after film {number} of the series {number % 1000}?"
            by_prompt.write(json.dumps({"prompt": prompt, "answer": str(number), "rewards": of_prompt}) + "\n")
            for reward in of_prompt:
                row = {"input": prompt, "output": "x" * 50, "score": reward, "step": 1, "gts": str(number)}
                by_completion.write(json.dumps(row) + "\n")
    return {"a list a prompt": wide, "a row a completion": long}


def measured(words: list[str]) -> tuple[float, float, str]:
    """Seconds, MiB and output of a command."""
    code = "import resource, subprocess, sys; sys.stdout.write(subprocess.run(sys.argv[1:], check=True, text=True,"
    code += " capture_output=True).stdout); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    started = time.perf_counter()
    said = subprocess.run([sys.executable, "-c", code, *words], check=True, text=True, capture_output=True).stdout
    *lines, memory = said.splitlines()
    return time.perf_counter() - started, float(memory), "\n".join(lines)


def distance(picks: Path) -> float:
    """How far the picks' mean rewards are from one half, added up."""
    rows = [json.loads(line)["minirec"]["mean_reward"] for line in picks.read_text().splitlines()]
    return float(np.abs(np.array(rows) - 0.5).sum())


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "picks.jsonl"
        for what, file in made(Path(name)).items():
            words = [sys.executable, "-m", "minirec", "pick", str(file), "--budget", str(BUDGET), "--out", str(out)]
            theirs, their_memory, said = measured([sys.executable, "-c", BY_PANDAS, str(file), str(BUDGET)])
            for more in ([], ["--control", "random"], ["--diversity", "tfidf"]):
                seconds, memory, _ = measured(words + more)
                same = "" if "tfidf" in more else f", as learnable: {abs(distance(out) - float(said)) < 1e-6}"
                print(
                    f"{what}, {file.stat().st_size / 1e6:.0f} MB {' '.join(more)}: {seconds:.1f} s, {memory:.0f} MiB; "
                    f"pandas {theirs:.1f} s, {their_memory:.0f} MiB: {theirs / seconds:.2f}x{same}"
                )


if __name__ == "__main__":
    main()
