"""How a task is read, and how a model is finetuned.

The annotations say which values are allowed; `fusinglib.study.settings` checks them (with pydantic)
when parameters come from users.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
TextFormat = Literal["t5", "later"]
Numbers = Sequence[int] | np.ndarray
"""Row numbers, or label ids."""


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """What source and target finetuning share.

    `learning_rate` and `weight_decay` are AdamW's; `schedule` is "constant" or "linear" (to zero at
    the last batch); the dev `metric` is computed every `eval_every` batches, and gains of at least
    `min_gain` (a fraction, 0 to 1) count: the accuracy of the "ranked" or the "exact" label, or the
    "macro_f1" of the ranked one (see `scoring.metrics`). If memory is tight, a batch passes through
    the model in parts of `micro_batch` texts (0: whole). With `group_by_length`, texts of similar
    length share a batch.
    """

    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["constant", "linear"]
    weight_decay: Annotated[float, Field(ge=0)]
    dropout: Annotated[float, Field(ge=0, le=0.9)]
    eval_every: Positive
    min_gain: Annotated[float, Field(ge=0, le=1)]
    metric: Literal["ranked", "exact", "macro_f1"]
    precision: Literal["fp32", "bf16"]
    threads: Positive
    micro_batch: Count = 0
    group_by_length: bool = False


@dataclass(frozen=True, kw_only=True)
class Training(Finetuning):
    """How one finetuning is run. It ends after `max_steps` batches, or once `patience` batches
    have passed without a gain."""

    batch_size: Positive
    max_steps: Positive
    patience: Positive

    def as_json(self) -> dict:
        """What determines a run, as JSON data; newer settings are left out where they change
        nothing, so that old keys stay valid."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if v or k not in ("micro_batch", "group_by_length")}


@dataclass(frozen=True, kw_only=True)
class Data:
    """How a task's rows become splits and text.

    `split_rule`: "grouped" keeps examples that share a text on one side (see `groups`); "paper" is
    Appendix B, which does not; "later" the authors' later public rule.
    """

    split_rule: Literal["grouped", "paper", "later"]
    split_seed: Count
    max_dev: Count
    max_test: Count
    text_format: TextFormat
    max_length: Annotated[int, Field(ge=8)]
