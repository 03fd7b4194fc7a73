"""Find catalogue rows by what a person types: an item id, a title, or nearly a title."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence

SUGGESTIONS = 3
ADDITION = re.compile(r"\([^()]*\)$")  # at the end of a title, such as a film's year


def plain(title: str) -> str:
    """A title without case, accents and punctuation, as it is compared.

    >>> plain("Amélie: The  Movie!")
    'amelie the movie'
    """
    letters = unicodedata.normalize("NFKD", title.casefold())
    kept = "".join(c if c.isalnum() else " " for c in letters if not unicodedata.combining(c))
    return " ".join(kept.split()) or " ".join(title.split())  # a title of signs alone is compared as it is


def sorted_words(text: str) -> str:
    """The words of a text in the order of the alphabet."""
    return " ".join(sorted(text.split()))


class TitleLookup:
    """Rows of a catalogue by item id or title; of items with the same title, the most popular one."""

    def __init__(self, item_ids: Sequence[str], titles: Sequence[str], popularity: Sequence[int]) -> None:
        popular = sorted(range(len(titles)), key=lambda row: (popularity[row], -row))  # the last one stays
        self.by_id = {item_id: row for row, item_id in enumerate(item_ids)}
        self.by_title = {titles[row].strip(): row for row in popular}
        self.by_plain = self._by_plain(titles, popular)
        self.by_words = {sorted_words(title): row for title, row in self.by_plain.items()}
        self.with_semicolon = self._by_plain(titles, [row for row in popular if ";" in titles[row]])
        self.titles = titles

    @staticmethod
    def _by_plain(titles: Sequence[str], rows: Sequence[int]) -> dict[str, int]:
        """These rows by title, and by what is before an addition where no whole title is that; the last one stays."""
        longer = [row for row in rows if ADDITION.search(titles[row].rstrip())]
        found = {plain(ADDITION.sub("", titles[row].rstrip())): row for row in longer}
        found |= {plain(titles[row]): row for row in rows}
        found.pop("", None)  # a title that is an addition alone
        return found

    def row(self, text: str) -> int | None:
        """The row of an item id or else a title; None: there is none.

        Case, accents, punctuation and the order of words do not matter ("Godfather, The"), and an addition in brackets
        at the end may be missing ("Fargo (1996)").
        Ids come first: each has one item, and a title can be the id of another, such as the film 300.
        """
        text = text.strip()
        spelled = plain(text)
        ways = (
            (self.by_id, text),
            (self.by_title, text),
            (self.by_plain, spelled),
            (self.by_words, sorted_words(spelled)),
        )
        for known, wanted in ways:
            if (found := known.get(wanted)) is not None:
                return found
        return None

    def listed(self, text: str) -> list[tuple[str, int | None]]:
        """(text, its row or None) of each entry of a list with semicolons; a title may have semicolons itself.

        >>> TitleLookup(["a", "b"], ["Live; at Leeds", "Blue"], [1, 1]).listed("blue; live; at leeds; Red")
        [('blue', 1), ('live; at leeds', 0), ('Red', None)]
        """
        parts, found = text.split(";"), []
        longest = 1 + max((self.titles[row].count(";") for row in self.with_semicolon.values()), default=0)
        while parts:
            count, row = 1, self.row(parts[0])
            for several in range(min(longest, len(parts)), 1, -1):
                whole = self.with_semicolon.get(plain(";".join(parts[:several])))
                if whole is not None and self.titles[whole].count(";") == several - 1:
                    count, row = several, whole
                    break
            entry = ";".join(parts[:count]).strip()
            found += [(entry, row)] if entry else []
            parts = parts[count:]
        return found

    def suggestions(self, text: str) -> list[str]:
        """Titles that are spelled almost like a text, or contain it; the most similar first."""
        wanted = plain(text)
        close = difflib.get_close_matches(wanted, self.by_plain, n=SUGGESTIONS, cutoff=0.7)
        within = sorted((title for title in self.by_plain if wanted and wanted in title), key=len)
        rows = dict.fromkeys(self.by_plain[name] for name in [*close, *within])
        return [self.titles[row] for row in list(rows)[:SUGGESTIONS]]
