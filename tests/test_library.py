"""The code of docs/library.md runs, and its table names every public function."""

import ast
import re
from pathlib import Path

import pytest

import minirec

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_code_runs(block):
    exec(compile(block, "library.md", "exec"), {})  # of this repository


def test_every_public_function_is_shown():
    shown = {
        name
        for block in BLOCKS
        for names in re.findall(r"from minirec import (.*)", block)
        for name in names.split(", ")
    }
    assert shown == set(minirec.__all__)


def test_type_checkers_are_told_where_every_public_function_lies():
    stub = ast.parse(Path(minirec.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    told = {alias.asname: node.module for node in imports for alias in node.names}
    assert told.keys() == set(minirec.__all__)
    for name, module in told.items():
        assert getattr(minirec, name).__module__.startswith(f"{module}.")
