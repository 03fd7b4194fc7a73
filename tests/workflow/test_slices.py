"""Which faults and which hostile inputs `make test` tries: a slice, another one at another commit."""

from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import test_fuzz
from hypothesis import given
from hypothesis import strategies as st


def items(count: int) -> list[SimpleNamespace]:
    """Collected tests of which every other one is a test of a fault; `marks` takes the marks they get."""
    found = []
    for number in range(count):
        marks = {"faults"} if number % 2 else set()
        found.append(
            SimpleNamespace(
                path=Path("test_faults.py"), marks=marks, get_closest_marker=marks.__contains__, add_marker=marks.add
            )
        )
    return found


def test_every_fault_is_in_exactly_one_slice_and_no_other_test_is(monkeypatch):
    times = [0] * 150
    for number in range(1000, 1000 + conftest.SLICES):
        monkeypatch.setattr(conftest, "SLICE", number)
        collected = items(150)
        conftest.pytest_collection_modifyitems(collected)
        times = [old + ("slice" in item.marks) for old, item in zip(times, collected, strict=True)]
    assert times == [0, 1] * 75


@pytest.mark.skipif(test_fuzz.FULL, reason="make fuzz tries other inputs at every run")
def test_a_slice_has_inputs_of_its_own_and_tries_the_same_ones_again(monkeypatch):
    def tried(number: int) -> list[bytes]:
        monkeypatch.setattr(test_fuzz, "SLICE", number)
        seen = []

        @test_fuzz.inputs(20, 20)
        @given(st.binary(min_size=8))
        def check(content):
            seen.append(content)

        check()
        return seen

    assert tried(1) == tried(1)
    assert set(tried(1)) & set(tried(2)) == {bytes(8)}  # the simplest input comes first everywhere


def test_the_slice_is_the_one_asked_for_else_the_commits_and_without_git_the_first(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIREC_SLICE", "12")
    assert conftest.slice_number() == 12
    monkeypatch.delenv("MINIREC_SLICE")
    monkeypatch.setattr(conftest, "ROOT", tmp_path)
    assert conftest.slice_number() == 0
    monkeypatch.setenv("PATH", "")
    assert conftest.slice_number() == 0
