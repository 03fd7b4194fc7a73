"""How titles and a user's history are written in prompts (METHOD 2: policy)."""

from __future__ import annotations

from collections.abc import Sequence

MAX_CHARACTERS = 1000  # of a title, so that no title makes a prompt of a million tokens
_UNITS = ((365 * 86_400_000, "year"), (30 * 86_400_000, "month"), (86_400_000, "day"), (3_600_000, "hour"))


def shortened(title: str) -> str:
    """The first MAX_CHARACTERS characters of a title."""
    return title[:MAX_CHARACTERS]


def history_lines(titles: Sequence[str], ratings: Sequence[float | None], ages: Sequence[int | None]) -> str:
    """The history in a user's prompt, one line per item: time before the target, title, and rating if known.

    ages: milliseconds from each item to the target; None is not said.

    >>> print(history_lines(["Kind of Blue", "Abbey Road"], [5.0, None], [3 * 86_400_000, 0]))
    - 3 days: Kind of Blue, rated 5
    - just now: Abbey Road
    """
    lines = []
    for title, rating, milliseconds in zip(titles, ratings, ages, strict=True):
        stars = "" if rating is None or rating != rating else f", rated {rating:g}"
        when = "" if milliseconds is None else f"{age(milliseconds)}: "
        lines.append(f"- {when}{' '.join(shortened(title).split()) or 'untitled'}{stars}")
    return "\n".join(lines)


def age(milliseconds: int) -> str:
    """A time span as text, in its largest unit.

    >>> age(3 * 86_400_000)
    '3 days'
    """
    for size, unit in _UNITS:
        if milliseconds >= size:
            count = milliseconds // size
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "just now"
