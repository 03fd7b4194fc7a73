"""The recommender that a run has trained: recommend items to users (METHOD 5, without a target)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from minirec.data import splits
from minirec.data.title_lookup import TitleLookup
from minirec.data.titles import history_lines
from minirec.errors import InputError
from minirec.evaluation import ranking
from minirec.experiment import paths, sections
from minirec.experiment.paths import Run
from minirec.model import scoring
from minirec.model.engines.builtin import Builtin
from minirec.model.items import ItemEncoder, read_table
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.progress import log
from minirec.storage import artefact, tables, tensors
from minirec.storage.artefact import Provenance
from minirec.storage.code_digest import code_digest


@dataclass(frozen=True)
class Recommended:
    """What a user gets."""

    rows: list[int]  # catalogue rows, best first
    scores: list[float]  # cosines of user and items, -1 to 1
    reasoning: str  # what the policy wrote


@dataclass(frozen=True)
class TrainedRun:
    """A run that has been trained: where its files lie and the settings that made it."""

    top: Path  # results of the data set
    run: Run
    model: Path  # of the base model
    settings: dict[str, Any]
    inputs: dict[str, str]  # by name, the digest of each file that training read

    @classmethod
    def opened(cls, folder: Path) -> TrainedRun:
        """The run in results/DATASET/runs/MODEL/SELECTOR/METHOD-BUDGET/seedN; raises InputError if it is not usable."""
        located = paths.located(folder)
        if located is None:
            raise InputError(
                f"{folder} is no run; name a folder like results/DATASET/runs/MODEL/SELECTOR/METHOD-BUDGET/seed0"
            )
        top, run = located
        adapter = run.folder(top) / "adapter"
        if not (adapter / "adapter_config.json").is_file():
            raise InputError(f"{folder} has no adapter yet; minirec status {top} says what is left to run")
        artefact.verify_folder(adapter)
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not (Path(base) / "config.json").is_file():
            raise InputError(f"the base model {base} of {folder} is not there; run minirec in the project's folder")
        record = artefact.load_json(adapter / artefact.FOLDER_RECORD)
        catalogue = top / "catalogue.parquet"
        if not catalogue.is_file() or artefact.digest(catalogue) != record["inputs"]["catalogue"]:
            raise InputError(f"{catalogue} is not the catalogue that {folder} was trained with; run train again")
        if artefact.digest(Path(base)) != record["inputs"]["model"]:
            raise InputError(f"{base} is not the model that {folder} was trained from; fetch that one, or train again")
        return cls(top, run, Path(base), record["settings"], record["inputs"])

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.run.folder(self.top)

    @property
    def adapter(self) -> Path:
        """The folder of adapter and whitening."""
        return self.folder / "adapter"

    @property
    def catalogue(self) -> Path:
        """The file of the items."""
        return self.top / "catalogue.parquet"

    def require_trained_on(self, name: str, file: Path) -> None:
        """Raise InputError if a file is not the input of this name, as it was when the run was trained."""
        if not file.is_file() or artefact.digest(file) != self.inputs.get(name):
            raise InputError(f"{file} is not the {name} that {self.folder} was trained with; run train again")

    @property
    def policy(self) -> sections.Policy:
        """The settings of the policy."""
        return sections.Policy(**{k: v for k, v in self.settings.items() if k in sections.Policy.model_fields})


class Recommender:
    """Recommends items of a catalogue to users with a trained policy."""

    def __init__(self, run: TrainedRun, batch_tokens: int = sections.Passes().batch_tokens) -> None:
        """Read the catalogue; raises InputError if it is damaged, or batch_tokens below 1."""
        if batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}; it must be at least 1")
        self.run, self.max_new_tokens, self.batch_tokens = run, run.settings["max_new_tokens"], batch_tokens
        self.catalogue = tables.read("catalogue", run.catalogue).sort_by("row")

    @cached_property
    def policy(self) -> Policy:
        """The trained policy, loaded when first used: what is wrong with a history shows before."""
        return Policy.load(self.run.model, self.run.policy, self.run.adapter, self.batch_tokens)

    @cached_property
    def whitening(self) -> Whitening:
        """The whitening, with the trained head after it."""
        return Whitening.read(None, self.run.adapter)

    @cached_property
    def titles(self) -> list[str]:
        """Titles [m] by catalogue row."""
        return self.catalogue["title"].to_pylist()

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids [m] by catalogue row."""
        return self.catalogue["item_id"].to_pylist()

    @cached_property
    def lookup(self) -> TitleLookup:
        """Finds catalogue rows by titles and item ids."""
        return TitleLookup(self.item_ids, self.titles, self.catalogue["popularity"].to_pylist())

    @cached_property
    def items(self) -> Tensor:
        """Vectors of the catalogue [m, d'], whitened, with the head applied; kept in the run's folder for next time."""
        run, file = self.run, self.run.folder / "items.safetensors"
        inputs = {"catalogue": run.catalogue, "model": run.model, "adapter": run.adapter}
        provenance = Provenance("embed", run.policy.model_dump() | {"code": code_digest("embed")}, inputs)
        kept = None
        with suppress(InputError):  # there is no file yet, or it is damaged
            if tensors.read_provenance(file) == json.loads(provenance.json()):
                kept = read_table(file, run.catalogue)
        if kept is not None:
            return kept.to(self.policy.device)
        with torch.no_grad():
            encoder = ItemEncoder(self.policy, self.catalogue["text"].to_pylist())
            items = self.whitening.item(encoder.embed(what="items")).to(self.policy.device)
        try:
            tensors.write({"items": items.cpu().numpy()}, file, provenance)
        except OSError as problem:
            log.warning("the item vectors are not kept for next time (%s)", problem)
        return items

    def recommend(
        self,
        histories: Sequence[Sequence[int]],
        top: int,
        reasoning: bool = True,
        ratings: Sequence[Sequence[float | None]] | None = None,
        ages: Sequence[Sequence[int | None]] | None = None,
    ) -> list[Recommended]:
        """The `top` items for users [n], of whose histories the catalogue rows are known, oldest first.

        ratings, ages: of the items of each history, ages in milliseconds; None: not known.
        """
        unknown, shown = [[None] * len(rows) for rows in histories], slice(-self.policy.settings.prompt_history, None)
        bodies = [
            history_lines([self.titles[row] for row in rows[shown]], rated[shown], old[shown])
            for rows, rated, old in zip(histories, ratings or unknown, ages or unknown, strict=True)
        ]
        return self.recommend_to(bodies, splits.padded(pa.array(histories, pa.list_(pa.int64()))), top, reasoning)

    def recommend_to(
        self, bodies: Sequence[str], histories: np.ndarray, top: int, reasoning: bool = True
    ) -> list[Recommended]:
        """The `top` items for each user [n]; none of the user's history.

        bodies: the histories as they stand in the prompt. histories: all their catalogue rows [n, w], padded with -1.
        reasoning: let the policy write first, greedily.
        """
        answers: dict[int, Recommended] = {}
        branch, seen = 0 if reasoning else 1, torch.as_tensor(histories)
        tokens = self.max_new_tokens if reasoning else 0
        for rows, scores, written in ranking.scored(Builtin(self.policy), self.whitening, self.items, bodies, tokens):
            best, values = scoring.best(scores[branch], seen[rows].to(scores[branch].device), top)
            for place, row in enumerate(rows):
                kept = best[place] >= 0
                cosines = (values[place][kept] * self.policy.settings.tau).tolist()
                text = self.policy.tokenizer.decode(written.tokens[place][branch], skip_special_tokens=True).strip()
                answers[row] = Recommended(best[place][kept].tolist(), cosines, text)
        return [answers[row] for row in range(len(bodies))]
