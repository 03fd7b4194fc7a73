"""Errors that the user can correct, and how they are worded."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """A setting, file or argument is wrong; the message is one sentence that names it and says what to do."""

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(sentence.splitlines()))  # names and values of a user may hold any character


class NotFinite(InputError):
    """A policy computed NaN or infinity; `what` says where, e.g. "the loss is nan at step 3"."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; fetch the model or train its adapter again")
        self.what = what


def one_line(error: BaseException, length: int = 200) -> str:
    """The message of another library's error, as one line of at most `length` characters.

    >>> one_line(ValueError("bad\\n  value"))
    'bad value'
    """
    return " ".join(str(error).split())[:length]


@contextmanager
def one_sentence(before: str, after: str = "", length: int = 200, kind: type[Exception] = Exception) -> Iterator[None]:
    """Turn an error of this kind that a library raises into an InputError: before, its message as one line, after."""
    try:
        yield
    except InputError:
        raise
    except kind as error:
        raise InputError(f"{before}{one_line(error, length)}{after}") from error
