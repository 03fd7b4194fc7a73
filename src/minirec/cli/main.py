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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirec import __version__
from minirec.cli import launch
from minirec.cli.options import STAGES
from minirec.errors import InputError

if TYPE_CHECKING:
    from minirec.experiment import config

OWN = ("show", "plan", "status")  # sub-commands that are no stages
MACHINE = {  # errors of the machine, not of minirec, and what to do about them
    errno.ENOSPC: "free some space and start again",
    errno.EDQUOT: "free some space and start again",
    errno.EACCES: "give yourself the right to read and write there and start again",
    errno.EPERM: "give yourself the right to read and write there and start again",
    errno.EROFS: "the results need a folder that can be written; set results in the configuration",
    errno.EIO: "the disk or its network failed; start again",
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
    from minirec.experiment import config  # takes as long as all else that --help needs

    if stage in config.SECTIONS:
        settings = command.add_argument_group("settings", "values as in config/config.yaml")
        for _, name, meaning in config.fields(stage):
            settings.add_argument(config.flag(name), required=True, metavar="VALUE", help=meaning.replace("%", "%%"))


def sections(stage: str, given: dict[str, Any]) -> dict[str, config.Section]:
    """The checked sections a stage reads, out of the parsed flags; raises InputError where one is wrong."""
    import yaml

    from minirec.experiment import config

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


def runner(name: str) -> Callable[..., None]:
    """The function behind a sub-command: `run` of the module of that name, in `cli` or in `stages`."""
    room = "cli" if name in OWN else "stages"
    run: Callable[..., None] = importlib.import_module(f"minirec.{room}.{name}").run
    return run


def _run(stage: str, given: dict[str, Any]) -> tuple[int, str]:
    """Run a stage; returns the exit status and the reason of the end."""
    from minirec.progress import log

    try:
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; the package's own become lines
        warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to each other
        given |= sections(stage, given)
        runner(stage)(**given)
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
