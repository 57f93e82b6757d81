"""The one exception for input that cannot be used."""


class InputError(ValueError):
    """Bad input: the message names the thing, what was expected, and what to do about it.

    The command line prints it as one line without a traceback and exits with status 2.
    """
