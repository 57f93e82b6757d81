"""The miniature world: generated plain English text, small enough to pretrain on in two minutes.

A world is drawn from a seed. The words, their meanings and the tasks are the same in every world;
the seed varies how often each topic, word and template occurs, who lives where and does what, which
hashtags belong to which side of a debate, and every draw of a text.

All texts come from templates and from events ("the baker sold bread in the cafe on monday ."), so
a task measures one narrow thing, and its name says which real task it stands for, not that it is as
hard. Labels are drawn uniformly. Five percent of the training labels are wrong on purpose (replaced
by another label); validation and test labels are clean. No input occurs twice within a task. The
corpus holds the words and many of the templates of the tasks, and the label words in ordinary
sentences, but no labelled example.

What the tasks measure: sentiment, mood, emotion, emoji: word clusters, negation, and which of two
clauses counts. Offensive, hate: insults and whom they meet. Irony: whether the polarity of the
judgement fits the situation. Stances: phrases, their denial, and hashtags whose side is known from
the corpus. Acceptability: word order and word forms. Wordsense: the sense of a homograph from its
context, twice. Paraphrase, entailment, inference, yesno, answerable: comparison of two descriptions
of an event up to synonyms, kinds, voice, opposites and negation; all but paraphrase also give cues
that need no comparison (negation in entailment, inference and yesno, a missing place in
answerable). Pronoun: gender of names. Captions: as in SNLI, the second sentence alone tells much.
"""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fusinglib.errors import InputError

VERSION = 1  # raise whenever a generated text changes
LABEL_NOISE = 0.05  # share of wrong labels, in the training split only
SENTINELS = 20

_WORDS = yaml.safe_load((Path(__file__).parent / "miniworld.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class MiniTask:
    """A task: `make(world, rng, label)` gives the text of each column for that label's index."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    families: tuple[str, ...]
    sizes: dict[str, int]
    make: Callable[["World", random.Random, int], list[str]]


@dataclass(frozen=True)
class Event:
    """Who did what to which thing, where, when and with whom; tuples hold synonyms."""

    people: tuple[str, ...]
    verbs: tuple[tuple[str, str], ...]  # (base form, past form)
    opposites: tuple[tuple[str, str], ...]
    things: tuple[str, ...]
    kind: str
    details: dict[str, str]  # "place", "day", "friend" -> phrase


class World:
    """The hidden variables of one world, and the means to write its texts."""

    def __init__(self, seed: int):
        rng = random.Random(f"{VERSION}/{seed}/world")
        self.lists = {name: _favour(_split(words), rng) for name, words in _WORDS["lists"].items()}
        self._deal_hashtags(rng)
        self.topics = _favour([_topic(topic) for topic in _WORDS["topics"].values()], rng)
        names = _split(_WORDS["lists"]["MAN"]) + _split(_WORDS["lists"]["WOMAN"])
        self.homes = [(name, rng.choice(self.lists["TOWN"])) for name in names]
        self.jobs = {
            name: (topic, rng.choice(topic.people))
            for name, topic in zip(names, rng.choices(self.topics, k=len(names)), strict=True)
        }
        self.names = names
        self.templates = {
            name: {label: _favour(_split(lines), rng) for label, lines in labels.items()}
            for name, labels in _WORDS["tasks"].items()
        }
        self.documents = [_favour(_split(lines), rng) for lines in _WORDS["documents"].values()]
        self.homographs = [
            [_split(sense) for sense in senses] for senses in _WORDS["homographs"].values()
        ]
        self.writers = _favour(list(_DOCUMENTS), rng)

    def _deal_hashtags(self, rng: random.Random) -> None:
        tags = _split(_WORDS["lists"]["HASHTAG"])
        rng.shuffle(tags)
        sides = ("PROCARSTAG", "ANTICARSTAG", "PROZOOSTAG", "ANTIZOOSTAG", "NOTAG")
        for start, side in enumerate(sides):
            self.lists[side] = tags[start :: len(sides)]

    def fill(self, template: str, rng: random.Random) -> str:
        """The template with a word for each slot."""
        return " ".join(self._fill(template, rng, {}))

    def _fill(self, template: str, rng: random.Random, known: dict[str, str]) -> list[str]:
        words = []
        for token in template.split():
            if not token.isupper():
                words.append(token)
            elif token in self.lists:
                words += self._fill(rng.choice(self.lists[token]), rng, known)
            else:  # a slot with a digit keeps its words
                if token not in known:
                    known[token] = self.fill(rng.choice(self.lists[token[:-1]]), rng)
                words.append(known[token])
        return words

    def event(self, rng: random.Random, topic: "Topic | None" = None) -> Event:
        """A random event, of the given topic if there is one."""
        topic = topic or rng.choice(self.topics)
        verb = rng.randrange(len(topic.verbs))
        kind, things = rng.choice(topic.things)
        return Event(
            people=rng.choice(topic.people),
            verbs=topic.verbs[verb],
            opposites=topic.verbs[verb ^ 1],
            things=things,
            kind=kind,
            details={
                "place": f"in the {rng.choice(topic.places)}",
                "day": f"on {rng.choice(_DAYS)}",
                "friend": f"with {rng.choice(self.names)}",
            },
        )


@dataclass(frozen=True)
class Topic:
    """The words of one topic."""

    people: list[tuple[str, ...]]
    verbs: list[tuple[tuple[str, str], ...]]  # 2i and 2i + 1 are opposites
    things: list[tuple[str, tuple[str, ...]]]  # (kind, synonyms)
    places: list[str]


def _topic(words: dict) -> Topic:
    pairs = [
        (kind, tuple(pair.split("/")))
        for kind, row in words["things"].items()
        for pair in row.split()
    ]
    return Topic(
        people=[tuple(pair.split("/")) for pair in words["people"].split()],
        verbs=[tuple(tuple(v.split()) for v in pair.split("/")) for pair in words["verbs"]],
        things=pairs,
        places=words["places"].split(),
    )


def _split(text: str) -> list[str]:
    """Lines of a block, or the words of a single line."""
    return text.splitlines() if "\n" in text else text.split()


def _favour(items: list, rng: random.Random) -> list:
    """The items, a random half of them twice: in this world these are more frequent."""
    return items + rng.sample(items, len(items) // 2)


_DAYS = _WORDS["days"].split()


# Sentences about events


def _sentence(event, rng, details=(), negated=False, opposite=False, vague=False) -> str:
    """One way to tell the event; vague tells the kind of the thing only."""
    who = f"the {rng.choice(event.people)}"
    base, past = rng.choice(event.opposites if opposite else event.verbs)
    what = f"some {event.kind}" if vague else f"the {rng.choice(event.things)}"
    if rng.random() < 0.3:
        core = f"{what} was {'not ' if negated else ''}{past} by {who}"
    else:
        core = f"{who} {'did not ' + base if negated else past} {what}"
    phrases = [event.details[name] for name in details]
    if phrases and rng.random() < 0.3:
        return " ".join([phrases[0], ",", core, *phrases[1:], "."])
    return " ".join([core, *phrases, "."])


def _some_details(rng, count=None) -> list[str]:
    names = ["place", "day", "friend"]
    return rng.sample(names, rng.randrange(3) if count is None else count)


def _changed(event, world, rng) -> Event:
    """The event with another person, thing or verb of some topic in its place."""
    other = world.event(rng)
    while (
        other.people == event.people or other.things == event.things or other.verbs == event.verbs
    ):
        other = world.event(rng)
    part = rng.choice(("people", "things", "verbs"))
    fields = {**event.__dict__, part: getattr(other, part)}
    if part == "things":
        fields["kind"] = other.kind
    if part == "verbs":
        fields["opposites"] = other.opposites
    return Event(**fields)


def _question(event, rng, word: str) -> str:
    who, what = rng.choice(event.people), rng.choice(event.things)
    base, past = rng.choice(event.verbs)
    if word == "who":
        return f"who {past} the {what} ?"
    return f"{word} did the {who} {base} the {what} ?"


# Tasks about events


def _acceptability(world, rng, label):
    words = _sentence(world.event(rng), rng, _some_details(rng), rng.random() < 0.3).split()
    if label == 0:
        at = rng.randrange(len(words) - 2)
        change = rng.randrange(3)
        if change == 0 and words[at] != words[at + 1]:
            words[at], words[at + 1] = words[at + 1], words[at]
        elif change == 1:
            words.insert(at, words[rng.randrange(len(words) - 1)])
        else:
            del words[at]
    return [" ".join(words)]


def _paraphrase(world, rng, label):
    event = world.event(rng)
    details = _some_details(rng, 1)
    second = event if label else _changed(event, world, rng)
    return [_sentence(event, rng, details), _sentence(second, rng, details)]


def _entailment(world, rng, label):
    """Labels true, maybe, false."""
    event = world.event(rng)
    details = _some_details(rng, 2)
    negated = rng.random() < 0.2
    premise = _sentence(event, rng, details, negated)
    if label == 0:
        if negated:
            return [premise, _sentence(event, rng, details, True)]
        return [
            premise,
            _sentence(event, rng, details[: rng.randrange(3)], vague=rng.random() < 0.4),
        ]
    if label == 1:
        new = [name for name in event.details if name not in details]
        if rng.random() < 0.5:
            return (
                [premise, _sentence(event, rng, new)]
                if not negated
                else [
                    premise,
                    _sentence(_changed(event, world, rng), rng, details, rng.random() < 0.5),
                ]
            )
        return [premise, _sentence(_changed(event, world, rng), rng, new, rng.random() < 0.2)]
    if negated:
        return [premise, _sentence(event, rng, details)]
    if rng.random() < 0.3:
        return [premise, _sentence(event, rng, details[:1], opposite=True)]
    return [premise, _sentence(event, rng, details[:1], True)]


def _inference(world, rng, label):
    """Labels false, true: does the second text follow from the two sentences of the first?"""
    name = rng.choice(world.names)
    topic, job = world.jobs[name]
    first, second = world.event(rng, topic), world.event(rng)
    known = Event(**{**first.__dict__, "people": job})
    named = _sentence(Event(**{**first.__dict__, "people": job}), rng, _some_details(rng, 1))
    told = [named, _sentence(second, rng, _some_details(rng, 1))]
    rng.shuffle(told)
    if label:
        claim = _sentence(known, rng, vague=rng.random() < 0.5)
    elif rng.random() < 0.4:
        claim = _sentence(known, rng, negated=True)
    else:
        claim = _sentence(_changed(known, world, rng), rng, vague=rng.random() < 0.5)
    return [" ".join(told), claim]


def _answerable(world, rng, label):
    """Labels false, true: does the sentence answer the question?"""
    event = world.event(rng)
    word, detail = rng.choice((("where", "place"), ("when", "day"), ("who", None)))
    others = [name for name in event.details if name != detail]
    extra = rng.sample(others, 1)
    question = _question(event, rng, word)
    if label:
        return [question, _sentence(event, rng, [detail, *extra] if detail else extra)]
    if detail and rng.random() < 0.6:
        return [question, _sentence(event, rng, others)]
    return [
        question,
        _sentence(_changed(event, world, rng), rng, [detail, *extra] if detail else extra),
    ]


def _yesno(world, rng, label):
    """Labels no, yes."""
    event, other = world.event(rng), world.event(rng)
    chance = rng.random()
    if label:
        told = _sentence(event, rng, _some_details(rng))
    elif chance < 0.4:
        told = _sentence(event, rng, _some_details(rng), negated=True)
    elif chance < 0.7:
        told = _sentence(event, rng, _some_details(rng), opposite=True)
    else:
        told = _sentence(_changed(event, world, rng), rng, _some_details(rng))
    passage = [told, _sentence(other, rng, _some_details(rng, 1), rng.random() < 0.3)]
    rng.shuffle(passage)
    question = f"did {_sentence(event, rng)}"
    who, what = rng.choice(event.people), rng.choice(event.things)
    question = f"did the {who} {rng.choice(event.verbs)[0]} the {what} ?"
    return [question, " ".join(passage)]


def _wordsense(world, rng, label):
    """Labels different, same. Sentences get a reporting clause, else there would be too few."""
    senses = rng.choice(world.homographs)
    first = rng.randrange(2)
    one = rng.choice(senses[first])
    two = rng.choice(senses[first if label else 1 - first])
    return [
        f"{rng.choice(world.names)} said that {one} .",
        f"{rng.choice(world.names)} said that {two} .",
    ]


def _templates(name):
    """A maker of examples from the templates of a task."""
    labels = list(_WORDS["tasks"][name])

    def make(world, rng, label):
        text = world.fill(rng.choice(world.templates[name][labels[label]]), rng)
        return text.split(" | ")

    return make


def _task(name, train, families, columns, labels=None, make=None) -> MiniTask:
    labels = labels or tuple(_WORDS["tasks"][name])
    sizes = {"train": train, "validation": 200, "test": 1000}
    return MiniTask(columns, labels, families, sizes, make or _templates(name))


_PAIR = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")
_THREE = ("true", "maybe", "false")
_BOTH = ("general", "nli")
_TWITTER = ("twitter",)

TASKS: dict[str, MiniTask] = {
    "acceptability": _task(
        "acceptability", 800, ("general",), ("sentence",), ("wrong", "correct"), _acceptability
    ),
    "sentiment": _task("sentiment", 3000, ("general",), ("sentence",)),
    "paraphrase": _task(
        "paraphrase", 1500, ("general",), _PAIR, ("different", "same"), _paraphrase
    ),
    "entailment": _task("entailment", 4000, _BOTH, _NLI, _THREE, _entailment),
    "answerable": _task(
        "answerable", 2000, _BOTH, ("question", "sentence"), ("false", "true"), _answerable
    ),
    "inference": _task("inference", 500, _BOTH, _PAIR, ("false", "true"), _inference),
    "pronoun": _task("pronoun", 200, _BOTH, _PAIR),
    "yesno": _task("yesno", 1000, ("general",), ("question", "passage"), ("no", "yes"), _yesno),
    "wordsense": _task("wordsense", 600, ("general",), _PAIR, ("different", "same"), _wordsense),
    "captions": _task("captions", 5000, ("nli",), _NLI),
    "mood": _task("mood", 4500, _TWITTER, ("text",)),
    "emoji": _task("emoji", 3000, _TWITTER, ("text",)),
    "emotion": _task("emotion", 1000, _TWITTER, ("text",)),
    "irony": _task("irony", 600, _TWITTER, ("text",)),
    "hate": _task("hate", 1500, _TWITTER, ("text",)),
    "offensive": _task("offensive", 1200, _TWITTER, ("text",)),
    "stance_cars": _task("stance_cars", 300, _TWITTER, ("text",)),
    "stance_zoos": _task("stance_zoos", 200, _TWITTER, ("text",)),
}


def examples(name: str, world_seed: int) -> dict[str, list[dict]]:
    """All splits of a task: rows of texts by column name and `label`, an index into its labels.

    The answer depends on VERSION, the name and the world seed alone. Raises InputError for an
    unknown task or a bad seed.
    """
    if name not in TASKS:
        raise InputError(
            f"task {name!r} is not in the miniature world: use one of {', '.join(TASKS)}"
        )
    task, world = TASKS[name], _world(world_seed)
    seen: set[tuple[str, ...]] = set()
    splits = {}
    for split in ("test", "validation", "train"):  # a larger training set leaves the tests as is
        rng = random.Random(f"{VERSION}/{world_seed}/{name}/{split}")
        noise = LABEL_NOISE if split == "train" else 0.0
        splits[split] = _draw(task, world, rng, task.sizes[split], noise, seen)
    return {split: splits[split] for split in ("train", "validation", "test")}


def _draw(task, world, rng, count, noise, seen) -> list[dict]:
    """`count` new examples; a text that was seen before is drawn again."""
    rows = []
    while len(rows) < count:
        label = rng.randrange(len(task.labels))
        texts = task.make(world, rng, label)
        if tuple(texts) in seen:
            continue
        seen.add(tuple(texts))
        if rng.random() < noise:
            label = (label + rng.randrange(1, len(task.labels))) % len(task.labels)
        rows.append({**dict(zip(task.columns, texts, strict=True)), "label": label})
    return rows


# Documents of the corpus


def _told_again(world, rng):
    event = world.event(rng)
    details = _some_details(rng)
    negated = rng.random() < 0.2
    link = rng.choice(("in other words ,", "that means ,", "yes ,"))
    again = _sentence(event, rng, details, negated)
    return f"{_sentence(event, rng, details, negated)} {link} {again}"


def _discussed(world, rng):
    """Somebody agrees (same event), disagrees (its negation or opposite) or adds another event."""
    event = world.event(rng)
    details = _some_details(rng, 1)
    one, two = rng.choice(world.names), rng.choice(world.names)
    negated = rng.random() < 0.3
    said = f"{one} said : {_sentence(event, rng, details, negated)} {two}"
    chance = rng.random()
    if chance < 0.33:
        return f"{said} agreed : {_sentence(event, rng, (), negated)}"
    if chance < 0.66:
        opposite = not negated and rng.random() < 0.4
        turned = not negated and not opposite
        return f"{said} disagreed : {_sentence(event, rng, (), turned, opposite)}"
    return f"{said} added : {_sentence(_changed(event, world, rng), rng, (), negated)}"


def _asked(world, rng):
    event = world.event(rng)
    word, detail = rng.choice((("where", "place"), ("when", "day"), ("who", None)))
    details = _some_details(rng, 3)
    answer = event.details[detail] if detail else f"the {rng.choice(event.people)}"
    return f"{_sentence(event, rng, details)} {_question(event, rng, word)} {answer} ."


def _kinds(world, rng):
    event = world.event(rng)
    one, two = rng.sample(event.things, 2)
    tail = _sentence(event, rng, _some_details(rng, 1))
    return f"{tail} so it was some {event.kind} . a {one} or {two} is a kind of {event.kind} ."


def _facts(world, rng):
    (name, town), (_, job) = rng.choice(world.homes), (None, None)
    topic, job = world.jobs[name]
    event = Event(**{**world.event(rng, topic).__dict__, "people": job})
    return (
        f"{name} from {town} is a {rng.choice(job)} . {_sentence(event, rng, _some_details(rng))}"
    )


def _senses(world, rng):
    sense = rng.choice(rng.choice(world.homographs))
    one, two = rng.sample(sense, 2)
    return f"{one} . {two} ."


def _from_templates(world, rng):
    return world.fill(rng.choice(rng.choice(world.documents)), rng)


def _unlabelled(world, rng):
    """The first column of an example of a task made from templates."""
    labels = world.templates[rng.choice(list(world.templates))]
    return world.fill(rng.choice(rng.choice(list(labels.values()))).split(" | ")[0], rng)


_DOCUMENTS = (
    *[_told_again] * 4,
    *[_discussed] * 5,
    *[_asked] * 3,
    _kinds,
    _facts,
    _senses,
    *[_from_templates] * 6,
    *[_unlabelled] * 3,
)


def corpus(world_seed: int, documents: int) -> list[str]:
    """Unlabelled documents of about 20 tokens; a longer corpus begins with the shorter one."""
    world = _world(world_seed)
    if not isinstance(documents, int) or documents < 0:
        raise InputError(f"documents is {documents!r}: give a whole number from 0")
    rng = random.Random(f"{VERSION}/{world_seed}/corpus")
    return [rng.choice(world.writers)(world, rng) for _ in range(documents)]


@functools.lru_cache(maxsize=4)
def _world(seed: int) -> World:
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"world_seed is {seed!r}: give a whole number from 0")
    return World(seed)


# Tokenizer

_PRE_TOKENIZER = pre_tokenizers.Whitespace()


def _strings(value) -> list[str]:
    """All strings inside nested dicts and lists, keys included."""
    if isinstance(value, dict):
        return _strings(list(value)) + _strings(list(value.values()))
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return [value]


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that appends </s>; ids: <pad> 0, </s> 1, <unk> 2, then sentinels."""
    texts = _strings(_WORDS) + [
        text for name, task in TASKS.items() for text in (name, *task.columns, *task.labels)
    ]
    words = {
        word
        for text in texts
        for token in text.replace("/", " ").split()
        if not token.isupper()
        for word, _ in _PRE_TOKENIZER.pre_tokenize_str(token)
    }
    sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    special = ["<pad>", "</s>", "<unk>", *sentinels]
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(words)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = _PRE_TOKENIZER
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=sentinels,
        model_input_names=["input_ids", "attention_mask"],
    )
