"""How a task is read, and how a model is finetuned."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """What source and target finetuning share (study: Finetuning).

    `learning_rate` and `weight_decay` are AdamW's; `schedule` is "constant" or "linear" (to zero
    at the last batch); the dev metric is taken every `eval_every` batches, and a gain counts from
    `min_gain` (a fraction, 0 to 1). Where memory is short, a batch goes through the model in parts
    of `micro_batch` texts (0: whole). With `group_by_length`, texts of like length share a batch.
    """

    learning_rate: float
    schedule: str
    weight_decay: float
    dropout: float
    eval_every: int
    min_gain: float
    metric: str
    precision: str
    threads: int
    micro_batch: int = 0
    group_by_length: bool = False


@dataclass(frozen=True, kw_only=True)
class Training(Finetuning):
    """How one finetuning is run. It ends after `max_steps` batches, or once `patience` batches
    have passed without a gain."""

    batch_size: int
    max_steps: int
    patience: int

    def settings(self) -> dict:
        """What decides a run, as JSON data; what is younger than the store's first runs is left out
        where it changes nothing."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if v or k not in ("micro_batch", "group_by_length")}


@dataclass(frozen=True, kw_only=True)
class Data:
    """How a task's rows become splits and text (study: Splits, Finetuning)."""

    split_rule: str
    split_seed: int
    max_dev: int
    max_test: int
    text_format: str
    max_length: int
