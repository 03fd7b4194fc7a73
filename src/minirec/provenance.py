"""A digest of the code behind a stage, so that an edit re-plans what it can change and nothing else."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
PLUMBING = {
    "__init__",
    "__main__",
    "artefact",
    "config",
    "errors",
    "memory",
    "progress",
    "provenance",
    "schemas",
    "stream",
    "tensors",
    "validation",
}
# They check, carry and report; a change in them may stop a stage, but does not change what it computes.


def code_digest(stage: str, package: Path = PACKAGE) -> str:
    """Digest of a stage's module and of all modules it leads to; comments and docstrings do not count."""
    whole = hashlib.sha256()
    for module in sorted(modules(stage, package)):
        whole.update(f"{module}\0{_code(package / f'{module}.py')}\0".encode())
    return whole.hexdigest()[:16]


def modules(stage: str, package: Path = PACKAGE) -> set[str]:
    """The modules of the package that a stage's result depends on; empty where the stage is not there."""
    found: set[str] = set()
    waiting = {stage}
    while waiting:
        module = waiting.pop()
        if module not in found and (package / f"{module}.py").is_file():
            found.add(module)
            waiting |= imports(package / f"{module}.py") - PLUMBING
    return found


def imports(file: Path) -> set[str]:
    """Modules of this package that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("minirec.")}
        elif isinstance(node, ast.ImportFrom):
            path = (["minirec"] if node.level else []) + (node.module or "").split(".")
            path = [part for part in path if part]
            if path[:1] == ["minirec"]:
                found |= {path[1]} if len(path) > 1 else {alias.name for alias in node.names}
    return found


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
