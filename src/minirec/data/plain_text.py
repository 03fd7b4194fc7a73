"""Text without HTML (METHOD 1, text)."""

from __future__ import annotations

import html
import re

ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});")
CODE = re.compile(r"<(script|style)\b[^<>]*>.*?</\1>", re.IGNORECASE | re.DOTALL)
INSIDE_A_WORD = re.compile(r"</?(?:a|b|em|font|i|small|span|strong|sub|sup|u)(?:\s[^<>]*)?/?>", re.IGNORECASE)
BETWEEN_WORDS = re.compile(
    r"</?(?:blockquote|br|center|dd|div|dl|dt|h[1-6]|hr|img|li|ol|p|table|tbody|td|th|tr|ul)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
CUT = re.compile(r"<(?:span|div|a|p)\s+(?:id|class|href|style)\b[^<>]*$", re.IGNORECASE)


def plain(text: str) -> str:
    """A text with HTML's entities as characters and without its tags; other text in angle brackets stays.

    >>> plain("Rock &amp; Roll <b>Live</b>, <3 by <Band>")
    'Rock & Roll Live, <3 by <Band>'
    """
    text = ENTITY.sub(lambda found: html.unescape(found[0]), text)
    for pattern, instead in ((CODE, " "), (INSIDE_A_WORD, ""), (BETWEEN_WORDS, " "), (CUT, "")):
        text = pattern.sub(instead, text)
    return text
