"""Greedy selection in two rounds, as `select.shards` has it, against the exact one.

The worth of a selection is the sum over its picks, in their order, of D~ x value at the pick, computed again over the
whole pool; aim: 95 % of exact greedy's. Rows follow time; a shard is a part of them that follow each other. Real
embeddings are TF-IDF of the histories in data/cds, reduced to 256 dimensions, with the paper's published scores where
data/published/scores.parquet is there; beside them a mixture of Gaussians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from greedy import mixture
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from minirec.report.style import ALL, MARKERS, plt
from minirec.selection import greedy

ROOT = Path(__file__).parents[1]
SHARDS, BUDGETS, WIDTH, HISTORY = (2, 4, 8, 16, 32), (256, 1_024), 256, 5
SYNTHETIC = 40_000


def histories(folder: Path) -> np.ndarray:
    """One vector for every interaction but a user's first: TF-IDF of the titles before it, in the order of time."""
    rows = pq.read_table(folder / "interactions.parquet").to_pandas().sort_values(["timestamp", "user_id", "item_id"])
    items = pq.read_table(folder / "items.parquet", columns=["item_id", "title"]).to_pandas()
    title = dict(zip(items["item_id"], items["title"].fillna(""), strict=True))
    seen: dict[str, list[str]] = {}
    texts = []
    for user, item in zip(rows["user_id"], rows["item_id"], strict=True):
        before = seen.setdefault(user, [])
        if before:
            texts.append(" ".join(before[-HISTORY:]))
        before.append(title.get(item, ""))
    words = TfidfVectorizer(sublinear_tf=True, min_df=2).fit_transform(texts)
    return TruncatedSVD(WIDTH, random_state=0).fit_transform(words).astype(np.float32)


def pools(cds: Path, published: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, embeddings, value) of every pool."""
    if (cds / "interactions.parquet").is_file():
        points = histories(cds)
        if published.is_file():
            scores = pq.read_table(published).to_pandas().sort_values("sample_id")
            points = points[: len(scores)]
            value = (scores["learnability"] + scores["representativeness"]).to_numpy()[: len(points)]
        else:
            value = mixture(len(points), 2)[1]
        yield "cds", points, value
    yield "mixture", *mixture(SYNTHETIC, WIDTH)


def worth(points: np.ndarray, value: np.ndarray, picks: np.ndarray) -> float:
    """The sum over the picks of D~ x value, D~ over the whole pool, by comparing every row with every pick."""
    unit = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-30)
    near, total = np.ones(len(points)), 0.0
    for position, pick in enumerate(picks):
        total += near[pick] / near.max() * value[pick]
        distance = 1 - unit @ unit[pick]
        distance[distance < 1e-6] = 0
        distance[pick] = 0
        near = np.minimum(near, distance) if position else distance
    return float(total)


def two_rounds(points: np.ndarray, value: np.ndarray, budget: int, shards: int) -> tuple[np.ndarray, float, float]:
    """(picks, seconds of the slowest shard, seconds of the last round)."""
    winners, slowest = [], 0.0
    for shard in range(shards):
        begin, end = len(points) * shard // shards, len(points) * (shard + 1) // shards
        started = time.perf_counter()
        own = greedy(points[begin:end], value[begin:end], min(budget, end - begin))
        slowest = max(slowest, time.perf_counter() - started)
        winners.append(begin + own)
    pool = np.sort(np.concatenate(winners))
    started = time.perf_counter()
    picks = pool[greedy(points[pool], value[pool], budget)]
    return picks, slowest, time.perf_counter() - started


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cds", type=Path, default=ROOT / "data" / "cds", help="folder of interactions and items")
    options.add_argument("--published", type=Path, default=ROOT / "data" / "published" / "scores.parquet")
    options.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "two_round.png")
    given = options.parse_args()
    print("| data    |         matrix | budget | shards | worth of exact | same picks | a shard s | last s | exact s |")
    print("|---------|---------------:|-------:|-------:|---------------:|-----------:|----------:|-------:|--------:|")
    figure, axes = plt.subplots(figsize=(5, 3.4))
    lowest = 1.0
    for name, points, value in pools(given.cds, given.published):
        for budget in BUDGETS:
            started = time.perf_counter()
            exact = greedy(points, value, budget)
            seconds = time.perf_counter() - started
            best, shares = worth(points, value, exact), []
            for shards in SHARDS:
                picks, slowest, last = two_rounds(points, value, budget, shards)
                shares.append(worth(points, value, picks) / best)
                same = len(set(picks) & set(exact)) / budget
                size = f"{len(points):,} x {points.shape[1]}"
                print(
                    f"| {name:7} | {size:>14} | {budget:6,} | {shards:6} | {shares[-1]:14.2%} | {same:10.0%} "
                    f"| {slowest:9.2f} | {last:6.2f} | {seconds:7.2f} |",
                    flush=True,
                )
            lowest = min(lowest, *shares)
            label, marker = f"{name}, {len(points):,}: {budget:,} picks", MARKERS[len(axes.lines)]
            axes.semilogx(SHARDS, shares, marker=marker, base=2, label=label)
    print("\na shard: the slowest of the first round; last: the second round")
    print(f"lowest: {lowest:.2%} of the exact worth; aim: 95 %")
    axes.axhline(0.95, color=ALL, linestyle="--")
    axes.set(xlabel="shards", ylabel="worth, share of exact greedy", ylim=(0.9, 1.01), title="Two rounds")
    axes.legend(fontsize="small")
    given.plot.parent.mkdir(exist_ok=True)
    figure.savefig(given.plot, dpi=120)


if __name__ == "__main__":
    main()
