"""A study killed at random moments and started again comes out as if nothing had happened."""

import importlib.util

import pytest
import yaml

from fusinglib.places import PROJECT
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable
from fusinglib.study.store import Store

pytestmark = pytest.mark.slow

SPEC = importlib.util.spec_from_file_location(
    "survive_kills", PROJECT / "benchmarks/survive_kills.py"
)
survive_kills = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(survive_kills)


@pytest.mark.parametrize(("executor", "kills"), [("serial", 9), ("processes", 36)])
def test_survives_kills(executor, kills, mini, tmp_path):
    """With five more, of a scheduler, in test_cluster.py: 50 random moments in all."""
    few = {"pretraining_steps": 60, "source_max_steps": 20, "target_max_steps": 50, "eval_every": 5}
    few |= {
        "seeds": list(range(4 if executor == "serial" else 12)),
        "executor": executor,
        "workers": 2,
        "stack": 1,  # a run that is retried has other company, and so other bits
    }
    params = {**mini, **few, "store": str(tmp_path / "killed")}
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(params))

    settings = FamilyTable.from_parameters({**params, "executor": "serial"})
    plan = plan_experiment(settings)
    execute(plan, Store(tmp_path / "undisturbed"), settings)

    command, victims = ["--params", str(file)], survive_kills.VICTIMS[executor]
    store = tmp_path / "killed"
    problems = survive_kills.kill_and_restart(command, plan, store, victims, kills, seed=1)
    problems += survive_kills.compare(plan, store, tmp_path / "undisturbed")
    assert not problems, (tmp_path / "killed-executed/log.txt").read_text()
