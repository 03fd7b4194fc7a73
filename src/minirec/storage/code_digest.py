"""A digest of the code behind a stage, so that an edit re-plans what it can change and nothing else."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from minirec.storage.columns import TABLES

PACKAGE = Path(__file__).parents[1]
NO_BYTES = {  # modules that check, report and start; an edit may stop a stage, but cannot change what it writes
    "errors",
    "experiment.commands",
    "experiment.config",
    "experiment.sections",  # settings count by their values
    "experiment.validation",
    "progress",
    "storage.columns",  # counts by the tables of a stage
    "storage.files",
    "storage.memory",
    "storage.code_digest",
}
FOREIGN = {"item_metadata": "items"}  # parameter: its table, where the two have different names


def code_digest(stage: str, *more: str, package: Path = PACKAGE) -> str:
    """Digest of a stage's module, of `more` modules, of all that these import, and of the stage's tables.

    Imports through others count, comments and docstrings do not. Of a table, names and types of its columns count.
    """
    whole = hashlib.sha256()
    for module in sorted(set().union(*(modules(start, package) for start in (f"stages.{stage}", *more)))):
        whole.update(f"{module}\0{_code(_file(module, package))}\0".encode())
    for table in sorted(tables(stage, package)):
        columns = [(name, column.type, column.nullable) for name, column in TABLES[table].columns.items()]
        whole.update(f"{table}\0{columns}\0".encode())
    return whole.hexdigest()[:16]


def modules(start: str, package: Path = PACKAGE) -> set[str]:
    """The modules below `package`, as `room.name`, on which the results of one depend; empty where it is not there."""
    found: set[str] = set()
    waiting = {start}
    while waiting:
        module = waiting.pop()
        if module not in found and _file(module, package).is_file():
            found.add(module)
            waiting |= imports(_file(module, package), package) - NO_BYTES
    return found


def tables(stage: str, package: Path = PACKAGE) -> set[str]:
    """The tables that a stage names among its inputs and outputs; `out` is the table of its own name."""
    parameters = {
        argument.arg
        for node in _tree(_file(f"stages.{stage}", package)).body
        if isinstance(node, ast.FunctionDef) and node.name == "run"
        for argument in node.args.kwonlyargs
    }
    return {FOREIGN.get(name, name) for name in (parameters | {stage})} & TABLES.keys()


def imports(file: Path, package: Path = PACKAGE) -> set[str]:
    """The modules below `package`, as `room.name`, that a file imports anywhere in it; a room alone is none."""
    names: set[str] = set()
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    inside = {name.removeprefix("minirec.") for name in names if name.startswith("minirec.")}
    return {name for name in inside if _file(name, package).is_file()}


def _file(module: str, package: Path) -> Path:
    return package.joinpath(*module.split(".")).with_suffix(".py")


@cache
def _code(file: Path) -> str:
    """Digest of a file's syntax tree without docstrings."""
    tree = _tree(file)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and first.value.value is not ...:
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))
