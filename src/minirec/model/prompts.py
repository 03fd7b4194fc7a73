"""Prompts about users and items as token ids (METHOD 2).

A prompt is prefix + body + suffix. Prefix and suffix are the same in all prompts about users, and in all about items,
so the model reads the prefix once. The body holds titles from the data; it is tokenised as plain text, so that no title
can put a special token into the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minirec.errors import InputError, one_line

USER_INSTRUCTION = (
    "A user chose these items, oldest first (time before now where known, title, rating). "
    "Reason briefly about what the user likes and what kind of item comes next, and end with "  # the marker
)
ITEM_INSTRUCTION = "Name the key attributes of this item."
_BODY = "BODY_OF_THE_PROMPT"
_DATE = (  # put in front of the chat template: a template that asks for today's date always gets this one
    "{% macro strftime_now(format) %}"
    "{{ format|replace('%d', '26')|replace('%b', 'Jul')|replace('%B', 'July')|replace('%m', '07')"
    "|replace('%Y', '2024')|replace('%y', '24') }}"
    "{% endmacro %}\n"
)


@dataclass(frozen=True)
class Prompts:
    """Makes the prompts about users, or those about items."""

    tokenizer: Any
    prefix: list[int]  # token ids at the start of every prompt
    suffix: list[int]  # token ids at the end of every prompt
    reserved: tuple[str, ...]  # strings that no body may contain, see the function `reserved`
    max_body: int | None = None  # longer bodies are truncated to this many tokens

    def encode(self, body: str) -> list[int]:
        """Token ids of the body, as far as `max_body`, and the suffix."""
        ids = self.tokenizer(neutral(body, self.reserved), add_special_tokens=False, split_special_tokens=True)
        return ids["input_ids"][: self.max_body] + self.suffix


def user_prompts(tokenizer: Any, marker: str, system: str | None) -> Prompts:
    """Prompts about users; their body is the history as `data.titles.history_lines` writes it."""
    before, after = _template(tokenizer, USER_INSTRUCTION + marker, system)
    return Prompts(tokenizer, token_ids(tokenizer, before), token_ids(tokenizer, after), reserved(tokenizer, marker))


def user_messages(body: str, marker: str, system: str | None) -> list[dict[str, str]]:
    """The prompt about a user as a chat, for other programs; body: the history as `history_lines` writes it."""
    return _messages(USER_INSTRUCTION + marker, body, system)


def item_prompts(tokenizer: Any, marker: str, system: str | None, max_body: int) -> Prompts:
    """Prompts about items; their body is the catalogue's `text`, and the assistant's turn begins with the marker."""
    before, after = _template(tokenizer, ITEM_INSTRUCTION, system)
    end = token_ids(tokenizer, after) + token_ids(tokenizer, marker)
    return Prompts(tokenizer, token_ids(tokenizer, before), end, reserved(tokenizer, marker), max_body)


def reserved(tokenizer: Any, marker: str) -> tuple[str, ...]:
    """Strings that no body may contain: the marker, and tokens of the chat template that are not marked as special.

    Special tokens need not be listed: in a body the tokenizer splits them into plain text.
    """
    template = tokenizer.get_chat_template()
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
    return (marker, *sorted(word for word in added if word in template and not (word.isalnum() or word.isspace())))


def neutral(text: str, words: Sequence[str]) -> str:
    """Reduce each of these words in a text to its letters and digits, or remove it, so that no title can end a turn.

    >>> neutral("An <answer> in blue", ["<answer>"])
    'An answer in blue'
    """
    while word := next((word for word in words if word in text), None):
        harmless = "".join(c for c in word if c.isalnum())
        text = text.replace(word, harmless if harmless != word else "")
    return text


def _messages(instruction: str, body: str, system: str | None) -> list[dict[str, str]]:
    before = [{"role": "system", "content": system}] if system is not None else []
    return [*before, {"role": "user", "content": f"{instruction}\n{body}"}]


def _template(tokenizer: Any, instruction: str, system: str | None) -> tuple[str, str]:
    """Text of the chat before the body, and after it up to the start of the assistant's turn."""
    try:
        template = _DATE + tokenizer.get_chat_template()
        text = tokenizer.apply_chat_template(
            _messages(instruction, _BODY, system), tokenize=False, add_generation_prompt=True, chat_template=template
        )
    except Exception as error:  # a template is a program and raises what it likes
        remedy = "take another model" if system is None else "set policy.system to null"
        raise InputError(f"the model's chat template refuses its messages ({one_line(error)}); {remedy}") from error
    parts = text.split(_BODY)
    if len(parts) != 2:
        raise InputError(
            "the model's chat template must show the user's message once; "
            f"take {_BODY} out of policy.system and policy.marker, or take another model"
        )
    return parts[0], parts[1]


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text; special tokens written in it count as such."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]
