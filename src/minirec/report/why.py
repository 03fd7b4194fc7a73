"""Why one sample was picked or not: its texts, its signals when it was picked, and what would have to change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from minirec.data import splits
from minirec.errors import InputError
from minirec.experiment import paths
from minirec.report.picks import SignalFiles, candidates_of, factors, nearest_picks
from minirec.selection import counterfactual
from minirec.selection.methods import registry
from minirec.selection.methods.registry import Method
from minirec.storage import artefact, tables

EXAMPLES = 3  # picks that are listed without a sample, and as many that were passed over
AHEAD = 2  # greedy methods pick this many times the budget to find a sample's place


@dataclass(frozen=True)
class Selection:
    """A finished selection and what made it. top: results of its data set. settings: of the method alone."""

    folder: Path
    top: Path
    selector: str
    method: Method
    settings: dict[str, Any]
    seed: int
    shards: int
    inputs: dict[str, str]
    table: pd.DataFrame  # selection.parquet in the order of picking

    @property
    def picks(self) -> np.ndarray:
        """Sample ids [k] in the order of picking."""
        return self.table["sample_id"].to_numpy()


def open_selection(folder: Path) -> Selection:
    """The selection of a folder below `selections`, or of a run below `runs`; raises InputError if it is not there."""
    plain = Path(os.path.normpath(folder))
    located = paths.located(folder)
    selections = [where for where in (plain, plain.absolute()) if "selections" in [p.name for p in where.parents][2:3]]
    if located is not None:
        top, run = located
        where = run.selection(top)
    elif selections:
        where = selections[0]
        top = where.parents[3]
    else:
        raise InputError(
            f"{folder} is no run and no selection; name a folder like "
            "results/DATASET/selections/SELECTOR/METHOD-BUDGET/seed0"
        )
    file = where / "selection.parquet"
    if not file.is_file():
        raise InputError(f"{folder} has no selection yet; minirec status {top} says what is left to run")
    record = tables.read_provenance(file)
    settings, table = record["settings"], tables.read("selection", file).to_pandas().sort_values("position")
    method = registry.find(settings["method"])
    own = {name: settings[name] for name in method.settings}
    more = settings["seed"], settings["shards"], record["inputs"]
    return Selection(where, top, where.parents[1].name, method, own, *more, table)


def signal_files(chosen: Selection) -> SignalFiles:
    """The signals that a selection was made from, by their digests, and those made from the same rollouts.

    Raises InputError if a file has changed since, or is gone.
    """
    inputs = chosen.inputs
    folders = sorted(chosen.top.glob(f"signals/{chosen.selector}/seed*"))
    folders += sorted(chosen.top.glob(f"signals/{chosen.selector}@*/seed*"))

    def unchanged(name: str, digest: str | None, needed: bool) -> Path | None:
        for file in (folder / name for folder in folders):
            if digest and file.is_file() and artefact.digest(file) == digest:
                return file
        if needed and digest:
            raise InputError(
                f"the {name} from which {chosen.folder} was made has changed or is gone; run the workflow again"
            )
        return None

    scores = unchanged("scores.parquet", inputs.get("scores"), True)
    of_rollouts = inputs.get("rollouts") or (
        tables.read_provenance(scores)["inputs"].get("rollouts") if scores else None
    )
    rollouts = unchanged("rollouts.parquet", of_rollouts, "rollouts" in inputs)
    embeddings = unchanged("embeddings.safetensors", inputs.get("embeddings"), True)
    if rollouts and scores is None and (file := rollouts.with_name("scores.parquet")).is_file():
        scores = file if tables.read_provenance(file)["inputs"].get("rollouts") == of_rollouts else None
    if rollouts and embeddings is None and (file := rollouts.with_name("embeddings.safetensors")).is_file():
        embeddings = file
    return SignalFiles(scores, rollouts, embeddings)


def influences_of(chosen: Selection) -> Path | None:
    """The influences of the training samples, if there are any.

    Raises InputError if the selection was made from influences that have changed since, or are gone.
    """
    file, digest = chosen.top / "surrogate" / "influences.parquet", chosen.inputs.get("influences")
    if digest and not (file.is_file() and artefact.digest(file) == digest):
        raise InputError(f"{file} has changed since {chosen.folder} was made, or is gone; run the workflow again")
    return file if file.is_file() else None


class Explanation:
    """The signals of a selection's candidates, and what they say of any of its samples."""

    def __init__(self, folder: Path) -> None:
        self.chosen = chosen = open_selection(folder)
        self.samples, self.titles = chosen.top / "samples.parquet", splits.titles(chosen.top / "catalogue.parquet")
        self.files = files = signal_files(chosen)
        self.signals = candidates_of(chosen.folder, chosen.shards, self.samples, files, influences_of(chosen))
        self.pool = self.signals.sample_id
        self.value, self.vectors = factors(chosen.method, chosen.settings, self.signals)
        self.rows = tables.rows_of(self.pool, chosen.picks, chosen.folder / "selection.parquet")
        settings = tables.read_provenance(files.scores)["settings"] if files.scores else {}
        self.mu_sigma = settings.get("mu", 0.5), settings.get("sigma")  # of learnability (METHOD 4.3)

    def examples(self) -> list[dict[str, Any]]:
        """The first picks, and those passed over with the largest value before diversity, else the first ids."""
        left = np.setdiff1d(np.arange(len(self.pool)), self.rows)
        if self.value is not None:
            left = left[np.argsort(-self.value[left], kind="stable")]
        both = [*self.chosen.picks[:EXAMPLES].tolist(), *self.pool[left[:EXAMPLES]].tolist()]
        return [self._texts(sample) | {"pick": self._turn(sample)} for sample in both]

    def explain(self, sample: int) -> dict[str, Any]:
        """Everything about a sample as JSON could hold it; raises InputError if it could not be picked."""
        texts, turn = self._texts(sample), self._turn(sample)
        about: dict[str, Any] = texts | {"pick": turn, "budget": len(self.rows), "method": self.chosen.method.name}
        about["sentence"], about["selection"] = self.chosen.method.sentence, str(self.chosen.folder)
        if sample not in self.pool:
            about["completions"] = list(self._completions(sample))
            return about | {"left_by_its_shard": True}
        row = int(np.searchsorted(self.pool, sample))
        about |= {
            "samples": len(self.pool),
            "signals": self._signals(row),
            "completions": list(self._completions(sample)),
        }
        about |= self._diversity(row, turn)
        return about | {"places": list(self._places(row, turn)), "change": self._change(row)}

    def _turn(self, sample: int) -> int | None:
        """Its number in the order of picking, from 1; None: not picked."""
        positions = np.flatnonzero(self.chosen.picks == sample)
        return int(positions[0]) + 1 if len(positions) else None

    @cached_property
    def _table(self) -> pd.DataFrame:
        columns = ["sample_id", "split", "target_row", "history_rows"]
        return tables.read("samples", self.samples, columns).to_pandas().set_index("sample_id")

    def _texts(self, sample: int) -> dict[str, Any]:
        table = self._table
        if sample not in table.index:
            raise InputError(
                f"{self.samples} has no sample {sample}; its ids are {table.index.min()} to {table.index.max()}, "
                "and without an id the command lists some"
            )
        row: dict[Any, Any] = table.loc[sample].to_dict()
        if row["split"] != "train":
            raise InputError(f"sample {sample} belongs to {row['split']}; only samples of train can be picked")
        history = [self.titles[item] for item in row["history_rows"]]
        return {"sample_id": int(sample), "history": history, "target": self.titles[row["target_row"]]}

    def _completions(self, sample: int) -> Iterator[dict[str, Any]]:
        if self.files.rollouts is None:
            return
        columns = ["sample_id", "completion", "reward", "rank", "hit", "text"]
        table = tables.read("rollouts", self.files.rollouts, columns).to_pandas()
        for row in table[table["sample_id"] == sample].sort_values("completion").to_dict("records"):
            yield {name: row[name] for name in ("reward", "rank", "hit", "text")}

    def _signals(self, row: int) -> dict[str, dict[str, float]]:
        """Of each number that is known: the sample's, and the medians of the picks and of all samples."""
        names = ("mean_reward", "hits", "learnability", "representativeness", "gradient_norm", "influence")
        columns = {name: getattr(self.signals, name) for name in names} | {"value before diversity": self.value}
        return {
            name: {
                "sample": float(values[row]),
                "picks": float(np.median(values[self.rows])),
                "all": float(np.median(values)),
            }
            for name, values in columns.items()
            if values is not None
        }

    def _diversity(self, row: int, turn: int | None) -> dict[str, Any]:
        """D~ when it was picked or after the last pick, value and nearest pick; empty without embeddings."""
        value, vectors = self.value, self.signals.embeddings if self.vectors is None else self.vectors
        if vectors is None:
            return {}
        earlier = self.rows[: turn - 1] if turn else self.rows
        if not len(earlier):
            return {"diversity": 1.0, "value": None if value is None else float(value[row])}
        distance, nearest = nearest_picks(vectors, earlier)
        diversity = float(distance[row] / (distance.max() or 1.0))
        near = int(nearest[row])
        about = {"diversity": diversity, "value": None if value is None else diversity * float(value[row])}
        return about | {"nearest": self._pick(near) | {"distance": float(distance[row])}}

    def _pick(self, number: int) -> dict[str, Any]:
        """A pick by its number in the order of picking, from 0."""
        sample = int(self.chosen.picks[number])
        return {"pick": number + 1, "sample_id": sample, "target": self._texts(sample)["target"]}

    def _places(self, row: int, turn: int | None) -> Iterator[dict[str, Any]]:
        """Its place by every method that the signals allow; other methods than the selection's have default settings.

        place: from 1; None: not among the first `of`. drawn: another seed gives another. Methods that need no signals
        are left out.
        """
        there = {"targets"} | {
            need
            for need, value in (
                ("rewards", self.signals.mean_reward),
                ("gradients", self.signals.representativeness),
                ("errors", self.signals.error_norm),
                ("embeddings", self.signals.embeddings),
                ("influence", self.signals.influence),
            )
            if value is not None
        }
        n, budget = len(self.pool), len(self.rows)
        for name, method in registry.methods().items():
            own = name == self.chosen.method.name
            if method.takes_all or not method.needs or method.lacks(there):
                continue
            if own and turn:
                yield {"method": name, "place": turn, "of": n, "drawn": False}
                continue
            compares = {"embeddings", "influence"} & {*method.reads} & there
            count = n if not compares else min(n, AHEAD * budget) if method.factors else budget
            settings = self.chosen.settings if own else {}
            seeds = [self.chosen.seed] if compares else [self.chosen.seed, self.chosen.seed + 1]
            try:
                places = [self._place(method, count, seed, settings, row) for seed in seeds]
            except InputError:  # all samples are alike to it
                continue
            yield {"method": name, "place": places[0], "of": count, "drawn": len({*places}) > 1}

    def _place(self, method: Method, count: int, seed: int, settings: dict[str, Any], row: int) -> int | None:
        """Its number from 1 in the order of picking `count` samples by a method; None: not among them."""
        rows = method.pick(self.signals, count, np.random.default_rng(seed), **settings).rows
        at = np.flatnonzero(rows == row)
        return int(at[0]) + 1 if len(at) else None

    def _change(self, row: int) -> dict[str, Any]:
        """What decides, all else equal (see `selection.counterfactual`), or why no number of the sample does.

        The answer is {"vectors": True} where the method compares vectors alone, and {"chance": True} where it draws.
        """
        method, settings, budget = self.chosen.method, self.chosen.settings, len(self.rows)
        value, vectors = self.value, self.vectors
        if value is not None and vectors is not None:
            least = counterfactual.threshold(vectors, value, budget, row)
            test = counterfactual.picked_by_value(method, settings, row, least.value)
            answer = self._threshold(least, row) | {
                "value": float(value[row]),
                "last_value": float(value[self.rows[-1]]),
            }
        elif not method.reads or "influence" in method.needs:
            return {"chance": True}
        elif "embeddings" in method.needs:
            return {"vectors": True}
        else:
            answer, test = {}, counterfactual.picked_by_method(method, settings, row, budget, self.chosen.seed)
        return answer | {"ranges": counterfactual.ranges(self.signals, method, row, test, self.rows, self.mu_sigma)}

    def _threshold(self, least: counterfactual.Threshold, row: int) -> dict[str, Any]:
        """What greedy asks of a sample, and the picks concerned if it was passed over."""
        answer: dict[str, Any] = {"least_value": least.value, "turn": least.turn + 1}
        if row in self.rows:
            return answer
        answer["winner"] = self._pick(least.turn)
        if least.near_turn > 0:
            near = {"turn": least.near_turn + 1, "distance": least.distance, "needed": least.needed_distance}
            answer["closest"] = near | {"to": self._pick(least.nearest)}
        return answer
