"""The flags of every sub-command, and how their values become the parameters of its `run`."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from minirec import __version__
from minirec.cli.main import TYPED
from minirec.experiment import config
from minirec.experiment.commands import STAGES, Flag, command, flag, parse, scalar
from minirec.experiment.sections import Passes, Processes

FILES = {  # help for flags that name a file or folder
    "adapter": "folder of a LoRA adapter, with its whitening",
    "baselines": "baselines.parquet: ranks of recommenders without a language model",
    "before": "ranks.parquet of the policy before RL, to compare with",
    "catalogue": "catalogue.parquet: the items that can be recommended",
    "comparison": "comparison.parquet; its folder must be the data set's results, which hold the runs",
    "curriculum": "curriculum.parquet: the selected samples in training order",
    "dropped": "prepare.json: how much was dropped, and why",
    "embeddings": "embeddings.safetensors: vectors in which the picks shall differ",
    "frozen_states": "frozen_states.safetensors: the items' states after the frozen layers of the base model",
    "gradients": "gradients.safetensors: gradient, Hessian-vector product and error of every training sample",
    "hidden": "hidden.safetensors: the hidden state of every completion",
    "history": "history.parquet: losses, rewards and times of every training step",
    "influences": "influences.parquet: how much a small recommender needs every training sample",
    "interactions": "interactions.parquet: user, item, time and rating",
    "item_metadata": "items.parquet: title and other data of every item",
    "item_table": "items.safetensors: the vector of every item",
    "metrics": "metrics.json; for summarise, its folder must be the data set's results",
    "model": "folder of the base model",
    "out": "file to write",
    "ranks": "ranks.parquet: the rank of every test sample's target",
    "rollouts": "rollouts.parquet: the completions and their rewards",
    "samples": "samples.parquet: history and target of every sample",
    "scores": "scores.parquet: the signals of every training sample",
    "selection": "selection.parquet: the picked samples",
    "shards_folder": "folder with the files of the shards, in folders 0, 1, …",
    "summary": "summary.txt: the text that the terminal shows",
    "tests": "comparison.json: paired tests of all configurations against the main one, random samples and all",
    "text": "comparison.txt: the text that the terminal shows",
    "users": "users.safetensors: the base model's vector of every training sample",
    "whitening": "whitening.safetensors of the base model",
}
VALUES = {  # help for flags that are neither a file nor a setting
    "budget": "number of samples to keep, or all",
    "folders": "folders below the data set's results whose jobs count as cost",
    "filter": "filter of the data set, as JSON",
    "format": "time_unit and cast of the data set, as JSON",
    "method": "a selection method",
    "runs": "runs, as MODEL/SELECTOR/METHOD-BUDGET/seedN",
    "seed": "seed of the random numbers",
    "least_samples": "stop at once if there are fewer training samples",
    "shards": "number of shards",
    "selection_logs": "logs of the jobs that a selection takes: SELECTOR/METHOD:PATTERN:PATTERN…",
    "shared_signals": "true where all runs have the signals of one seed, else false",
    "shard": "number of the shard to work on, from 0; without it, on all samples",
    "source": "entry of the data set or model in the configuration, as JSON",
}
EXAMPLES = {
    "pick": "example: minirec pick completions/ --budget 1024 --out picks.jsonl --control random",
    "show": "example: minirec show results/movielens/metrics.json",
    "why": "example: minirec why results/movielens/selections/smollm/learnable-160/seed0 30808",
    "recommend": 'example: minirec recommend results/movielens/runs/…/seed0 --history "Fargo (1996); Heat (1995)"',
    "export": "example: minirec export model results/movielens/runs/…/seed0 --out recommender",
    "plan": "example: minirec plan results/movielens/metrics.json --configfile config/quickstart.yaml",
    "report": "example: minirec report results/movielens",
    "status": "example: minirec status results/movielens",
    "select": (
        "example: minirec select --samples samples.parquet --scores scores.parquet --embeddings embeddings.safetensors "
        "--budget 160 --out selection.parquet"
    ),
}
METHOD = "METHOD refers to docs/METHOD.md in the repository."
AsWritten = argparse.RawDescriptionHelpFormatter
CONFIGFILE = "YAML files that override the defaults, later ones also the earlier ones"


def parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these arguments; only the sub-command that they name has its flags."""
    chosen = next((word for word in arguments if not word.startswith("-")), "")
    top = argparse.ArgumentParser(prog="minirec", description=_overview(), formatter_class=AsWritten)
    top.add_argument("--version", action="version", version=f"minirec {__version__}")
    commands = top.add_subparsers(dest="stage", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    names = [*TYPED, *STAGES]
    if chosen and chosen not in names and (close := difflib.get_close_matches(chosen, names, n=1)):
        top.error(f"there is no command {chosen}; did you mean {close[0]}?")
    for name, sentence in TYPED.items():
        added = commands.add_parser(
            name, description=sentence, epilog=EXAMPLES[name], formatter_class=AsWritten, allow_abbrev=False
        )
        _add_typed(added, name)
    for name in STAGES:
        about = f"{command(name).sentence}\n\n{METHOD}"
        added = commands.add_parser(
            name, description=about, epilog=EXAMPLES.get(name), formatter_class=AsWritten, allow_abbrev=False
        )
        if name == chosen:
            _add_stage(added, name)
    return top


def with_sections(stage: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a stage's `run` from its flags, settings as checked sections; raises InputError."""
    if stage in TYPED:
        return flags
    layers = config.merged(*(flags.pop("configfile", None) or ()))
    names = {flag.name for flag in command(stage).flags}
    words = {name: value for name, value in flags.items() if name not in names and value is not None}
    sections = parse(stage, words, layers)
    sections.pop(Processes.__name__.lower(), None)  # `launch` has used it
    return {name: value for name, value in flags.items() if name in names} | sections


def _overview() -> str:
    """The text of `minirec --help`: the commands for people, then the stages."""
    lines = [sys.modules["minirec"].__doc__ or "", "", "commands:"]
    lines += [f"  {name:<12}{sentence}" for name, sentence in TYPED.items()]
    lines += ["", "stages, which the workflow runs and which can be run by hand:"]
    lines += [f"  {name:<12}{command(name).sentence}" for name in STAGES]
    return "\n".join([*lines, "", f"`minirec COMMAND --help` says more. {METHOD}"])


def _add_typed(added: argparse.ArgumentParser, name: str) -> None:
    if name == "show":
        added.add_argument("file", type=Path, help="Parquet, safetensors or JSON file, or a folder")
        added.add_argument("--rows", type=int, default=5, help="rows to print (default: 5)")
        return
    if name == "pick":
        _add_pick(added)
        return
    if name == "recommend":
        _add_recommend(added)
        return
    if name == "export":
        added.add_argument("what", choices=("model", "samples"), help="a folder for transformers, or training samples")
        added.add_argument("folder", type=Path, metavar="RUN", help="folder of a run, …/seedN")
        added.add_argument("--out", type=Path, required=True, help="folder; of samples also .jsonl or .parquet")
        _add_batch_tokens(added, "of model: ")
        return
    if name == "why":
        added.add_argument("folder", type=Path, metavar="RUN", help="folder of a run or of a selection, …/seedN")
        added.add_argument("sample", type=int, nargs="?", help="sample id; without one, some are listed")
        added.add_argument("--json", action="store_true", help="print JSON")
        return
    if name == "plan":
        added.add_argument("target", help="e.g. results/cds/metrics.json")
        added.add_argument(
            "--gpu", metavar="NAME", help="hours and memory on this GPU, e.g. h100, by make bench-gpu's rates"
        )
        added.add_argument("--gpu-rates", type=Path, metavar="FILE", help="its rows (default: docs/results/gpu.csv)")
    else:
        added.add_argument("folder", type=Path, help="results of a data set, e.g. results/cds")
    if name == "report":
        added.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: FOLDER/report.html)")
    added.add_argument("--configfile", type=Path, nargs="+", metavar="FILE", help=f"{CONFIGFILE}, config/config.yaml")


def _add_recommend(added: argparse.ArgumentParser) -> None:
    added.add_argument("folder", type=Path, metavar="RUN", help="folder of a run, …/seedN")
    added.add_argument("--history", metavar="TITLES", help="titles or item ids of the catalogue, oldest first, with ;")
    columns = "history (lists of titles or ids) and, if known, user_id, history_rating, history_age_ms"
    added.add_argument("--users", type=Path, metavar="FILE", help=f"Parquet: {columns}")
    added.add_argument("--out", type=Path, metavar="FILE", help="with --users: Parquet, a row a user")
    added.add_argument("--top", type=int, default=10, metavar="N", help="items to recommend (default: 10)")
    added.add_argument("--no-reasoning", dest="reasoning", action="store_false", help="recommend without writing first")
    added.add_argument("--json", action="store_true", help="print JSON")
    _add_batch_tokens(added)


def _add_batch_tokens(added: argparse.ArgumentParser, of: str = "") -> None:
    tokens = Passes.model_fields["batch_tokens"]
    added.add_argument("--batch-tokens", type=int, default=tokens.default, metavar="N", help=of + _setting(tokens))


def _add_pick(added: argparse.ArgumentParser) -> None:
    from minirec.selection.methods.registry import methods, settings

    given = {"rewards", "embeddings", "gradients"}
    free = sorted(name for name, one in methods().items() if {*one.needs} <= given)
    added.add_argument(
        "rollouts",
        type=Path,
        nargs="+",
        help="files, or folders of them: Parquet, JSON lines, JSON, CSV or TSV, with a row a completion or a list of "
        "rewards a prompt. The logs of TRL, verl, OpenRLHF, SkyRL, NeMo-Gym and minirec are recognised",
    )
    added.add_argument("--budget", type=int, required=True, metavar="N", help="number of prompts to pick")
    added.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".jsonl or .parquet: the prompts; .txt: their --id; a folder: for load_from_disk of datasets",
    )
    added.add_argument("--method", default="learnable", choices=free, metavar="NAME", help=", ".join(free))
    added.add_argument(
        "--control", choices=free, metavar="NAME", help="also write as many prompts by this method, such as random"
    )
    added.add_argument("--prompt", metavar="COLUMN", help="column of the prompts; without it, recognised")
    added.add_argument("--reward", nargs="+", metavar="COLUMN", help="columns of rewards that add up; or recognised")
    added.add_argument("--id", metavar="COLUMN", help="column that names a prompt, for .txt and vectors")
    added.add_argument(
        "--which",
        choices=("all", "first", "last"),
        default="all",
        help="of a prompt's rollouts in several steps or files: all (default), or the first or last alone",
    )
    added.add_argument(
        "--diversity",
        default="none",
        metavar="HOW",
        help="vectors in which picks shall differ: none (default), tfidf of the prompts' words, or the folder of a "
        "sentence encoder",
    )
    file = "FILE of .npy, .npz, .safetensors or .parquet with a vector a prompt"
    added.add_argument("--embeddings", type=Path, metavar="FILE", help=f"{file}, in which picks shall differ")
    added.add_argument("--gradients", type=Path, metavar="FILE", help=f"{file}, for minirec, product, grand, …")
    added.add_argument(
        "--order",
        choices=("curriculum", "picks"),
        default="curriculum",
        help="of the file: easy to hard within groups (default), or as picked",
    )
    added.add_argument("--group-size", type=int, default=64, metavar="N", help="prompts of a group (default: 64)")
    added.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn at random (default: 0)")
    added.add_argument(
        "--dataset", type=Path, metavar="PATH", help="the training data: the picks are its rows, with all their columns"
    )
    added.add_argument("--on", metavar="COLUMN", help="column in logs and --dataset by which rows are found, or prompt")
    added.add_argument("--layout", choices=("logged", "verl"), default="logged", help="columns: as logged, or verl's")
    added.add_argument("--answer", metavar="COLUMN", help="of --layout verl: the right answers; without it, recognised")
    added.add_argument("--data-source", metavar="NAME", help="of --layout verl: data_source of all prompts")
    added.add_argument("--report", type=Path, metavar="FILE", help=".html: a page with charts and the picks to search")
    for name, (_, default, users) in settings().items():
        if set(users) & set(free):
            added.add_argument(flag(name), metavar="VALUE", help=f"of {', '.join(users)} (default: {scalar(default)})")


def _add_stage(added: argparse.ArgumentParser, stage: str) -> None:
    reads = added.add_argument_group("reads")
    writes = added.add_argument_group("writes")
    kinds: dict[str, Callable[[str], Any]] = {"int": int, "str": str, "bool": _switch}
    several_outputs = sum(one.writes for one in command(stage).flags) > 1
    for one in command(stage).flags:
        names = [flag(one.name)]
        if one.writes and not several_outputs and one.name != "out":
            names.append("--out")
        (writes if one.writes else reads).add_argument(
            *names,
            dest=one.name,
            type=kinds.get(one.kind.removeprefix("list[").removesuffix("]"), Path),
            required=one.required,
            default=one.default,
            nargs="+" if one.several else None,
            metavar=one.name.upper(),
            help=_meaning(one),
        )
    settings = added.add_argument_group("settings")
    for _, name, field in command(stage).settings():
        number: dict[str, Any] = {"type": int, "default": 1} if name in Processes.model_fields else {}
        settings.add_argument(flag(name), metavar="VALUE", help=_setting(field), **number)
    settings.add_argument("--configfile", type=Path, nargs="+", metavar="FILE", help=CONFIGFILE)
    added.add_argument("--log", type=Path, metavar="FILE", help="also write the log to this file")
    added.add_argument("--made-by", metavar="DIGEST", help="noted in the log: of the settings and code behind the job")
    added.add_argument(
        "--wildcards", type=_pair, nargs="+", metavar="NAME=VALUE", help="noted in the log: which files the job is for"
    )


def _meaning(one: Flag) -> str:
    text = FILES.get(one.name) or VALUES[one.name]
    if one.name == "method":
        from minirec.selection.methods.registry import methods

        text = "; ".join(f"{name}: {method.sentence}" for name, method in methods().items())
    return (text if one.default is None else f"{text} (default: {one.default})").replace("%", "%%")


def _setting(field: FieldInfo) -> str:
    default = scalar(field.get_default(call_default_factory=True))
    return f"{field.description} (default: {default})".replace("%", "%%")


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return text == "true"


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value
