"""The exceptions that mean: the user can fix this."""


class InputError(Exception):
    """A setting, file or argument is wrong; the message is one sentence that names it and says what to do."""


class NotFinite(InputError):
    """A policy computes numbers that are not finite: `what` says which, the message also what to do about it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; fetch the model or train its adapter again")
        self.what = what
