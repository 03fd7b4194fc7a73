"""The command line: a sub-command for each stage, made from the parameters of its `run`, and show, plan and status.

A stage's module is imported only when it runs, so `--help` needs neither torch nor pandas.
"""

from __future__ import annotations

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
from typing import Any

from minirec.cli import gpus, launch, out_of_memory
from minirec.errors import InputError
from minirec.experiment.commands import command

TYPED = {  # sub-commands that are no stages
    "pick": "Pick the prompts to train on from rollouts that any library logged.",
    "show": "Print what made a file, its columns with their meaning, counts and first rows.",
    "why": "Print why a sample was picked or passed over, and what would have to change.",
    "recommend": "Print what a trained run recommends to a user, or write it for many.",
    "export": "Write a trained run's model for transformers, or its samples for other trainers.",
    "plan": "Estimate what each stage of a target will need: jobs, tokens, disk and memory.",
    "report": "Write one HTML page about a finished experiment: the answer, the picks, the signals, the costs.",
    "status": "Print which jobs are done, running, failed or stale, and how long the rest will take.",
}
MACHINE = {  # errors that are not minirec's fault, and what to do about them
    errno.ENOSPC: "free some space and start again",
    errno.EDQUOT: "free some space and start again",
    errno.EACCES: "give yourself the right to read and write there and start again",
    errno.EPERM: "give yourself the right to read and write there and start again",
    errno.EROFS: "the results need a folder that can be written; set results in the configuration",
    errno.EIO: "the disk or its network failed; start again",
}
EXTRAS = {  # the extra of pyproject.toml that brings a library
    **dict.fromkeys(("torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf"), "train"),
    **dict.fromkeys(("huggingface_hub", "httpx", "tokenizers"), "train"),
    **dict.fromkeys(("matplotlib", "jinja2", "pandas"), "report"),
    "snakemake": "workflow",
}


class Terminated(BaseException):
    """The job got the signal to end; not an Exception, so that no handler of errors catches it."""


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def main(arguments: list[str] | None = None) -> int:
    """Run the sub-command of a command line, by default the program's; returns the exit status."""
    from minirec.cli.parser import parser

    arguments = sys.argv[1:] if arguments is None else arguments
    flags = vars(parser(arguments).parse_args(arguments))
    stage = flags.pop("stage")
    try:
        processes, nodes = flags.pop("processes", 1), flags.pop("nodes", 1)
        if stage not in TYPED and "passes" in command(stage).sections:  # it runs the language model
            gpus.choose(processes, os.environ)
        launcher = launch.command(arguments, processes, nodes, os.environ)
        if launcher:
            os.execvp(launcher[0], launcher)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    from minirec.progress import Job, log, start_log

    file, wildcards = flags.pop("log", None), dict(flags.pop("wildcards", None) or ())
    notes = {"made_by": flags.pop("made_by", None), "outputs": _outputs(stage, flags, file)}
    if (rank := int(os.environ.get("RANK", "0"))) > 0:  # rank 0 writes the log
        file = None
    try:
        start_log(stage, file)
        log.setLevel("ERROR" if rank else "INFO")
        job = Job(stage, file, wildcards, **notes)
    except OSError as error:
        sys.stderr.write(f"error: the log {file} cannot be written ({error.strerror})\n")
        return 1
    former = signal.signal(signal.SIGTERM, _terminate)  # so that half-written files are removed
    status, reason = 70, "failed"
    try:
        status, reason = _run(stage, flags)
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
    from minirec.progress import loaded

    room = "cli" if name in TYPED else "stages"
    run: Callable[..., None] = importlib.import_module(f"minirec.{room}.{name}").run
    loaded()
    return run


def _run(stage: str, flags: dict[str, Any]) -> tuple[int, str]:
    """Run a sub-command; returns the exit status, and "done" or why it failed."""
    from minirec.cli.parser import with_sections
    from minirec.progress import log, note

    given: dict[str, Any] = {}
    try:
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; the package's own become lines
        warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to each other
        given = with_sections(stage, flags)
        runner(stage)(**given)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, "the reader of its output went away"
    except Exception as error:
        if cause := out_of_memory.cause(error):
            error = InputError(out_of_memory.sentence(stage, given, cause))
        elif isinstance(error, ModuleNotFoundError) and (library := (error.name or "").partition(".")[0]) in EXTRAS:
            error = InputError(f'{stage} needs {library}; pip install "minirec[{EXTRAS[library]}]"')
        if isinstance(error, InputError):
            log.error("error: %s", error)
            return 1, f"error: {error}"
        if (number := _errno(error)) not in MACHINE:
            log.exception("failed; this is a defect of minirec")
            return 70, f"defect: {error!r}"
        file = getattr(error, "filename", None)
        what = os.strerror(number) + (f" ({file})" if file else "")
        log.error("error: %s; %s", what, MACHINE[number])
        return 1, f"error: {what}"
    if stage not in TYPED:
        note(flop=_operations(stage, given))
    return 0, "done"


def _operations(stage: str, given: dict[str, Any]) -> float:
    """Operations of the work of a stage that has ended; 0 if they are not known."""
    from minirec.planning.jobs import work_done

    try:
        return work_done(stage, given).flop
    except Exception:  # they serve estimates only, and the stage has succeeded
        return 0.0


def _outputs(stage: str, flags: dict[str, Any], log: Path | None) -> list[str]:
    """The files that a stage writes, relative to the folder of its log, so that both can be copied elsewhere."""
    if log is None or stage in TYPED:
        return []
    names = (one.name for one in command(stage).flags if one.writes)
    return [os.path.relpath(flags[name], log.parent) for name in names if flags.get(name)]


def _errno(error: Exception) -> int:
    """Number of an error of the operating system, also of one that a library in Rust only mentions; else 0."""
    if isinstance(error, OSError):
        return error.errno or 0
    mentioned = re.search(r"\(os error (\d+)\)", str(error))
    return int(mentioned[1]) if mentioned else 0
