"""Benchmarks: every script still finds what it imports."""

import os
import runpy

import pytest

from fusinglib.places import PROJECT

SCRIPTS = sorted((PROJECT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_script_can_be_imported(script, monkeypatch):
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # some set what PyTorch reads
    runpy.run_path(str(script), run_name=script.stem)
