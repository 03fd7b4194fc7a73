"""`python -m snakemake` as forks of one process that has imported Snakemake already, which takes half of the CPU time.

As a program it is that process. For every line of its input, a request in JSON, it forks; the fork has the folder, the
environment, the search path and the arguments of a new interpreter. The answer is a line, the exit status.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path

IMPORTED = ("pandas", "pydantic", "smart_open", "yaml")  # nothing of minirec, whose code differs between folders


def snakemake(folder: Path, words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run snakemake with these arguments in a folder; all it says is in stdout."""
    server = _server()
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as said:
        request = {"folder": str(folder), "words": words, "environment": environment, "said": said.name}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, status, said.read())


@cache
def _server() -> subprocess.Popen[str]:
    """The server of this process; it ends with it, as its input does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, __file__]
    server = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(server.communicate)
    return server


def _become(folder: str, words: list[str], environment: dict[str, str], said: str) -> None:
    """Give this process what a new interpreter would have, its output in the file `said`."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.path[:1] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [str(Path(import_module("snakemake").__file__).with_name("__main__.py")), *words]


if __name__ == "__main__":
    for name in IMPORTED:
        import_module(name)
    snakemake_cli = import_module("snakemake.cli")
    snakemake_cli.get_argument_parser()  # imports the plugins
    gc.freeze()  # what is imported stays: no fork looks for garbage in it
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(**json.loads(line))
            sys.exit(snakemake_cli.main())
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()
