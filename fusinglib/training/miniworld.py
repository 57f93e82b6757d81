"""The miniature world: generated plain English text, small enough to pretrain on in two minutes.

A world is drawn from a seed. The words, their meanings and the tasks are the same in every world;
the seed varies how often each topic, word and template occurs, which hashtags belong to which side
of a debate, and every draw of a text.

All texts come from templates and from events ("the baker sold bread in the cafe on monday ."), so
a task measures one narrow thing. Labels are drawn uniformly; five percent of the training labels
are wrong on purpose, validation and test labels are clean, and no input occurs twice in a task. The
corpus holds the words and most templates of the tasks, and the label words in ordinary sentences,
but no labelled example. The training texts of a task use half of the words (other ones in each
task and world), its validation and test texts all of them: as with real texts, what the corpus
taught about words that no training example held is what makes a pretrained model better.

What the tasks measure. Topic, sentiment, mood, emotion, emoji: word clusters, negation, and which
of two clauses counts. Irony: praise of something bad. Stances: phrases, their denial, and hashtags
whose side the corpus shows. Entailment, inference, yesno, answerable: comparison of two tellings of
an event up to synonyms, kinds, voice, opposites and negation, with cues that need no comparison (a
negation, a missing place), of which a model of this size learns little more. Captions: as in SNLI,
the second sentence alone tells much.
"""

import copy
import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fusinglib.errors import InputError

VERSION = 2  # raise whenever a generated text changes
LABEL_NOISE = 0.05  # share of wrong labels, in the training split only
TRAIN_WORDS = 1 / 2  # share of the words that a task's training texts use

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
    """Who did what to which thing, and where, when and with whom; tuples hold synonyms."""

    people: tuple[str, ...]
    verbs: tuple[str, ...]  # "base past"
    opposites: tuple[str, ...]
    things: tuple[str, ...]
    kind: str
    details: dict[str, str]  # "place", "day", "friend" -> phrase


def _split(text: str) -> list[str]:
    """Lines of a block, or the words of a single line."""
    return text.splitlines() if "\n" in text else text.split()


def _favour(items: list, rng: random.Random) -> list:
    """The items, a random half of them twice: in this world these are more frequent."""
    return items + rng.sample(items, len(items) // 2)


def _some_of(items: list, rng: random.Random, share: float) -> list:
    """A random share of the different items, rounded up."""
    different = [item for i, item in enumerate(items) if item not in items[:i]]
    return rng.sample(different, math.ceil(share * len(different)))


def _narrowed_topic(topic: dict, rng: random.Random, share: float) -> dict:
    """The topic with some of its words; verbs stay with their opposites."""
    opposites = list(zip(topic["verbs"][::2], topic["verbs"][1::2], strict=True))
    return {
        "people": " ".join(_some_of(topic["people"].split(), rng, share)),
        "things": {
            kind: " ".join(_some_of(things.split(), rng, share))
            for kind, things in topic["things"].items()
        },
        "verbs": [verb for pair in _some_of(opposites, rng, share) for verb in pair],
        "places": " ".join(_some_of(topic["places"].split(), rng, share)),
    }


class World:
    """The hidden variables of one world, and what writes its texts."""

    def __init__(self, seed: int):
        rng = random.Random(f"{VERSION}/{seed}/world")
        lists = {name: _split(words) for name, words in _WORDS["lists"].items()}
        self.lists = {name: _favour(words, rng) for name, words in lists.items()}
        tags, sides = lists["HASHTAG"], ("PROCARS", "ANTICARS", "PROZOOS", "ANTIZOOS", "NO")
        rng.shuffle(tags)
        self.lists |= {f"{side}TAG": tags[i :: len(sides)] for i, side in enumerate(sides)}
        self.topics = _WORDS["topics"]
        self.frequent = _favour(list(self.topics), rng)
        self.names = lists["MAN"] + lists["WOMAN"]
        self.templates = {
            name: {label: _favour(_split(lines), rng) for label, lines in labels.items()}
            for name, labels in _WORDS["templates"].items()
        }
        self.documents = [_favour(_split(lines), rng) for lines in _WORDS["documents"].values()]
        self.writers = _favour(list(_WRITERS), rng)

    def narrowed(self, rng: random.Random, share: float) -> "World":
        """The same world, as told by somebody who uses a share of its words only."""
        narrow = copy.copy(self)
        narrow.lists = {name: _some_of(words, rng, share) for name, words in self.lists.items()}
        narrow.topics = {
            name: _narrowed_topic(topic, rng, share) for name, topic in self.topics.items()
        }
        return narrow

    def fill(self, template: str, rng: random.Random, known: dict | None = None) -> str:
        """The template with words for each slot; a slot with a digit keeps its words."""
        known = {} if known is None else known
        words = []
        for token in template.split():
            if not token.isupper():
                words.append(token)
            elif token in self.lists:
                words.append(self.fill(rng.choice(self.lists[token]), rng, known))
            else:
                if token not in known:
                    known[token] = self.fill(rng.choice(self.lists[token[:-1]]), rng, known)
                words.append(known[token])
        return " ".join(words)

    def event(self, rng: random.Random, topic: str = "") -> Event:
        """A random event of a topic (of any, if none is named)."""
        chosen = self.topics[topic or rng.choice(self.frequent)]
        verb = rng.randrange(len(chosen["verbs"]))
        kind, things = rng.choice(list(chosen["things"].items()))
        return Event(
            people=tuple(rng.choice(chosen["people"].split()).split("/")),
            verbs=tuple(chosen["verbs"][verb].split("/")),
            opposites=tuple(chosen["verbs"][verb ^ 1].split("/")),
            things=tuple(rng.choice(things.split()).split("/")),
            kind=kind,
            details={
                "place": f"in the {rng.choice(chosen['places'].split())}",
                "day": f"on {rng.choice(self.lists['ADAY'])}",
                "friend": f"with {rng.choice(self.names)}",
            },
        )

    def changed(self, event: Event, rng: random.Random) -> Event:
        """The event with other people, another thing or another verb in its place."""
        other = self.event(rng)
        parts = rng.choice((["people"], ["things", "kind"], ["verbs", "opposites"]))
        changed = replace(event, **{part: getattr(other, part) for part in parts})
        now, before = ((e.people, e.verbs, e.kind) for e in (changed, event))
        if now == before or changed.verbs == event.opposites:
            return self.changed(event, rng)
        return changed


# Sentences about events


def _sentence(event, rng, details=(), negated=False, opposite=False, vague=False) -> str:
    """One way to tell the event; vague gives the kind of the thing only."""
    who = f"the {rng.choice(event.people)}"
    base, past = rng.choice(event.opposites if opposite else event.verbs).split()
    what = f"some {event.kind}" if vague else f"the {rng.choice(event.things)}"
    if rng.random() < 0.3:
        words = [f"{what} was {'not ' if negated else ''}{past} by {who}"]
    else:
        words = [f"{who} {'did not ' + base if negated else past} {what}"]
    words += [event.details[name] for name in details]
    if details and rng.random() < 0.3:
        words.insert(0, words.pop() + " ,")
    return " ".join([*words, "."])


def _some(rng, count=None, besides=()) -> list[str]:
    """Some names of details, in random order."""
    names = [name for name in ("place", "day", "friend") if name not in besides]
    return rng.sample(names, rng.randrange(len(names)) if count is None else count)


def _question(event, rng, word: str) -> str:
    """A question with "who", "where", "when" or "did"."""
    who, what = rng.choice(event.people), rng.choice(event.things)
    base, past = rng.choice(event.verbs).split()
    if word == "who":
        return f"who {past} the {what} ?"
    return f"{word + ' ' if word != 'did' else ''}did the {who} {base} the {what} ?"


# Tasks about events: a function gives the text of each column for a label's index


def _entailment(world, rng, label):
    event, details, negated = world.event(rng), _some(rng, 2), rng.random() < 0.2
    premise = _sentence(event, rng, details, negated)
    if label == 1:  # maybe: something else is told, with a detail that the premise lacks
        second = event if not negated and rng.random() < 0.5 else world.changed(event, rng)
        return [premise, _sentence(second, rng, _some(rng, 1, details), rng.random() < 0.2)]
    if negated:  # what did not happen in the kitchen may have happened elsewhere
        return [premise, _sentence(event, rng, details, label == 0)]
    if label == 0:
        return [premise, _sentence(event, rng, details[:1], vague=rng.random() < 0.4)]
    opposite = rng.random() < 0.3
    return [premise, _sentence(event, rng, details[:1], not opposite, opposite)]


def _inference(world, rng, label):
    """Two events, and a claim that follows from the first, denies it, or is about a third."""
    event = world.event(rng)
    told = [_sentence(one, rng, _some(rng, 1)) for one in (event, world.event(rng))]
    rng.shuffle(told)
    negated = not label and rng.random() < 0.4
    claim = event if label or negated else world.changed(event, rng)
    return [" ".join(told), _sentence(claim, rng, (), negated, vague=rng.random() < 0.5)]


def _topic(world, rng, label):
    """An event, told without its place."""
    event = world.event(rng, TASKS["topic"].labels[label])
    return [_sentence(event, rng, _some(rng, besides=["place"]), rng.random() < 0.2)]


_ASKED = (("where", ["place"]), ("when", ["day"]), ("who", []))


def _answerable(world, rng, label):
    event = world.event(rng)
    word, asked = rng.choice(_ASKED)
    others = _some(rng, 1, asked)
    question = _question(event, rng, word)
    if label:
        return [question, _sentence(event, rng, asked + others)]
    if asked and rng.random() < 0.6:
        return [question, _sentence(event, rng, _some(rng, 2, asked))]
    return [question, _sentence(world.changed(event, rng), rng, asked + others)]


def _yesno(world, rng, label):
    event, chance = world.event(rng), rng.random()
    negated, opposite = not label and chance < 0.4, not label and 0.4 <= chance < 0.7
    told = event if label or chance < 0.7 else world.changed(event, rng)
    passage = [
        _sentence(told, rng, _some(rng), negated, opposite),
        _sentence(world.event(rng), rng, _some(rng, 1), rng.random() < 0.3),
    ]
    rng.shuffle(passage)
    return [_question(event, rng, "did"), " ".join(passage)]


def _from_templates(name):
    """The function for a task made from templates alone."""
    labels = list(_WORDS["templates"][name])

    def make(world, rng, label):
        template = rng.choice(world.templates[name][labels[label]])
        return world.fill(template, rng).split(" | ")

    return make


def _task(name, families, columns, train, labels=None) -> MiniTask:
    labels = labels.split() if labels else _WORDS["templates"][name]
    sizes = {"train": train, "validation": 200, "test": 1000}
    make = _MAKERS.get(name) or _from_templates(name)
    return MiniTask(tuple(columns.split()), tuple(labels), tuple(families.split()), sizes, make)


_MAKERS = {
    "topic": _topic,
    "entailment": _entailment,
    "inference": _inference,
    "answerable": _answerable,
    "yesno": _yesno,
}
TASKS: dict[str, MiniTask] = {name: _task(name, **row) for name, row in _WORDS["tasks"].items()}


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
    for split in ("test", "validation", "train"):  # the training size does not change the others
        rng = random.Random(f"{VERSION}/{world_seed}/{name}/{split}")
        noise = LABEL_NOISE if split == "train" else 0.0
        teller = world.narrowed(rng, TRAIN_WORDS) if split == "train" else world
        splits[split] = _draw(task, teller, rng, task.sizes[split], noise, seen)
    return {split: splits[split] for split in task.sizes}


def _draw(task, world, rng, count, noise, seen) -> list[dict]:
    """`count` new examples; a text that was seen before is drawn again."""
    rows = []
    for _ in range(50 * count):
        label = rng.randrange(len(task.labels))
        texts = task.make(world, rng, label)
        if tuple(texts) in seen:
            continue
        seen.add(tuple(texts))
        if rng.random() < noise:
            label = (label + rng.randrange(1, len(task.labels))) % len(task.labels)
        rows.append({**dict(zip(task.columns, texts, strict=True)), "label": label})
        if len(rows) == count:
            return rows
    raise InputError(
        f"this world has only {len(rows)} different texts with the columns "
        f"{', '.join(task.columns)} where {count} are needed: choose another world_seed"
    )


# Documents of the corpus


def _told_again(world, rng):
    event, details, negated = world.event(rng), _some(rng), rng.random() < 0.2
    link = rng.choice(("in other words ,", "that means ,", "yes ,"))
    one, two = (_sentence(event, rng, details, negated) for _ in range(2))
    return f"{one} {link} {two}"


def _discussed(world, rng):
    """Somebody agrees (same event), disagrees (its negation or opposite) or adds another event."""
    event, negated = world.event(rng), rng.random() < 0.3
    one, two = rng.sample(world.names, 2)
    verb = rng.choice(("agreed", "disagreed", "added"))
    opposite = verb == "disagreed" and not negated and rng.random() < 0.4
    turned = negated != (verb == "disagreed" and not opposite)
    reply = world.changed(event, rng) if verb == "added" else event
    said = _sentence(event, rng, _some(rng, 1), negated)
    return f"{one} said : {said} {two} {verb} : {_sentence(reply, rng, (), turned, opposite)}"


def _asked(world, rng):
    event = world.event(rng)
    word, asked = rng.choice(_ASKED)
    answer = event.details[asked[0]] if asked else f"the {rng.choice(event.people)}"
    return f"{_sentence(event, rng, _some(rng, 3))} {_question(event, rng, word)} {answer} ."


def _kinds(world, rng):
    event = world.event(rng)
    one, two = rng.sample(event.things, 2)
    told = _sentence(event, rng, _some(rng, 1))
    return f"{told} so it was some {event.kind} . {one} and {two} are words for {event.kind} ."


def _other(world, rng):
    return world.fill(rng.choice(rng.choice(world.documents)), rng)


def _unlabelled(world, rng):
    """The first column of an example of a task made from templates."""
    name = rng.choice(list(world.templates))
    return TASKS[name].make(world, rng, rng.randrange(len(TASKS[name].labels)))[0]


_WRITERS = [_told_again, _discussed, _asked, _kinds] + [_other] * 6 + [_unlabelled] * 2


def corpus(world_seed: int, documents: int) -> list[str]:
    """Unlabelled documents of about 20 tokens; a longer corpus begins with the shorter one."""
    world = _world(world_seed)
    if not isinstance(documents, int) or documents < 0:
        raise InputError(f"documents is {documents!r}: expected a whole number of at least 0")
    rng = random.Random(f"{VERSION}/{world_seed}/corpus")
    return [rng.choice(world.writers)(world, rng) for _ in range(documents)]


@functools.lru_cache(maxsize=4)
def _world(seed: int) -> World:
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"world_seed is {seed!r}: expected a whole number of at least 0")
    return World(seed)


# Tokenizer

_PRE_TOKENIZER = pre_tokenizers.Whitespace()


def _strings(value) -> list[str]:
    """All strings inside nested dicts and lists, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return [text for item in value for text in _strings(item)]


def tokenizer():
    """A word-level `PreTrainedTokenizerFast` that appends </s>; ids: <pad> 0, </s> 1, <unk> 2, then
    words."""
    from transformers import PreTrainedTokenizerFast

    parts = ("topics", "lists", "templates", "documents")
    texts = _strings([list(_WORDS[part].values()) for part in parts]) + [_WORDS["other"]]
    texts += [text for task in TASKS.values() for text in (*task.columns, *task.labels)]
    words = {
        word
        for text in texts
        for token in text.replace("/", " ").split()
        if not token.isupper()
        for word, _ in _PRE_TOKENIZER.pre_tokenize_str(token)
    }
    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(words | set(TASKS))])}
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
        model_input_names=["input_ids", "attention_mask"],
    )
