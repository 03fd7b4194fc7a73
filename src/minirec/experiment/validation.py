"""Check values against a pydantic model; the error is one sentence that names the wrong key."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from minirec.errors import InputError

M = TypeVar("M", bound=BaseModel)
_SHORT = reprlib.Repr()  # a value in a sentence: a few names of YAML can stand for gigabytes of text
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 2, 10, 10, 200, 200


def spelled(pattern: str, meaning: str) -> AfterValidator:
    """A check that text matches a regular expression; its error says what the text should be: `meaning`."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise PydanticCustomError("spelling", "it should be {meaning}", {"meaning": meaning})
        return text

    return AfterValidator(check)


def validate(kind: type[M], raw: Any, where: str) -> M:
    """The model with these raw values, which the key `where` (or "") holds. Raises InputError naming the wrong key."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise InputError(_sentence(kind, error, where)) from error


def require_shard(stage: str, shard: int | None, shards: int) -> None:
    """Raise InputError unless `shard` is None or one of 0..shards-1; the message names the stage.

    >>> require_shard("select", 1, 2)
    """
    if shard is not None and not 0 <= shard < shards:
        raise InputError(f"--shard is {shard}, but {stage}.shards is {shards}; take 0 to {shards - 1}")


def _sentence(kind: type[BaseModel], error: ValidationError, where: str) -> str:
    problems = error.errors(include_url=False)
    first, path = problems[0], _path(problems[0]["loc"])
    key = ".".join(([where] if where else []) + path) or "the configuration"
    key = key if key.isprintable() else repr(key)
    message = re.sub(r"^Value error, ", "", first["msg"])
    if path[-1:] == ["[key]"]:
        return (
            f"{'.'.join(path[:-2])} has the name {first['input']!r}; a name consists of a-z, 0-9, _ and ., "
            "does not start with _ or ., and has at most 64 characters"
        )
    if first["type"] == "extra_forbidden":
        known = _keys(kind, path[:-1])
        return f"{key} is not a setting{suggestion(path[-1], known)}; remove it or correct its name"
    if first["type"] == "missing":
        return f"{key} is missing; set it in the configuration"
    if first["type"] == "value_error":
        return f"{key}: {message}" if path or where else message
    # there is one reason for each alternative type
    reasons = [e["msg"][0].lower() + e["msg"][1:] for e in problems if _path(e["loc"]) == path]
    return f"{key} is {_SHORT.repr(first['input'])}, but {', or '.join(reasons)}"


def _path(location: Iterable[int | str]) -> list[str]:
    """The keys down to a setting, without pydantic's names of alternatives."""
    return [str(part) for part in location if not str(part).startswith(("constrained-", "literal["))]


def _keys(kind: Any, path: list[str]) -> list[str]:
    """Names of the settings that may stand at a path below a section; a path may pass through dictionaries."""
    for part in path:
        if part in getattr(kind, "model_fields", {}):
            kind = kind.model_fields[part].annotation
            arguments = getattr(kind, "__args__", ())
            if arguments and getattr(kind, "__origin__", None) is dict:
                kind = arguments[1]
    return list(getattr(kind, "model_fields", {}))


def suggestion(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' if a known word is similar to this one; else empty."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
