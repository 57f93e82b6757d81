"""The exceptions for what a user can mend, and words that their messages share."""

import difflib


class InputError(ValueError):
    """Bad input: the message names the thing, what was expected, and what to do about it.

    The command line prints it as one line without a traceback and exits with status 2.
    """


class StoreError(InputError):
    """The store cannot be written: nothing more can be carried out."""


class Damaged(StoreError):
    """A finished run of the store, named by its `key`, is not as it was written, or was pruned."""

    def __init__(self, message: str, key: str):
        super().__init__(message, key)
        self.key = key

    def __str__(self) -> str:
        return self.args[0]


def one_of(names) -> str:
    """`one of a, b, c`, for messages."""
    return "one of " + ", ".join(str(name) for name in names)


def nearest(name: str, names) -> str:
    """A did-you-mean for a misspelt name, else the list of names, for messages."""
    close = difflib.get_close_matches(str(name), list(names), n=1)
    return f"did you mean {close[0]!r}?" if close else one_of(sorted(names))
