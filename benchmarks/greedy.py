"""Exact greedy selection against brute force, on the same input in the same run.

Greedy is timed as `select` runs it, with the diversity of every pick. Brute force compares every row with every pick
in float32; it follows greedy's picks and notes by how much a pick's value is below the best there was: at most 1e-6,
or the benchmark fails. Aims: 5x at 10,748 x 2,304, 15x at 100,000 x 256, at most 1.3 times
the matrix in memory. `--large` adds a million rows in a memory-mapped file, against an extrapolated brute force.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minirec.report.style import plt
from minirec.selection import distances
from minirec.selection.greedy import greedy, greedy_with_diversity
from minirec.storage import tables, tensors

ROOT = Path(__file__).parents[1]
CASES = [(10_748, 2_304, 1_024), (100_000, 256, 2_000)]
GROWTH = [(n, 256, 1_000) for n in (12_500, 25_000, 50_000, 100_000, 200_000)]
LARGE = [(1_000_000, 256, 1_000), (1_000_000, 256, 10_000)]
CHUNK = 20_000


class Watched(distances.NearestDistances):
    """Remembers the last one made, for its count of similarities."""

    last: Watched

    def __init__(self, *given) -> None:
        super().__init__(*given)
        Watched.last = self


module = importlib.import_module("minirec.selection.greedy")  # the package has a function of its name
vars(module)["NearestDistances"] = Watched


def mixture(n: int, d: int, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows from 200 Gaussian clusters, and values like those of two min-max normalised scores: 0 to 2."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((200, d), dtype=np.float32)
    points = np.empty((n, d), dtype=np.float32) if out is None else out
    for begin in range(0, n, CHUNK):
        part = points[begin : begin + CHUNK]
        part[:] = centres[generator.integers(0, 200, len(part))] + generator.standard_normal(
            part.shape, dtype=np.float32
        )
    return points, generator.beta(2, 2, n) + generator.beta(2, 3, n)


def brute_force(
    points: np.ndarray, value: np.ndarray, picks: np.ndarray, diversity: np.ndarray
) -> tuple[float, float, float]:
    """(Seconds of comparing every row with every pick, largest shortfall of a pick's value, error of its diversity)."""
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    started, short, apart = time.perf_counter(), 0.0, 0.0
    near, left = np.full(len(points), np.inf, dtype=np.float32), np.ones(len(points), dtype=bool)
    for position, pick in enumerate(picks):
        gain = np.where(left, near / near.max() * value if position else value, -np.inf)
        short = max(short, float(gain[int(gain.argmax())] - gain[pick]))
        apart = max(apart, abs(float(near[pick] / near.max() if position else 1.0) - diversity[position]))
        left[pick] = False
        distance = 1 - unit @ unit[pick]
        distance[distance < 1e-6] = 0  # METHOD 4.5
        distance[pick] = 0
        np.minimum(near, distance, out=near)
    return time.perf_counter() - started, short, apart


def compare(
    name: str, points: np.ndarray, value: np.ndarray, budget: int, against: int | None = None
) -> tuple[float, float]:
    """Print a row; brute force stops after `against` picks and is extrapolated, where given. Returns both seconds."""
    started = time.perf_counter()
    picks, diversity = greedy_with_diversity(points, value, budget)
    seconds = time.perf_counter() - started
    tracemalloc.start()  # which takes time
    greedy_with_diversity(points, value, budget)
    memory = 1 + tracemalloc.get_traced_memory()[1] / points.nbytes
    tracemalloc.stop()
    share = Watched.last.similarities / len(points) / budget
    started = time.perf_counter()
    alone = greedy(points, value, budget)
    without = time.perf_counter() - started
    assert np.array_equal(picks, alone)
    plain, short, apart = brute_force(points, value, picks[:against], diversity)
    assert short <= 1e-6, f"a pick is {short} below the best"
    assert apart <= 1e-6, f"the diversity of a pick is off by {apart}"
    plain *= budget / len(picks[:against])
    size, mark = f"{len(points):,} x {points.shape[1]:,}", "*" if against else " "
    print(
        f"| {name:8} | {size:>15} | {budget:6,} | {seconds:8.2f} | {without:7.2f} | {plain:7.1f}{mark} "
        f"| {plain / seconds:5.1f} | {share:8.1%} | {memory:6.2f} | {short:8.0e} |",
        flush=True,
    )
    return seconds, plain


def real() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Embeddings and values of finished runs."""
    for path in sorted(ROOT.glob("results/*/signals/*/seed*/embeddings.safetensors")):
        scores = tables.read("scores", path.with_name("scores.parquet"))
        stored = tensors.read(path, "sample_id", "embedding")
        scores = scores.take(tables.rows_of(tables.numpy(scores, "sample_id"), stored["sample_id"], path))
        value = tables.numpy(scores, "learnability") + tables.numpy(scores, "representativeness")
        yield path.parts[-4], stored["embedding"], value


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--large", action="store_true", help="a million rows, too: some minutes more")
    options.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "greedy.png")
    given = options.parse_args()
    print(
        "| data     |          matrix | budget | greedy s | picks s | brute s  | ratio | share    | memory | short    |"
    )
    print(
        "|----------|----------------:|-------:|---------:|--------:|---------:|------:|---------:|-------:|---------:|"
    )
    for n, d, budget in CASES:
        compare("mixture", *mixture(n, d), budget)
    for name, points, value in real():
        compare(name[:8], points, value, max(1, len(points) // 8))
    times = [compare("growth", *mixture(n, d), budget, against=100) for n, d, budget in GROWTH]
    if given.large:
        with tempfile.NamedTemporaryFile() as file:
            n, d, _ = LARGE[0]
            mapped = np.memmap(file.name, dtype=np.float32, mode="w+", shape=(n, d))
            _, value = mixture(n, d, mapped)
            for n, d, budget in LARGE:
                compare(
                    "mapped", np.memmap(file.name, dtype=np.float32, mode="r", shape=(n, d)), value, budget, against=20
                )
    print("\ngreedy: picks with their diversity, as select does; picks: alone")
    print("share: of all rows x picks; memory: in units of the matrix, itself counted once, NumPy's peak")
    print("short: most by which a pick's value is below the best; *: extrapolated from the first picks")
    figure, axes = plt.subplots(figsize=(5, 3.4))
    rows = [n for n, _, _ in GROWTH]
    for label, seconds in zip(("greedy", "brute force"), zip(*times, strict=True), strict=True):
        axes.loglog(rows, seconds, marker="o", label=label)
    axes.set(xlabel="samples", ylabel="seconds", title="Picking 1,000 of n samples, 256 dimensions")
    axes.set_xticks(rows, [f"{n:,}" for n in rows])
    axes.set_xticks([], minor=True)
    axes.legend()
    given.plot.parent.mkdir(exist_ok=True)
    figure.savefig(given.plot, dpi=120)


if __name__ == "__main__":
    main()
