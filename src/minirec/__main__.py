"""The command line: one sub-command a stage, its flags made from its section of the configuration.

A stage's module is imported only when it runs, so `--help` needs neither torch nor pandas.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import re
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirec import __version__, launch
from minirec.errors import InputError

if TYPE_CHECKING:
    from minirec import config

MACHINE = {  # errors of the machine, not of minirec, and what to do about them
    errno.ENOSPC: "free some space and start again",
    errno.EDQUOT: "free some space and start again",
    errno.EACCES: "give yourself the right to read and write there and start again",
    errno.EPERM: "give yourself the right to read and write there and start again",
    errno.EROFS: "the results need a folder that can be written; set results in the configuration",
    errno.EIO: "the disk or its network failed; start again",
}


@dataclass(frozen=True)
class Option:
    """A flag that is no setting: a path, a name, a wildcard of the workflow."""

    name: str
    help: str
    type: Any = Path
    required: bool = True
    many: bool = False
    default: Any = None


SAMPLES = Option("samples", "samples.parquet")
CATALOGUE = Option("catalogue", "catalogue.parquet")
ITEMS = Option("items", "item table, items.safetensors")
WHITENING = Option("whitening", "whitening.safetensors: of the base model, or in the folder of an adapter")
ROLLOUTS = Option("rollouts", "rollouts.parquet")
TRUNK = Option("trunk", "trunk.safetensors of the base model")
MODEL = Option("model", "folder of the base model")
ADAPTER = Option("adapter", "folder of the LoRA adapter; without it: the base model", required=False)
SEED = Option("seed", "seed", int)
OUT = Option("out", "file or folder to write")
RUN = Option("run", "runs, as MODEL/SELECTOR/METHOD-BUDGET/seedN", str, many=True)

STAGES: dict[str, tuple[str, tuple[Option, ...]]] = {
    "fetch": (
        "Get a data set or a model and convert it; nothing is filtered.",
        (
            Option("dataset", "name of the data set to fetch", str, required=False),
            Option("model", "name of the model to fetch", str, required=False),
            Option("source", "its entry in the configuration, as JSON", str),
            Option("items", "items.parquet whose titles train a tiny model's tokenizer", required=False),
            Option("out", "folder to write"),
        ),
    ),
    "prepare": (
        "Filter the interactions and cut them into samples, split by time (METHOD 1).",
        (
            Option("interactions", "interactions.parquet"),
            Option("items", "items.parquet"),
            Option("filter", "the data set's filter, as JSON", str),
            Option("out", "folder for samples.parquet, catalogue.parquet and prepare.json"),
        ),
    ),
    "embed": (
        "Embed the catalogue; from the base model also fit the whitening (METHOD 2).",
        (
            SAMPLES,
            CATALOGUE,
            MODEL,
            ADAPTER,
            Option("whitening", "whitening.safetensors: written from the base model, read with an adapter"),
            Option("trunk", "trunk.safetensors: written from the base model, read with an adapter"),
            OUT,
        ),
    ),
    "rollout": (
        "Let the proxy try every training sample (METHOD 4.2).",
        (
            SAMPLES,
            CATALOGUE,
            ITEMS,
            WHITENING,
            MODEL,
            ADAPTER,
            Option("shard", "which part of the work, from 0", int, required=False),
            Option("rollouts", "rollouts.parquet to write"),
            Option("hidden", "hidden.safetensors to write"),
        ),
    ),
    "gather": (
        "Join the shards of a rollout.",
        (
            Option("rollout-shards", "rollouts.parquet of every shard", many=True),
            Option("hidden-shards", "hidden.safetensors of every shard", many=True),
            Option("rollouts", "rollouts.parquet to write"),
            Option("hidden", "hidden.safetensors to write"),
        ),
    ),
    "gradient": (
        "Gradient and Hessian-vector product of the item loss, and embeddings (METHOD 4.4, 4.5).",
        (
            SAMPLES,
            ITEMS,
            WHITENING,
            ROLLOUTS,
            Option("hidden", "hidden.safetensors"),
            Option("catalogue", "catalogue.parquet; for --space lora", required=False),
            Option("model", "folder of the base model; for --space lora", required=False),
            Option("adapter", "folder of the proxy's LoRA adapter; for --space lora", required=False),
            Option("gradients", "gradients.safetensors to write"),
            Option("embeddings", "embeddings.safetensors to write"),
        ),
    ),
    "score": (
        "Score every sample's learnability and representativeness (METHOD 4.3, 4.4).",
        (ROLLOUTS, Option("gradients", "gradients.safetensors"), OUT),
    ),
    "select": (
        "Keep the best samples within the budget, each unlike those already kept (METHOD 4.6).",
        (
            Option("samples", "samples.parquet"),
            Option("scores", "scores.parquet; not for random and full", required=False),
            Option("embeddings", "embeddings.safetensors; not for random and full", required=False),
            Option("method", "minirec, random or full", str),
            Option("budget", "samples to keep, or all", str),
            SEED,
            Option("shard", "pick in this part of the samples only, from 0", int, required=False),
            Option("winners", "selections of all parts, to pick from", required=False, many=True),
            OUT,
        ),
    ),
    "curriculum": (
        "Order the selection from easy to hard within shuffled groups (METHOD 4.7).",
        (
            Option("selection", "selection.parquet"),
            Option("scores", "scores.parquet; without it the order of the selection stays", required=False),
            OUT,
        ),
    ),
    "train": (
        "Train a fresh policy on the curriculum, or a proxy on random samples (METHOD 3).",
        (
            SAMPLES,
            CATALOGUE,
            ITEMS,
            WHITENING,
            TRUNK,
            MODEL,
            Option("curriculum", "curriculum.parquet; without it: a proxy on random samples", required=False),
            SEED,
            Option("processes", "processes a node that share every step, one a GPU", int, required=False, default=1),
            Option("nodes", "nodes of a Slurm job that share every step", int, required=False, default=1),
            Option("history", "history.parquet to write"),
            Option("out", "folder of the adapter to write"),
        ),
    ),
    "evaluate": (
        "Rank the whole catalogue for every test sample (METHOD 5).",
        (
            SAMPLES,
            CATALOGUE,
            Option("items", "item table; without it: computed", required=False),
            WHITENING,
            Option("trunk", "trunk.safetensors of the base model", required=False),
            MODEL,
            ADAPTER,
            Option("ranks", "ranks.parquet to write"),
            OUT,
        ),
    ),
    "references": (
        "Rank the test samples with popularity, TF-IDF and item transitions (METHOD 5).",
        (SAMPLES, CATALOGUE, Option("ranks", "references.parquet to write"), OUT),
    ),
    "summarise": (
        "Gather metrics, costs and pictures of the main experiment.",
        (
            Option("results", "folder of the data set's results"),
            Option("main", "the experiment, as JSON", str),
            RUN,
            Option("job", "jobs whose cost counts, as names of their benchmark files", str, many=True),
            OUT,
        ),
    ),
    "compare": (
        "Gather the runs of the configuration's grid in one table and picture.",
        (
            Option("results", "folder of the data set's results"),
            RUN,
            OUT,
        ),
    ),
    "show": ("Print an artefact: what made it, its columns, counts and first rows.", ()),
    "plan": ("Say what each stage of a target will roughly need.", ()),
    "status": ("Say what is done, running, failed or stale, and what the rest will take.", ()),
}


def parser(asked: str | None = None) -> argparse.ArgumentParser:
    """The parser of every sub-command; where one is asked for, the others go without the flags of their settings."""
    top = argparse.ArgumentParser(prog="minirec", description=sys.modules["minirec"].__doc__)
    top.add_argument("--version", action="version", version=f"minirec {__version__}")
    commands = top.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for stage, (sentence, options) in STAGES.items():
        command = commands.add_parser(stage, help=sentence, description=sentence, allow_abbrev=False)
        if stage == "show":
            command.add_argument("file", type=Path, help="Parquet, safetensors or JSON file, or an adapter's folder")
            command.add_argument("--rows", type=int, default=5, help="rows to print")
        elif stage == "plan":
            command.add_argument("target", help="e.g. results/cds/metrics.json")
            command.add_argument("--config", type=Path, nargs="+", default=[Path("config/config.yaml")])
        elif stage == "status":
            command.add_argument("folder", type=Path, help="results of a data set, e.g. results/cds")
            command.add_argument("--config", type=Path, nargs="+", default=[Path("config/config.yaml")])
        for option in options:
            command.add_argument(
                f"--{option.name}",
                type=option.type,
                required=option.required,
                default=option.default,
                nargs="+" if option.many else None,
                help=option.help,
                metavar=option.name.upper().replace("-", "_"),
            )
        if options:
            command.add_argument("--log", type=Path, metavar="FILE", help="write the log there, too")
            command.add_argument(
                "--wildcards", type=_pair, nargs="+", metavar="NAME=VALUE", help="what the log says the job is for"
            )
        if asked in (None, stage):
            _add_settings(command, stage)
    return top


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _add_settings(command: argparse.ArgumentParser, stage: str) -> None:
    """A flag for every setting that a stage reads."""
    from minirec import config  # takes as long as all else that --help needs

    if stage in config.SECTIONS:
        settings = command.add_argument_group("settings", "values as in config/config.yaml")
        for _, name, meaning in config.fields(stage):
            settings.add_argument(config.flag(name), required=True, metavar="VALUE", help=meaning.replace("%", "%%"))


def sections(stage: str, given: dict[str, Any]) -> dict[str, config.Section]:
    """The checked sections a stage reads, out of the parsed flags; raises InputError where one is wrong."""
    import yaml

    from minirec import config

    values: dict[str, dict[str, Any]] = {}
    for section, name, _ in config.fields(stage) if stage in config.SECTIONS else ():
        text = given.pop(name)
        try:
            values.setdefault(section, {})[name] = yaml.safe_load(text)
        except config.NOT_YAML as error:
            raise InputError(f"{config.flag(name)} is {text!r}, which is not YAML; put quotes around it") from error
    return {section: config.section(section, found) for section, found in values.items()}


class Terminated(BaseException):
    """Somebody asked the job to end; not an Exception, so that nothing catches it on the way out."""


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = vars(parser(next((word for word in arguments if word in STAGES), "")).parse_args(arguments))
    stage = given.pop("stage")
    try:
        several = launch.command(arguments, given.pop("processes", 1), given.pop("nodes", 1), os.environ)
        if several:
            os.execvp(several[0], several)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    from minirec.progress import Job, log, start_log

    file, wildcards = given.pop("log", None), dict(given.pop("wildcards", None) or ())
    if (rank := int(os.environ.get("RANK", "0"))) > 0:  # one process speaks for all
        file = None
    try:
        start_log(stage, file)
        log.setLevel("ERROR" if rank else "INFO")
        job = Job(stage, file, wildcards)
    except OSError as error:
        sys.stderr.write(f"error: the log {file} cannot be written ({error.strerror})\n")
        return 1
    former = signal.signal(signal.SIGTERM, _terminate)  # so that half-written files are removed
    status, reason = 70, "failed"
    try:
        status, reason = _run(stage, given)
    except Terminated:
        log.error("terminated")
        status, reason = 128 + signal.SIGTERM, "terminated"
    except KeyboardInterrupt:
        log.error("interrupted")
        status, reason = 128 + signal.SIGINT, "interrupted"
    finally:
        signal.signal(signal.SIGTERM, former)
        with contextlib.suppress(OSError):  # a full disk
            job.end(reason)
    return status


def _run(stage: str, given: dict[str, Any]) -> tuple[int, str]:
    """Run a stage; returns the exit status and the reason of the end."""
    from minirec.progress import log

    try:
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; the package's own become lines
        warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to each other
        given |= sections(stage, given)
        importlib.import_module(f"minirec.{stage}").run(**given)
    except InputError as error:
        log.error("error: %s", error)
        return 1, f"error: {error}"
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, "the reader of its output went away"
    except MemoryError:
        log.error("error: out of memory; give the stage more in workflow/resources.yaml")
        return 1, "error: out of memory"
    except Exception as error:
        if (number := _errno(error)) not in MACHINE:
            log.exception("failed; this is a defect of minirec")
            return 70, f"defect: {error!r}"
        file = getattr(error, "filename", None)
        what = os.strerror(number) + (f" ({file})" if file else "")
        log.error("error: %s; %s", what, MACHINE[number])
        return 1, f"error: {what}"
    return 0, "done"


def _errno(error: Exception) -> int:
    """Number of the operating system's error, also where only the message of a library in Rust holds it; else 0."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
