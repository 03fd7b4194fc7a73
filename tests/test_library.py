"""The code of docs/library.md runs, and its table names every public function."""

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
