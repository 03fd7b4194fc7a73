"""The command line: one sub-command a stage, made from the signature of its `run`, and those that people type.

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
from typing import Any

from minirec.cli import launch
from minirec.errors import InputError

TYPED = {  # sub-commands that are no stages
    "show": "Print an artefact: what made it, its columns, counts and first rows.",
    "plan": "Say what each stage of a target will roughly need.",
    "status": "Say what is done, running, failed or stale, and what the rest will take.",
}
MACHINE = {  # errors of the machine, not of minirec, and what to do about them
    errno.ENOSPC: "free some space and start again",
    errno.EDQUOT: "free some space and start again",
    errno.EACCES: "give yourself the right to read and write there and start again",
    errno.EPERM: "give yourself the right to read and write there and start again",
    errno.EROFS: "the results need a folder that can be written; set results in the configuration",
    errno.EIO: "the disk or its network failed; start again",
}


class Terminated(BaseException):
    """Somebody asked the job to end; not an Exception, so that nothing catches it on the way out."""


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command; returns the exit status."""
    from minirec.cli.parser import parser

    arguments = sys.argv[1:] if arguments is None else arguments
    given = vars(parser(arguments).parse_args(arguments))
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
    room = "cli" if name in TYPED else "stages"
    run: Callable[..., None] = importlib.import_module(f"minirec.{room}.{name}").run
    return run


def _run(stage: str, given: dict[str, Any]) -> tuple[int, str]:
    """Run a stage; returns the exit status and the reason of the end."""
    from minirec.cli.parser import with_sections
    from minirec.progress import log

    try:
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; the package's own become lines
        warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to each other
        given = with_sections(stage, given)
        runner(stage)(**given)
    except InputError as error:
        log.error("error: %s", error)
        return 1, f"error: {error}"
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, "the reader of its output went away"
    except MemoryError:
        log.error("error: out of memory; give the stage more by set-resources of the workflow's profile")
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
