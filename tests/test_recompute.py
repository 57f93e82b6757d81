"""Published reports are what today's code says of the recorded rows."""

import shutil
import subprocess
import sys

import pytest

from fusinglib.places import PROJECT


@pytest.mark.slow
def test_the_report_of_ten_worlds_follows_from_its_rows(tmp_path, monkeypatch):
    results = shutil.copytree(PROJECT / "results/mini-worlds", tmp_path / "results")
    published = (results / "report.txt").read_text()
    (results / "report.txt").unlink()
    monkeypatch.setenv("FUSINGLIB_STORE", str(tmp_path / "runs"))
    command = [sys.executable, "benchmarks/recompute.py", "--results", str(results)]
    subprocess.run(command, check=True, cwd=PROJECT)
    assert (results / "report.txt").read_text() == published
    assert not list((tmp_path / "runs").glob("[!.]*/*"))
