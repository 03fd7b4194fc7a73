"""A digest of the code behind a stage, so that an edit reruns the stages whose results it can change, and no others."""

from __future__ import annotations

import ast
import hashlib
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from minirec.storage.columns import TABLES

PACKAGE = Path(__file__).parents[1]
NO_BYTES = {  # modules that check, report and start; an edit cannot change what a stage writes
    "errors",
    "experiment.commands",
    "experiment.config",
    "experiment.limits",
    "experiment.section",
    "experiment.sections",  # the values of settings count elsewhere
    "experiment.validation",
    "progress",
    "storage.columns",  # only the tables of a stage count
    "storage.files",
    "storage.memory",
    "storage.code_digest",
}
LIBRARIES = {  # imported module: the packages that decide numbers with it
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "sklearn": ("scikit-learn",),
    "torch": ("torch",),
    "transformers": ("transformers", "tokenizers"),
    "peft": ("peft",),
    "trl": ("trl",),
    "vllm": ("vllm",),
}
FOREIGN = {"item_metadata": "items"}  # parameter: name of its table, if that differs


def code_digest(stage: str, *more: str, package: Path = PACKAGE) -> str:
    """Digest of the code of a stage's module, of `more` modules, and of all modules that these import, at any depth.

    Comments and docstrings do not count. Of the stage's tables, the names and types of their columns count, and of the
    libraries that decide numbers the versions.
    """
    whole = hashlib.sha256()
    whole.update(f"{libraries(stage, package)}\0".encode())
    for module in sorted(set().union(*(modules(start, package) for start in (f"stages.{stage}", *more)))):
        whole.update(f"{module}\0{_code(_file(module, package))}\0".encode())
    for table in sorted(tables(stage, package)):
        columns = [(name, column.type, column.nullable) for name, column in TABLES[table].columns.items()]
        whole.update(f"{table}\0{columns}\0".encode())
    return whole.hexdigest()[:16]


@cache
def modules(start: str, package: Path = PACKAGE) -> set[str]:
    """The modules, as `storage.files`, that determine the results of the module `start`; empty if it does not exist."""
    reached: set[str] = set()
    waiting = {start}
    while waiting:
        module = waiting.pop()
        if module not in reached and _file(module, package).is_file():
            reached.add(module)
            waiting |= imports(_file(module, package), package) - NO_BYTES
    return reached


@cache
def libraries(stage: str, package: Path = PACKAGE) -> dict[str, str]:
    """Version of each installed library that the code of a stage imports and that decides numbers, by package."""
    names = {name for module in modules(f"stages.{stage}", package) for name in _imported(_file(module, package))}
    versions = {}
    for one in sorted(LIBRARIES.keys() & {name.split(".")[0] for name in names}):
        for distribution in LIBRARIES[one]:
            with suppress(PackageNotFoundError):
                versions[distribution] = version(distribution).split("+")[0]  # whatever device it was built for
    return versions


def tables(stage: str, package: Path = PACKAGE) -> set[str]:
    """The tables among the parameters of a stage's `run`, and the table of the stage's own name."""
    parameters = {
        argument.arg
        for node in _tree(_file(f"stages.{stage}", package)).body
        if isinstance(node, ast.FunctionDef) and node.name == "run"
        for argument in node.args.kwonlyargs
    }
    return {FOREIGN.get(name, name) for name in (parameters | {stage})} & TABLES.keys()


@cache
def imports(file: Path, package: Path = PACKAGE) -> set[str]:
    """The modules of `package`, as `storage.files`, that a file imports, anywhere in it."""
    inside = {name.removeprefix("minirec.") for name in _imported(file) if name.startswith("minirec.")}
    ways = [(name, name.rpartition(".")[0]) for name in inside]  # a module, or what a module defines
    found = (next((one for one in way if one and _file(one, package).is_file()), None) for way in ways)
    return {name for name in found if name}


def _file(module: str, package: Path) -> Path:
    """The file of a module, or of a sub-package."""
    path = package.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imported(file: Path) -> set[str]:
    """The names that a file imports, anywhere in it; of `from a import b`, a.b."""
    return _read(file)[0]


def _code(file: Path) -> str:
    """SHA-256 of a file's syntax tree without docstrings."""
    return _read(file)[1]


@cache
def _read(file: Path) -> tuple[set[str], str]:
    """What `_imported` and `_code` return, from one walk through the syntax tree: a plan needs both of every file."""
    names: set[str] = set()
    tree = _tree(file)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and first.value.value is not ...:
                node.body = node.body[1:]
    return names, hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))
