"""Exceptions for what a user can correct, and wording that their messages share."""

import difflib
import importlib


class InputError(ValueError):
    """Bad input: the message names the thing, what was expected, and what to do about it.

    The command line prints it as one line without a traceback and exits with status 2.
    """


class StoreError(InputError):
    """The store cannot be written, so nothing more can be computed."""


class Damaged(StoreError):
    """A finished run in the store, named by its `key`, was corrupted or pruned."""

    def __init__(self, message: str, key: str):
        super().__init__(message, key)
        self.key = key

    def __str__(self) -> str:
        return self.args[0]


def optional(module: str):
    """Import an optional module; raises `InputError` if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing(error) from error


def missing(error: ModuleNotFoundError) -> InputError:
    """The error for a missing module: what to install."""
    extra = "cluster" if error.name in ("dask", "distributed", "bokeh") else "study"
    return InputError(
        f'this needs {error.name}, which is not installed: pip install "fusinglib[{extra}]"'
    )


def one_of(names) -> str:
    """`one of a, b, c`, for messages."""
    return "one of " + ", ".join(str(name) for name in names)


def nearest(name: str, names) -> str:
    """ "Did you mean" for a misspelt name, otherwise the list of names, for messages."""
    close = difflib.get_close_matches(str(name), list(names), n=1)
    return f"did you mean {close[0]!r}?" if close else one_of(sorted(names))


EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping of names to values",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "int_type": "a whole number",
    "less_than": "a number below {lt:,}",
    "less_than_equal": "a number of at most {le:g}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "string_type": "text",
    "too_short": "at least {min_length}",
    "value_error": "{error}",
}
"""What was expected, by the type of a pydantic error."""


def refused_parameter(error) -> InputError:
    """The first problem of a `pydantic.ValidationError`, worded to name the parameter."""
    found = error.errors()[0]
    kind, value, context = found["type"], found["input"], found.get("ctx", {})
    if isinstance(context.get("error"), InputError):  # from a check whose message is complete
        return context["error"]
    expected = EXPECTED[kind].format(**context) if kind in EXPECTED else found["msg"]
    if isinstance(value, str) and kind in ("int_type", "float_type") and "e" in value.lower():
        expected += " (YAML reads 1e-4 as text: write 1.0e-4)"
    if isinstance(value, str) and kind == "list_type" and "[" in value:
        expected += " (papermill: pass it with -y or in a file; -p turns it into text)"
    return InputError(f"parameter {found['loc'][0]!r} is {value!r}: expected {expected}")
