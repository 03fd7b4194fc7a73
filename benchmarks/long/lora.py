"""Derivatives by the LoRA weights beside those by the hidden state: what they cost, and how far the rankings agree.

On data/cds, with a proxy of the tiny model that the workflow trains; Spearman's correlation of the samples'
representativeness between the two spaces, by direction.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from scipy.stats import spearmanr

from minirec.experiment import config
from minirec.experiment.sections import Passes
from minirec.selection.signals import direction, representativeness
from minirec.stages import gradient
from minirec.storage import tensors

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "config" / f"{name}.yaml" for name in ("quickstart", "learning", "learning_tiny")]
MODEL = "tiny_cds"


def derive(given: config.Config, top: Path, out: Path, **changes) -> tuple[dict[str, np.ndarray], float]:
    """(g and Hv of every sample, CPU seconds) of one run of the stage."""
    signals = top / "signals" / MODEL / "seed0"
    started = time.process_time()
    gradient.run(
        policy=given.policy,
        gradient=given.gradient.model_copy(update=changes),
        passes=Passes(batch_tokens=4096),
        samples=top / "samples.parquet",
        catalogue=top / "catalogue.parquet",
        item_table=signals / "items.safetensors",
        rollouts=signals / "rollouts.parquet",
        hidden=signals / "hidden.safetensors",
        model=ROOT / "data" / "models" / MODEL,
        adapter=signals / "proxy" / "adapter",
        gradients=out / "gradients.safetensors",
        embeddings=out / "embeddings.safetensors",
    )
    return tensors.read(out / "gradients.safetensors"), time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1024])
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    overlay = ROOT / "results" / "lora" / "overlay.yaml"
    overlay.parent.mkdir(parents=True, exist_ok=True)
    overlay.write_text(yaml.safe_dump({"results": "results/lora", "prepare": {"max_train": given.samples}}))
    settings = config.load(ROOT / "config" / "config.yaml", *FILES, overlay)
    top = ROOT / "results" / "lora" / "cds"
    command = ["snakemake", "--cores", str(given.cores), "--quiet", "host", "reason", "rules", "--configfile"]
    command += [*map(str, [*FILES, overlay]), "--", f"results/lora/cds/signals/{MODEL}/seed0/gradients.safetensors"]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    hidden, plain = derive(settings, top, overlay.parent, space="hidden")
    n = len(hidden["sample_id"])
    print(f"{n} samples of cds, tiny model, {settings.sampling.completions} completions\n")
    print("| space | dimensions | CPU seconds | CPU ms a sample | Spearman, hvp | grad | lookahead |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    print(f"| hidden | {hidden['gradient'].shape[1]} | {plain:.1f} | {1000 * plain / n:.2f} | | | |")
    kinds = ("hvp", "grad", "lookahead")

    def ranking(found: dict[str, np.ndarray], kind: str) -> np.ndarray:
        return representativeness(direction(found["gradient"], found["hvp"], kind, settings.score.eta))

    for dimensions in given.dimensions:
        found, seconds = derive(settings, top, overlay.parent, space="lora", dimensions=dimensions)
        agree = [spearmanr(ranking(hidden, kind), ranking(found, kind)).statistic for kind in kinds]
        cells = " | ".join(f"{value:.2f}" for value in agree)
        print(f"| lora | {dimensions} | {seconds:.1f} | {1000 * seconds / n:.1f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
