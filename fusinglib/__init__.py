"""Can the finetuned models that already exist be turned into a better base model?"""

from fusinglib.errors import InputError as InputError
from fusinglib.fusion.adapter_sums import fuse_adapters as fuse_adapters
from fusinglib.fusion.engine import fuse as fuse
from fusinglib.fusion.engine import leave_one_out as leave_one_out


def __getattr__(name: str):
    if name == "add_task":  # imported late: fusing should not wait for what tasks need
        from fusinglib.training.tasks import add_task

        return add_task
    if name == "Study":
        from fusinglib.study.study import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
