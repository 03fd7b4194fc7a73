"""Commands that the texts tell people to type exist, and shown outputs have the columns and figures of today."""

import re
import shlex

import pytest
from conftest import ROOT
from test_site import TEXTS

from minirec.cli.parser import parser
from minirec.storage.columns import TABLES

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """The blocks of code and of outputs, with lines that end in a backslash joined to the next."""
    return re.findall(r"^```\w*\n(.*?)^```", text.replace("\\\n", ""), re.MULTILINE | re.DOTALL)


def typed(line: str) -> list[str]:
    """The words of a command up to a pipe, a redirection or a comment."""
    words = shlex.split(line, comments=True)
    ends = [number for number, word in enumerate(words) if word in ("|", ">", "2>", "&&")]
    return words[: min(ends, default=len(words))]


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_command_of_a_text_has_these_flags(file, capsys):
    for block in blocks(file.read_text(encoding="utf-8")):
        for line in re.findall(r"^(?:\$ )?minirec (.+)$", block, re.MULTILINE):
            words = typed(line)
            try:
                parser(words).parse_args(words)
            except SystemExit:
                pytest.fail(f"minirec {line}: {capsys.readouterr().err}")


def test_a_table_that_the_tutorial_shows_has_its_columns_of_today():
    shown = re.findall(r"^\S+: (\w+), [\d,]+ rows\n  column .*\n((?:  .*\n)+)", TUTORIAL, re.MULTILINE)
    assert {"samples", "rollouts", "selection", "curriculum", "ranks"} <= {name for name, _ in shown}
    for name, lines in shown:
        rows = [re.split(r" {2,}", line.strip()) for line in lines.splitlines()]
        assert {row[0]: row[-1] for row in rows} == {c: one.meaning for c, one in TABLES[name].columns.items()}, name


def test_the_summary_of_the_tutorial_is_that_of_the_readme():
    (shown,) = (block for block in blocks(TUTORIAL) if "results/movielens/summary.txt\n" in block)
    lines = shown.splitlines()[1:]
    assert len(lines) > 5
    assert set(lines) <= set((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
