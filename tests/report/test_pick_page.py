"""The page of `minirec pick`: its figures, that no prompt becomes code, and that it stays small."""

import re

import numpy as np
import pytest

from minirec.report import pick_page
from minirec.selection.signals import Signals

HOSTILE = '<script>alert("1")</script> & "quotes" '
MEAN = np.array([0.0, 0.25, 0.5, 1.0])
SIGNALS = Signals(np.arange(4), mean_reward=MEAN, reward_std=np.array([0, 0.5, 0.5, 0.0]), hits=np.array([0, 1, 2, 4]))
CONTROL = ("random", np.array([1, 3]))


def page(rows=(2, 1), control=CONTROL, texts=("two", "one"), rewards=((0.0, 1.0), (0.5, 0.0))):
    return pick_page.html(
        ["2 files"], SIGNALS, "learnable", np.array(rows), list(texts), [*map(list, rewards)], control
    )


def cells(text, name):
    """Numbers in the row of the table of methods that begins with a name."""
    row = re.search(rf'<tr><th scope="row">{name}</th>(.*?)</tr>', text, re.S)[1]
    return [float(cell) for cell in re.findall(r">([\d.]+)</td>", row)]


def test_picks_and_control_are_compared_by_number_mean_spread_and_kinds():
    text = page()
    assert cells(text, "all prompts") == [4, 0.438, 0.25, 1, 1, 2]  # never rewarded, always the best, all alike
    assert cells(text, "learnable") == [2, 0.375, 0.5, 0, 0, 0]
    assert cells(text, "random") == [2, 0.625, 0.25, 0, 1, 1]
    assert "1 prompts are picked by both" in text
    assert "learnable picked 2 of 4 prompts" in text


def test_the_picks_are_listed_in_order_with_their_rewards_as_logged():
    found = re.findall(
        r'<tr id="pick-(\d)" data-kind="(\w+)">.*?class="t">(\w+)<.*?<td>([^<]*)</td></tr>', page(), re.S
    )
    assert found == [("1", "own", "two", "0, 1"), ("2", "shared", "one", "0.5, 0")]


def test_without_a_control_nothing_is_said_of_one():
    text = page(control=None)
    assert "picked by both" not in text
    assert "also picked by" not in text


def test_a_prompt_is_text_and_the_page_loads_nothing_and_has_the_same_bytes_again():
    text = page(texts=(HOSTILE, HOSTILE))
    assert "&lt;script&gt;alert" in text
    assert text.count("<script>") == 1
    assert not re.search(r'(?:src|href)="(?!#)', re.sub(r'xlink:href="#[^"]*"', "", text))
    assert text == page(texts=(HOSTILE, HOSTILE))


@pytest.mark.parametrize("text", ['"' * 10**5, "日" * 10**5])
def test_the_page_of_a_hundred_thousand_picks_is_below_5_megabytes_and_says_that_it_is_cut(text):
    n = 100_000
    mean = np.linspace(0, 1, n)
    signals = Signals(np.arange(n), mean_reward=mean, reward_std=mean, hits=np.ones(n, int))
    texts, rewards = [text] * pick_page.SHOWN, [[0.123456] * 1000] * pick_page.SHOWN
    made = pick_page.html([], signals, "learnable", np.arange(n), texts, rewards)
    assert len(made.encode()) < 5e6
    assert "of 100,000 picks, the first 1,000 are shown" in made
