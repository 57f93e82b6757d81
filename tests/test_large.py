"""Models larger than memory, whose files are made sparse: what is planned, and what it takes."""

import importlib.util
from pathlib import Path

import pytest

from fusinglib import fuse
from fusinglib.fusion.tensors import Reader
from fusinglib.places import PROJECT

spec = importlib.util.spec_from_file_location("large", PROJECT / "benchmarks/large.py")
large = importlib.util.module_from_spec(spec)
spec.loader.exec_module(large)


@pytest.mark.parametrize("method", ["mean", "ties"])
def test_three_models_of_70_billion_are_planned_from_their_headers(tmp_path, monkeypatch, method):
    """mergekit#107 ran out of 64 GB and of 130 GB of swap."""
    folders = [large.sparse(tmp_path / f"{number}", "70B") for number in range(4)]

    def read(*arguments):
        raise AssertionError("weights are read")

    monkeypatch.setattr(Reader, "raw", read)
    models, base = folders[1:], folders[0]
    if method == "mean":
        report = fuse(models, dry_run=True)
        size = 2 * 70_553_706_496  # Llama 3 70B, in bfloat16
        assert (report.bytes_read, report.bytes_written) == (3 * size, size)
        assert len(report.averaged) == 723 and not report.problems
        assert report.memory < 300e6 and 100 < report.seconds < 1000
    else:
        monkeypatch.setattr("fusinglib.fusion.engine._add_updates", lambda job: None)
        report = fuse(models, dry_run=True, method="ties", pretrained=base)
        assert report.bytes_read == 4 * 2 * 70_553_706_496 and report.memory < 300e6
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.rglob("*") if file.is_file()) < 1e6


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux measures it")
def test_private_memory_does_not_grow_with_the_models(tmp_path):
    folders = [large.sparse(tmp_path / f"{number}", "240M", 2e8) for number in range(3)]
    size = sum(file.stat().st_size for file in folders[0].iterdir())
    assert size > 400e6
    most, foretold = large.measure(folders, tmp_path / "out")
    assert most < 300e6 and most < 1.5 * foretold
