"""The tasks and families of the study: one table, a row per task."""

from dataclasses import dataclass

from fusinglib.errors import InputError, nearest
from fusinglib.training import miniworld

MINIWORLD = "miniworld"
"""What stands in the place of a Hub id for the tasks of the embedded miniature world."""


@dataclass(frozen=True)
class Task:
    """A classification task: where its rows are and how they are read.

    `labels` are the words for the label ids 0, 1, ... in this order; `splits` names the rule by
    which the copy's own splits become train, dev and test (see `fusinglib.data`): "carve" where
    the test labels are not public, "own", "mnli", or "rounds" (ANLI). `revision` pins a commit;
    for a task of the miniature world it is the world's seed.
    """

    name: str
    hub_id: str
    config: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    label_column: str = "label"
    splits: str = "carve"
    revision: str | None = None

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two names the same task for leave-target-out: (Hub id, config)."""
        return (self.hub_id, self.config)


def _glue(name: str, columns: str, labels: str, splits: str = "carve") -> Task:
    return Task(
        name, "nyu-mll/glue", name, tuple(columns.split()), tuple(labels.split()), splits=splits
    )


def _superglue(name: str, columns: str, labels: str) -> Task:
    return Task(name, "aps/super_glue", name, tuple(columns.split()), tuple(labels.split()))


def _tweets(name: str, *labels: str) -> Task:
    return Task(name, "cardiffnlp/tweet_eval", name, ("text",), labels, splits="own")


PAIR, ENTAILMENT = "premise hypothesis", "entailment neutral contradiction"
STANCE = ("none", "against", "favor")
EMOJI = (
    "red heart",
    "smiling face with heart eyes",
    "face with tears of joy",
    "two hearts",
    "fire",
    "smiling face with smiling eyes",
    "smiling face with sunglasses",
    "sparkles",
    "blue heart",
    "face blowing a kiss",
    "camera",
    "united states",
    "sun",
    "purple heart",
    "winking face",
    "hundred points",
    "beaming face",
    "christmas tree",
    "camera with flash",
    "winking face with tongue",
)

ROWS = (
    _glue("cola", "sentence", "unacceptable acceptable"),
    _glue("sst2", "sentence", "negative positive"),
    _glue("mrpc", "sentence1 sentence2", "not_equivalent equivalent"),
    _glue("qqp", "question1 question2", "not_duplicate duplicate"),
    _glue("mnli", PAIR, ENTAILMENT, splits="mnli"),
    _glue("qnli", "question sentence", "entailment not_entailment"),
    _glue("rte", "sentence1 sentence2", "entailment not_entailment"),
    _glue("wnli", "sentence1 sentence2", "not_entailment entailment"),
    _superglue("boolq", "question passage", "False True"),
    _superglue("cb", PAIR, "entailment contradiction neutral"),
    _superglue("copa", "premise question choice1 choice2", "choice1 choice2"),
    _superglue("multirc", "paragraph question answer", "False True"),
    _superglue("wic", "word sentence1 sentence2", "False True"),
    _superglue("wsc", "text span1_text span2_text", "False True"),
    Task(
        "esnli", "esnli/esnli", "plain_text", ("premise", "hypothesis"),
        tuple(ENTAILMENT.split()), splits="own",
    ),
    Task(
        "anli", "facebook/anli", "plain_text", ("premise", "hypothesis"),
        tuple(ENTAILMENT.split()), splits="rounds",
    ),
    _tweets("emoji", *EMOJI),
    _tweets("emotion", "anger", "joy", "optimism", "sadness"),
    _tweets("hate", "not hateful", "hateful"),
    _tweets("irony", "not ironic", "ironic"),
    _tweets("offensive", "not offensive", "offensive"),
    _tweets("sentiment", "negative", "neutral", "positive"),
    _tweets("stance_abortion", *STANCE),
    _tweets("stance_atheism", *STANCE),
    _tweets("stance_climate", *STANCE),
    _tweets("stance_feminist", *STANCE),
    _tweets("stance_hillary", *STANCE),
)  # fmt: skip

TASKS = {task.name: task for task in ROWS}
"""The 27 tasks of the paper."""

FAMILIES = {
    "general": "cola sst2 mrpc qqp mnli qnli rte wnli boolq cb copa multirc wic wsc".split(),
    "nli": "mnli qnli rte wnli esnli anli".split(),
    "twitter": [task.name for task in ROWS if task.hub_id == "cardiffnlp/tweet_eval"],
}
"""The three families of the paper: 31 memberships."""

MINI_FAMILIES = {
    family: [name for name, task in miniworld.TASKS.items() if family in task.families]
    for family in FAMILIES
}
"""The three families in miniature."""


def table(tasks: str, world_seed: int) -> tuple[dict[str, Task], dict[str, list[str]]]:
    """The tasks and families of the "miniworld", or of the "paper"."""
    return (mini_tasks(world_seed), MINI_FAMILIES) if tasks == MINIWORLD else (TASKS, FAMILIES)


def mini_tasks(world_seed: int) -> dict[str, Task]:
    """The tasks of the miniature world of that seed."""
    seed = str(world_seed)
    return {
        name: Task(name, MINIWORLD, name, task.columns, task.labels, splits="own", revision=seed)
        for name, task in miniworld.TASKS.items()
    }


def find(name: str, tasks: dict[str, Task]) -> Task:
    """The task called `name`; an unknown one raises `InputError` with the nearest name."""
    if name not in tasks:
        raise InputError(f"unknown task {name!r}: {nearest(name, tasks)}")
    return tasks[name]


def leave_out(target: Task, sources: list[Task]) -> list[Task]:
    """`sources` without the target, by identity and across families (study: Terms)."""
    return [source for source in sources if source.identity != target.identity]
