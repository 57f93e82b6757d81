"""The exceptions for what a user can mend."""


class InputError(ValueError):
    """Bad input: the message names the thing, what was expected, and what to do about it.

    The command line prints it as one line without a traceback and exits with status 2.
    """


class StoreError(InputError):
    """The store cannot be written: nothing more can be carried out."""
