"""Who was picked and why: titles, rewards and signals of the picks and of as many other samples, for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from minirec.data import splits, stored_signals
from minirec.experiment import paths
from minirec.experiment.config import Config
from minirec.experiment.paths import Run
from minirec.selection.distances import SAME
from minirec.selection.methods.registry import Method
from minirec.selection.signals import Signals
from minirec.storage import tables, tensors

HISTORY = 3  # last titles of a history that are shown
BLOCK = 4096  # samples whose distances to the picks are in memory at a time


@dataclass(frozen=True)
class SignalFiles:
    """The files of the signals behind a run; None where its method reads none, or the file is not there."""

    scores: Path | None
    rollouts: Path | None
    embeddings: Path | None


def signals_of(config: Config, run: Run, top: Path) -> SignalFiles:
    """Where the signals of a run are. top: results of the data set."""

    def there(file: str) -> Path | None:
        if run.selector == "none":
            return None
        folder = paths.signal_set(config, file, run.selector, run.method)
        path = top / "signals" / folder / f"seed{paths.signal_seed(config, run.method, run.seed)}" / file
        return path if path.is_file() else None

    return SignalFiles(*map(there, ("scores.parquet", "rollouts.parquet", "embeddings.safetensors")))


def rewards_of(signals: SignalFiles) -> pd.DataFrame | None:
    """sample_id, mean_reward and hits of every training sample, with its scores where there are any."""
    if signals.scores:
        return tables.read("scores", signals.scores).to_pandas()
    return stored_signals.rewards(signals.rollouts).to_pandas() if signals.rollouts else None


def samples(config: Config, top: Path, run: Run, signals: SignalFiles, limit: int) -> pd.DataFrame:
    """The first `limit` picks of a run, and as many samples that were not picked.

    The others could have been picked (see `candidates_of`): those that the method valued most, or drawn with the run's
    seed where it has no such value.

    Columns: sample_id, position (place in the order of picking; -1: not picked), value (before diversity, METHOD 4.6;
    NaN: the method multiplies none), diversity (when picked; of the others, after the last pick), nearest (position of
    the pick most like one of the others; -1: unknown), history (last titles), target, why (a sentence, or empty), and
    where there are signals mean_reward, hits, learnability, representativeness, rewards, ranks and texts, lists with an
    entry a completion.
    """
    selection = tables.read("selection", run.selection(top) / "selection.parquet").to_pandas().sort_values("position")
    table = tables.read("samples", top / "samples.parquet", ["sample_id", "split", "target_row", "history_rows"])
    train = table.to_pandas().query("split == 'train'").set_index("sample_id")
    method, select = config.method(run.method), config.used_by(run.method).select
    candidates = candidates_of(run.selection(top), select.shards, top / "samples.parquet", signals)
    value, vectors = factors(method, {name: getattr(select, name) for name in method.settings}, candidates)
    vectors = candidates.embeddings if vectors is None else vectors
    picks = tables.rows_of(candidates.sample_id, selection["sample_id"].to_numpy(), top / "samples.parquet")
    others = np.setdiff1d(np.arange(len(candidates)), picks)
    count = min(limit, len(picks), len(others))
    if value is None:
        others = np.sort(np.random.default_rng(run.seed).choice(others, count, replace=False))
    else:
        others = others[np.argsort(-value[others], kind="stable")][:count]
    picked, rows = selection.head(limit), np.concatenate([picks[:limit], others])
    shown = pd.DataFrame({"sample_id": candidates.sample_id[rows]})
    shown["position"] = [*picked["position"], *[-1] * len(others)]
    shown["diversity"] = [*picked["diversity"], *[np.nan] * len(others)]
    shown["value"] = np.nan if value is None else value[rows]
    shown["nearest"] = -1
    if vectors is not None and len(others):
        distance, nearest = nearest_picks(vectors, picks)
        diversity = distance[others] / (distance.max() or 1.0)
        shown.loc[shown["position"] < 0, ["diversity", "nearest"]] = np.column_stack([diversity, nearest[others]])
    titles = splits.titles(top / "catalogue.parquet")
    texts = train.loc[shown["sample_id"]]
    shown["target"] = [titles[row] for row in texts["target_row"]]
    shown["history"] = [[titles[row] for row in history[-HISTORY:]] for history in texts["history_rows"]]
    if (rewarded := rewards_of(signals)) is not None:
        shown = shown.merge(rewarded.drop(columns=["reward_std", "gradient_norm"], errors="ignore"), on="sample_id")
    if signals.rollouts:
        columns = ["sample_id", "completion", "reward", "rank", "text"]
        written = tables.read("rollouts", signals.rollouts, columns).to_pandas()
        written = written[written["sample_id"].isin(shown["sample_id"])].sort_values(["sample_id", "completion"])
        lists = written.groupby("sample_id")[["reward", "rank", "text"]].agg(list).reset_index()
        names = {"reward": "rewards", "rank": "ranks", "text": "texts"}
        shown = shown.merge(lists.rename(columns=names), on="sample_id")
    picked_rows = train["target_row"].loc[selection["sample_id"]]
    targets = {position: titles[row] for position, row in zip(selection["position"], picked_rows, strict=True)}
    needless = ", but representativeness and diversity need no hit" if method.name == "minirec" else ""
    cutoff = config.varied(run.method).reward.cutoff
    hitless = f"The proxy never ranks the target among the first {cutoff:,}{needless}."
    shown["why"] = [_why(row, targets, hitless) for row in shown.to_dict("records")]
    return shown


def prompts(config: Config, top: Path, sample_id: np.ndarray) -> list[str]:
    """The history of these training samples [k] as their prompts say it, a line an item."""
    files = top / "samples.parquet", top / "catalogue.parquet"
    return list(splits.load(*files, "train", config.policy.prompt_history, sample_id).bodies)


def plane(embeddings: Path, sample_id: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components [n, 2] of the embeddings of these samples, on unit vectors.

    Also returns their shares [2] of the variance.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    rows = tables.rows_of(tensors.read_rows(embeddings, "sample_id"), sample_id, embeddings)
    fitted = PCA(2, svd_solver="full")
    unit = normalize(tensors.take(embeddings, "embedding", rows).astype(np.float64))
    places = np.asarray(fitted.fit_transform(unit))
    return places, np.asarray(fitted.explained_variance_ratio_)


def nearest_picks(vectors: np.ndarray, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine distance [n] of vectors [n, d] to the nearest of the picks, rows [k] of them, and that pick's number [n].

    Of picks that are as near, it is the first. Distances below SAME count as 0, as in the selection (METHOD 4.5).
    """
    from sklearn.preprocessing import normalize

    unit = normalize(vectors.astype(np.float64))
    blocks = [1 - unit[start : start + BLOCK] @ unit[picks].T for start in range(0, len(unit), BLOCK)]
    distance = np.concatenate([block.min(1) for block in blocks])
    distance[picks] = 0.0  # also that of a vector of zeros
    return np.where(distance < SAME, 0.0, distance), np.concatenate([block.argmin(1) for block in blocks])


def candidates_of(
    folder: Path, shards: int, samples: Path, files: SignalFiles, influences: Path | None = None
) -> Signals:
    """The signals of the samples that a selection in this folder could pick, by ascending id.

    These are all training samples, or with several shards the picks of the shards.
    """
    shard_picks = [folder / "shards" / str(number) / "selection.parquet" for number in range(shards)]
    pool = stored_signals.pool(samples, None, shards, shard_picks if shards > 1 else [])
    return stored_signals.load(pool, samples, files.scores, files.rollouts, files.embeddings, influences)


def factors(
    method: Method, settings: Mapping[str, Any], candidates: Signals
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Value before diversity [n] (METHOD 4.6), and the vectors [n, d] of which the method takes distances.

    Both are None if the method is not greedy by a value, or the signals that make the value are not there.
    """
    known = candidates.learnability if "gradients" in method.needs else candidates.mean_reward
    return (None, None) if method.factors is None or known is None else method.factors(candidates, **settings)


def _why(row: dict[Any, Any], targets: dict[int, str], hitless: str) -> str:
    """A sentence about a sample that its numbers do not say by themselves; empty where they do.

    targets: title of the target of each pick, by position. hitless: the sentence about a pick without a hit.
    """
    if row["nearest"] >= 0:
        return f"Most like pick {row['nearest'] + 1:.0f} ({targets[row['nearest']]})."
    return hitless if row["position"] >= 0 and row.get("hits", 1) == 0 else ""
