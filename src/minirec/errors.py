"""The one exception that means: the user can fix this."""


class InputError(Exception):
    """A setting, file or argument is wrong; the message is one sentence that names it and says what to do."""
