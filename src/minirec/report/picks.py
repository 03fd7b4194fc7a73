"""Who was picked and why: titles, rewards and signals of the picks and of as many other samples, for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from minirec.data import splits
from minirec.data.stored_signals import rewards
from minirec.experiment import paths
from minirec.experiment.config import Config
from minirec.experiment.paths import Run
from minirec.storage import tables, tensors

HISTORY = 3  # last titles of a history that are shown


@dataclass(frozen=True)
class Signals:
    """The files of the signals behind a run; None where its method reads none, or the file is not there."""

    scores: Path | None
    rollouts: Path | None
    embeddings: Path | None


def signals_of(config: Config, run: Run, top: Path) -> Signals:
    """Where the signals of a run are. top: results of the data set."""

    def there(file: str) -> Path | None:
        if run.selector == "none":
            return None
        folder = paths.signal_set(config, file, run.selector, run.method)
        path = top / "signals" / folder / f"seed{paths.signal_seed(config, run.method, run.seed)}" / file
        return path if path.is_file() else None

    return Signals(*map(there, ("scores.parquet", "rollouts.parquet", "embeddings.safetensors")))


def rewards_of(signals: Signals) -> pd.DataFrame | None:
    """sample_id, mean_reward and hits of every training sample, with its scores where there are any."""
    if signals.scores:
        return tables.read("scores", signals.scores).to_pandas()
    return rewards(signals.rollouts).to_pandas() if signals.rollouts else None


def samples(top: Path, run: Run, signals: Signals, limit: int) -> pd.DataFrame:
    """The first `limit` picks of a run and, drawn with its seed, as many samples that were not picked.

    Columns: sample_id, position (place in the order of picking; -1: not picked), history (last titles), target, and
    where there are signals mean_reward, hits, learnability, representativeness, diversity, rewards and texts, lists
    with an entry a completion.
    """
    selection = tables.read("selection", run.selection(top) / "selection.parquet").to_pandas().sort_values("position")
    picked = selection.head(limit)
    table = tables.read("samples", top / "samples.parquet", ["sample_id", "split", "target_row", "history_rows"])
    train = table.to_pandas().query("split == 'train'").set_index("sample_id")
    others = np.setdiff1d(train.index.to_numpy(), selection["sample_id"].to_numpy())
    drawn = np.random.default_rng(run.seed).choice(others, min(len(picked), len(others)), replace=False)
    shown = pd.DataFrame({"sample_id": [*picked["sample_id"], *np.sort(drawn)]})
    shown["position"] = [*picked["position"], *[-1] * len(drawn)]
    shown["diversity"] = [*picked["diversity"], *[np.nan] * len(drawn)]
    titles = splits.titles(top / "catalogue.parquet")
    rows = train.loc[shown["sample_id"]]
    shown["target"] = [titles[row] for row in rows["target_row"]]
    shown["history"] = [[titles[row] for row in history[-HISTORY:]] for history in rows["history_rows"]]
    if (rewarded := rewards_of(signals)) is not None:
        shown = shown.merge(rewarded.drop(columns=["reward_std", "gradient_norm"], errors="ignore"), on="sample_id")
    if signals.rollouts:
        columns = ["sample_id", "completion", "reward", "text"]
        written = tables.read("rollouts", signals.rollouts, columns).to_pandas()
        written = written[written["sample_id"].isin(shown["sample_id"])].sort_values(["sample_id", "completion"])
        lists = written.groupby("sample_id")[["reward", "text"]].agg(list).reset_index()
        shown = shown.merge(lists.rename(columns={"reward": "rewards", "text": "texts"}), on="sample_id")
    return shown


def plane(embeddings: Path, sample_id: np.ndarray) -> np.ndarray:
    """The first two principal components [n, 2] of the embeddings of these samples, on unit vectors."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    rows = tables.rows_of(tensors.read_rows(embeddings, "sample_id"), sample_id, embeddings)
    unit = normalize(tensors.take(embeddings, "embedding", rows).astype(np.float64))
    return np.asarray(PCA(2, svd_solver="full").fit_transform(unit))
