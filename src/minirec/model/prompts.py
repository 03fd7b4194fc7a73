"""Prompts as token ids (METHOD 2): what the policy reads about a user and about an item.

A prompt is prefix + body + suffix. Prefix and suffix are the same for every prompt of a kind, so their keys and values
can be shared; the body, made of other people's titles, is tokenised as plain text and cannot contain a special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minirec.errors import InputError

USER_INSTRUCTION = (
    "A user chose these items, oldest first (time before now, title, rating). "
    "Reason briefly about what the user likes and what kind of item comes next."
)
ITEM_INSTRUCTION = "Name the key attributes of this item."
_BODY = "BODY_OF_THE_PROMPT"
_DATE = (  # in front of the chat template: whatever day it is, a template that asks hears of this one
    "{% macro strftime_now(format) %}"
    "{{ format|replace('%d', '26')|replace('%b', 'Jul')|replace('%B', 'July')|replace('%m', '07')"
    "|replace('%Y', '2024')|replace('%y', '24') }}"
    "{% endmacro %}\n"
)


@dataclass(frozen=True)
class Prompts:
    """Makes the prompts of one kind."""

    tokenizer: Any
    prefix: list[int]  # shared start
    suffix: list[int]  # shared end
    reserved: tuple[str, ...]  # the marker, and what the chat template says besides special tokens
    max_body: int | None = None  # longer bodies are cut

    def encode(self, body: str) -> list[int]:
        """The ids that follow the prefix."""
        ids = self.tokenizer(neutral(body, self.reserved), add_special_tokens=False, split_special_tokens=True)
        return ids["input_ids"][: self.max_body] + self.suffix


def user_prompts(tokenizer: Any, marker: str, system: str | None) -> Prompts:
    """Prompts about users; the body is made by `data.titles.history_lines`."""
    before, after = _template(tokenizer, USER_INSTRUCTION, system)
    return Prompts(tokenizer, _ids(tokenizer, before), _ids(tokenizer, after), reserved(tokenizer, marker))


def item_prompts(tokenizer: Any, marker: str, system: str | None, max_body: int) -> Prompts:
    """Prompts about items; the body is the catalogue's text, the assistant's turn opens with the marker."""
    before, after = _template(tokenizer, ITEM_INSTRUCTION, system)
    end = _ids(tokenizer, after) + _ids(tokenizer, marker)
    return Prompts(tokenizer, _ids(tokenizer, before), end, reserved(tokenizer, marker), max_body)


def marker_ids(tokenizer: Any, marker: str) -> list[int]:
    """The marker as it is appended to a completion without one."""
    return _ids(tokenizer, marker)


def reserved(tokenizer: Any, marker: str) -> tuple[str, ...]:
    """The marker, and the tokens of the chat template that the tokenizer would not split as it does special ones."""
    template = tokenizer.get_chat_template()
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if not token.special]
    return (marker, *sorted(word for word in added if word in template and not (word.isalnum() or word.isspace())))


def neutral(text: str, words: Sequence[str]) -> str:
    """Text without these words: nothing a title says may look like the end of the reasoning, or of the user's turn."""
    while found := next((word for word in words if word in text), None):
        harmless = "".join(c for c in found if c.isalnum())
        text = text.replace(found, harmless if harmless != found else "")
    return text


def _template(tokenizer: Any, instruction: str, system: str | None) -> tuple[str, str]:
    """What the chat template puts before and after the body, the assistant's turn opened."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": f"{instruction}\n{_BODY}"})
    try:
        template = _DATE + tokenizer.get_chat_template()
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, chat_template=template
        )
    except Exception as error:  # a template is a program, and says in its own way what it does not take
        reason = " ".join(str(error).split())[:200]
        remedy = "take another model" if system is None else "set policy.system to null"
        raise InputError(f"the model's chat template refuses its messages ({reason}); {remedy}") from error
    parts = text.split(_BODY)
    if len(parts) != 2:
        raise InputError(
            "the model's chat template must show the user's message once; "
            f"take {_BODY} out of policy.system, or take another model"
        )
    return parts[0], parts[1]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
