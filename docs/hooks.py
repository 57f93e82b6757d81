"""The parts of the documentation that are generated: tutorials, command line and parameters."""

import argparse
import json
import re
import shutil
import typing
from pathlib import Path

import nbformat
import yaml

from fusinglib.__main__ import command_line
from fusinglib.places import SHIPPED
from fusinglib.study import parameters, settings

COMMENT = re.compile(r"^(\w+): .*?  # (.+)$", re.MULTILINE)
"""A parameter and its comment, in a YAML file or in a notebook's parameters cell."""


def on_pre_build(config) -> None:
    """Bring in the executed notebooks and their figures. Widget states are left out, since pages
    would load scripts from elsewhere for them."""
    executed = Path(config.config_file_path).parent / "executed/mini"
    tutorials = Path(config.docs_dir) / "tutorials"
    for file in executed.glob("*.ipynb"):
        notebook = nbformat.read(file, as_version=4)
        notebook.metadata.pop("widgets", None)
        nbformat.write(notebook, tutorials / file.name)
    for file in executed.glob("*.png"):
        shutil.copy(file, tutorials)


def on_page_markdown(markdown: str, **_) -> str:
    """Fill in what a page asks for by a comment."""
    for name, made in (("commands", commands), ("parameters", parameter_tables)):
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", made())
    return markdown


def commands() -> str:
    """The `--help` of every command."""
    (actions,) = [
        action
        for action in command_line()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return "\n\n".join(
        f"## {name}\n\n```text\n{command.format_help().strip()}\n```"
        for name, command in actions.choices.items()
    )


KINDS = dict.fromkeys([settings.Settings, settings.Families, *settings.EXPERIMENTS.values()])
"""All kinds of settings, each once."""


def parameter_tables() -> str:
    """A table for every kind of settings, with the parameters that it adds to its parents'."""
    parts = []
    for kind in KINDS:
        known = {name for parent in kind.__bases__ if parent in KINDS for name in _names(parent)}
        if added := [name for name in _names(kind) if name not in known]:
            parts += [_title(kind), _table(kind, added)]
    return "\n\n".join(parts)


def _names(kind: type) -> list[str]:
    return parameters.parameter_names(kind)


def _notebooks(kind: type) -> list[str]:
    return [name for name, one in settings.EXPERIMENTS.items() if issubclass(one, kind)]


def _title(kind: type) -> str:
    notebooks = _notebooks(kind)
    every = len(notebooks) == len(settings.EXPERIMENTS)
    return "## " + ("All notebooks" if every else ", ".join(f"`{name}`" for name in notebooks))


def _table(kind: type, names: list[str]) -> str:
    common = (SHIPPED / "params/mini/common.yaml").read_text()
    notebooks = _notebooks(kind)
    said = {}
    for text in (
        *map(parameters.cell, reversed(settings.EXPERIMENTS)),
        common,
        parameters.cell(notebooks[0]),
    ):
        said |= dict(COMMENT.findall(text))
    defaults = {**yaml.safe_load(common), **parameters.defaults(notebooks[0])}
    hints = typing.get_type_hints(kind)
    rows = [
        f"| `{name}` | {_type(hints[name])} | `{json.dumps(defaults[name])}` | {said[name]} |"
        for name in names
    ]
    return "\n".join(
        ["| parameter | type | in the miniature world | meaning |", "|---|---|---|---|", *rows]
    )


def _type(hint) -> str:
    """A type as a reader would say it."""
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    if hint in words:
        return words[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is list:
        return f"list of {_type(inner[0])}s".replace("texts", "names")
    return "mapping"
