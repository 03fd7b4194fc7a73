"""Gradient and Hessian-vector product in closed form against torch's double backward in batches of 2, float32.

An error is |found - exact| / |exact|, exact being the double backward in float64: of all checked samples together, and
of the worst. Aims at 2,048 samples, 576 dimensions and 3,400 items: 10x the speed, an error of at most 1e-5.
Then the stage itself, from file to file: its peak memory does not depend on the number of samples.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from minirec.experiment import config
from minirec.experiment.sections import Passes
from minirec.model.whitening import Whitening
from minirec.report.style import plt
from minirec.stages import gradient
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance
from minirec.training import gradient_and_hvp

ROOT = Path(__file__).parents[1]
ITEMS, WIDTH, TAU, HISTORY, BATCH = 3_400, 576, 0.02, 20, 2
GROWTH = (512, 1_024, 2_048, 4_096, 8_192)
CHECKED = 128  # samples whose error is measured
TIMED = 256  # samples of the double backward, whose time grows with their number
CANDIDATES = (64, 256, 1_024)
STAGE, GROUPS, FEW = (20_000, 40_000, 80_000), 4, 100  # samples, completions and items of the whole stage
Pair = tuple[Tensor, Tensor]


def case(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden, items, target, history): states that lean to their target, items in clusters."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(50, WIDTH, generator=generator)
    items = centres[torch.randint(0, 50, (ITEMS,), generator=generator)]
    items = items + torch.randn(ITEMS, WIDTH, generator=generator)
    target = torch.randint(0, ITEMS, (n,), generator=generator)
    hidden = items[target] + 3 * torch.randn(n, WIDTH, generator=generator)
    return hidden, items, target, torch.randint(0, ITEMS, (n, HISTORY), generator=generator)


def double_backward(hidden: Tensor, items: Tensor, target: Tensor, history: Tensor) -> Pair:
    """METHOD 4.4 by torch's autograd, a few samples at a time."""
    unit = normalize(items, dim=1)
    g, hv = torch.empty_like(hidden), torch.empty_like(hidden)
    for begin in range(0, len(hidden), BATCH):
        part = slice(begin, begin + BATCH)
        x = hidden[part].clone().requires_grad_()
        scores = normalize(x, dim=1) @ unit.T / TAU
        masked = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, history[part], True)
        masked.scatter_(1, target[part, None], False)
        log_pi = scores.masked_fill(masked, -torch.inf).log_softmax(1).gather(1, target[part, None])
        loss = -(log_pi - log_pi.detach()).exp().sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        g[part] = first.detach()
        (hv[part],) = torch.autograd.grad((first * first.detach()).sum(), x)
    return g, hv


def closed_form(hidden: Tensor, items: Tensor, target: Tensor, history: Tensor) -> Pair:
    return gradient_and_hvp(hidden, items, target, temperature=TAU, exclude=history)


def timed(call: Callable[[], Pair]) -> tuple[float, Pair]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def errors(found: Pair, exact: Pair) -> list[str]:
    """Of g and Hv: all samples together / the worst sample."""
    said = []
    for one, true in zip(found, exact, strict=True):
        off = (one[: len(true)].double() - true).norm(dim=1)
        said.append(f"{off.norm() / true.norm():.0e} / {(off / true.norm(dim=1)).max():.0e}")
    return said


def peak(call: Callable[[], Pair]) -> float:
    """Most megabytes held at once in tensors that the call makes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    held = most = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 1e6


def files(n: int, folder: Path) -> dict[str, Path]:
    """What the stage reads, of n samples; written as streams, too."""
    generator = np.random.default_rng(0)
    names = ("samples.parquet", "rollouts.parquet", "whitening.safetensors", "hidden.safetensors")
    paths = {name.split(".")[0]: folder / name for name in names} | {"item_table": folder / "items.safetensors"}
    none = {"history_rating": [[None]], "history_age_ms": [[1]], "user_id": ["u"], "split": ["train"], "timestamp": [1]}
    judged = {
        "reward": 0.5,
        "ndcg": 0.5,
        "pi": 0.1,
        "hit": True,
        "rank": 3,
        "advantage": 1.0,
        "text": "a",
        "forced": False,
    }
    with (
        tables.writer("samples", paths["samples"], Provenance("prepare")) as add_samples,
        tables.writer("rollouts", paths["rollouts"], Provenance("rollout")) as add_rollouts,
        tensors.writer({"hidden": (n, GROUPS, WIDTH)}, paths["hidden"], Provenance("rollout")) as add_hidden,
    ):
        for ids in np.array_split(np.arange(n), n // 2_500):
            k = len(ids)
            table = {name: values * k for name, values in none.items()}
            table |= {"sample_id": ids, "target_row": generator.integers(0, FEW, k)}
            table["history_rows"] = generator.integers(0, FEW, (k, HISTORY)).tolist()
            add_samples(pa.table(table, tables.TABLES["samples"].schema()))
            tried = {name: [value] * (k * GROUPS) for name, value in judged.items()} | {"tokens": [[1]] * (k * GROUPS)}
            tried |= {"sample_id": ids.repeat(GROUPS), "completion": np.tile(np.arange(GROUPS), k)}
            add_rollouts(pa.table(tried, tables.TABLES["rollouts"].schema()))
            add_hidden(sample_id=ids, hidden=generator.standard_normal((k, GROUPS, WIDTH), dtype=np.float32))
    items = generator.standard_normal((FEW, WIDTH), dtype=np.float32)
    tensors.write({"items": items, "row": np.arange(FEW)}, paths["item_table"], Provenance("embed"))
    Whitening.identity().write(paths["whitening"], Provenance("embed"))
    return paths


def stage(paths: dict[str, Path], folder: Path) -> tuple[float, float]:
    """Run the stage; (seconds, peak MB of its process)."""
    settings = config.load(ROOT / "config" / "config.yaml")
    started = time.perf_counter()
    out = {name: folder / f"{name}.safetensors" for name in ("gradients", "embeddings")}
    gradient.run(policy=settings.policy, gradient=settings.gradient, passes=Passes(), **paths, **out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return time.perf_counter() - started, peak


def streamed() -> None:
    """The stage on growing files, each in a process of its own."""
    print(f"\nthe stage, from file to file: {GROUPS} completions, {WIDTH} dimensions, {FEW} items\n")
    print("| samples | states MB | seconds | samples/s | peak MB |")
    print("|--------:|----------:|--------:|----------:|--------:|")
    context = multiprocessing.get_context("spawn")
    for n in STAGE:
        with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, context) as alone:
            seconds, most = alone.submit(stage, files(n, Path(name)), Path(name)).result()
        size = 4 * n * GROUPS * WIDTH / 1e6
        print(f"| {n:7,} | {size:9.0f} | {seconds:7.1f} | {n / seconds:9.0f} | {most:7.0f} |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "gradient.png")
    given = options.parse_args()
    closed_form(*case(64))  # warm up
    double_backward(*case(64))
    hidden, items, target, history = case(CHECKED)
    exact = double_backward(hidden.double(), items.double(), target, history)
    print(f"{WIDTH} dimensions, {ITEMS:,} items, float32, {torch.get_num_threads()} threads\n")
    print("| samples | closed form s | double backward s | ratio | error g       | error Hv      | peak MB |")
    print("|--------:|--------------:|------------------:|------:|---------------|---------------|--------:|")
    plain, _ = timed(lambda: double_backward(*case(TIMED)))
    times = []
    for n in GROWTH:
        data = case(n)
        seconds, found = timed(lambda data=data: closed_form(*data))
        whole = plain * n / TIMED
        times.append((seconds, whole))
        states, _, aim, past = (t[:CHECKED] for t in data)
        wrong = errors(found, double_backward(states.double(), data[1].double(), aim, past))
        memory = peak(lambda data=data: closed_form(*data))
        print(
            f"| {n:7,} | {seconds:13.2f} | {whole:17.1f} | {whole / seconds:5.1f} "
            f"| {wrong[0]} | {wrong[1]} | {memory:7.0f} |",
            flush=True,
        )
    own = errors(tuple(t[:CHECKED] for t in double_backward(hidden, items, target, history)), exact)
    print(f"\nerrors: all samples together / the worst; the double backward's own in float32: g {own[0]}, Hv {own[1]}")
    print(f"double backward: timed on {TIMED} samples, whose time grows with their number\n")
    print("| candidates | seconds | cosine of g | cosine of Hv |")
    print("|-----------:|--------:|------------:|-------------:|")
    generator = torch.Generator().manual_seed(1)
    for count in CANDIDATES:
        drawn = torch.randint(0, ITEMS, (CHECKED, count), generator=generator)
        seconds, found = timed(
            lambda drawn=drawn: gradient_and_hvp(
                hidden, items, target, temperature=TAU, exclude=history, candidates=drawn
            )
        )
        near = [torch.cosine_similarity(f.double(), e).mean().item() for f, e in zip(found, exact, strict=True)]
        print(f"| {count:10,} | {seconds:7.2f} | {near[0]:11.3f} | {near[1]:12.3f} |")
    print(f"\n({CHECKED} samples, uniform candidates; cosine: mean, to the derivatives over the whole catalogue)")
    streamed()
    figure, axes = plt.subplots(figsize=(5, 3.4))
    for label, seconds in zip(("closed form", "double backward"), zip(*times, strict=True), strict=True):
        axes.loglog(GROWTH, seconds, marker="o", label=label)
    axes.set(xlabel="samples", ylabel="seconds", title=f"Gradient and Hv, {WIDTH} dimensions, {ITEMS:,} items")
    axes.set_xticks(GROWTH, [f"{n:,}" for n in GROWTH])
    axes.set_xticks([], minor=True)
    axes.legend()
    given.plot.parent.mkdir(exist_ok=True)
    figure.savefig(given.plot, dpi=120)


if __name__ == "__main__":
    main()
