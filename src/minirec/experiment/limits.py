"""Settings that ask for more than there is, refused as early as it is known: when the workflow is planned, or after."""

from __future__ import annotations

import json
from pathlib import Path

from minirec.errors import InputError
from minirec.experiment import paths
from minirec.experiment.config import Config
from minirec.experiment.sources import Format
from minirec.storage import artefact, user_files


def require(config: Config, top: Path, runs: list[paths.Run]) -> None:
    """Raise InputError if runs in `top`, results of a data set, cannot be made as configured, as far as is known."""
    for run in runs:
        if run.selector != "none" and not config.by_heads(run.method):  # heads train on all samples
            require_samples(config, top, "proxy.size", config.varied(run.method).proxy.size)
        if run.budget != "all":
            require_samples(config, top, "the budget", int(run.budget))
        for model in {run.model, run.selector} - {"none"}:
            require_model(config, model)


def require_samples(config: Config, top: Path, what: str, count: int) -> None:
    """Raise InputError if `count` exceeds the training samples; what: the setting that asks for them."""
    available, most = _prepared(config, top), config.prepare.max_train
    if available is None and most is not None and count > most:
        raise InputError(f"{what} is {count}, but prepare.max_train is {most}; lower the one or raise the other")
    if available is not None:
        require_at_least(count, available, what)


def require_at_least(count: int, available: int, what: str = "the budget or proxy.size") -> None:
    """Raise InputError if fewer than `count` training samples are available.

    >>> require_at_least(2, 2)
    """
    if count > available:
        raise InputError(
            f"{what} is {count}, but there are only {available} training samples; lower it, or prepare more samples"
        )


def require_model(config: Config, name: str) -> None:
    """Raise InputError if a model's own folder lacks files."""
    source = config.models[name]
    if source.source == "folder" and not (paths.MODELS / name).exists():
        _require_files(f"models.{name}.path", Path(str(source.path)))


def _require_files(setting: str, folder: Path) -> None:
    needed = {
        "config.json": "config.json",
        "weights in safetensors": "*.safetensors",
        "tokenizer.json": "tokenizer.json",
    }
    missing = [what for what, pattern in needed.items() if not any(folder.glob(pattern))]
    if missing:
        raise InputError(f"{setting} is {folder}, which has no {' and no '.join(missing)}; name the folder of a model")


def _prepared(config: Config, top: Path) -> int | None:
    """Number of training samples, if prepare has run with these settings since the data set last changed."""
    report, dataset = top / "prepare.json", config.datasets[top.name]
    try:
        interactions = user_files.find(Path("data", top.name), "interactions")
        files = user_files.parts(interactions) if interactions else []
        if any(file.stat().st_mtime > report.stat().st_mtime for file in files):
            return None
        record = artefact.load_json(report)
        stored, train = record["provenance"]["settings"], record["train"]
    except (InputError, OSError, KeyError, TypeError):
        return None
    used = config.prepare.model_dump() | {"filter": dataset.filter.model_dump()}
    used["format"] = dataset.model_dump(include=set(Format.model_fields))
    settings = json.loads(json.dumps(used, default=str))
    return int(train) if all(stored.get(name) == value for name, value in settings.items()) else None
