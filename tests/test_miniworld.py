"""The miniature world: determinism, vocabulary, splits, and that the texts are what they claim."""

import hashlib
import json
from collections import Counter

import pytest

from fusinglib.errors import InputError
from fusinglib.training import miniworld

# The hash of the texts at seed 0. If it changes, raise miniworld.VERSION and write the new hash.
PINNED = {2: "78db787ff8862041"}


@pytest.fixture(scope="module")
def all_examples():
    return {name: miniworld.examples(name, 0) for name in miniworld.TASKS}


def inputs(name, rows):
    columns = miniworld.TASKS[name].columns
    return [f"{name} " + " ".join(f"{column}: {row[column]}" for column in columns) for row in rows]


def test_texts_are_pinned_to_the_version(all_examples):
    heads = {
        name: {split: rows[:20] for split, rows in splits.items()}
        for name, splits in all_examples.items()
    }
    text = json.dumps([miniworld.corpus(0, 200), heads], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == PINNED[miniworld.VERSION]


def test_examples_do_not_depend_on_what_was_made_before(all_examples):
    miniworld._world.cache_clear()
    assert miniworld.examples("stance_zoos", 0) == all_examples["stance_zoos"]


def test_worlds_differ(all_examples):
    assert miniworld.examples("irony", 1) != all_examples["irony"]
    assert miniworld.corpus(1, 5) != miniworld.corpus(0, 5)


def test_a_longer_corpus_begins_with_the_shorter():
    assert miniworld.corpus(3, 50) == miniworld.corpus(3, 100)[:50]


@pytest.mark.parametrize("name", miniworld.TASKS)
def test_splits(name, all_examples):
    task, splits = miniworld.TASKS[name], all_examples[name]
    assert {split: len(rows) for split, rows in splits.items()} == task.sizes
    rows = [row for split in splits.values() for row in split]
    assert {tuple(row) for row in rows} == {(*task.columns, "label")}
    texts = {tuple(row[column] for column in task.columns) for row in rows}
    assert len(texts) == len(rows), "an input occurs twice"
    shares = Counter(row["label"] for row in splits["test"])
    assert set(shares) == set(range(len(task.labels)))
    assert max(shares.values()) < 1.2 * 1000 / len(task.labels)


@pytest.mark.parametrize("seed", range(1, 6))
def test_every_world_has_texts_enough(seed):
    for name, task in miniworld.TASKS.items():
        assert len(miniworld.examples(name, seed)["train"]) == task.sizes["train"]


def test_too_few_texts_is_an_error_that_names_the_seed(monkeypatch):
    monkeypatch.setattr(miniworld, "TRAIN_WORDS", 0.01)
    with pytest.raises(InputError, match=r"only \d+ different texts.* 150 .*world_seed"):
        miniworld.examples("stance_cars", 0)


@pytest.mark.parametrize(("name", "words"), [("sentiment", "GOOD"), ("emotion", "ANGRY")])
def test_training_texts_use_half_of_the_words(name, words, all_examples):
    words = set(miniworld._WORDS["lists"][words].split())
    used = {
        split: words & {word for row in rows for word in " ".join(map(str, row.values())).split()}
        for split, rows in all_examples[name].items()
    }
    assert used["test"] == words
    assert len(used["train"]) == len(words) / 2


def test_only_training_labels_are_noisy(all_examples):
    outdoors = miniworld._WORDS["lists"]["OUTDOORACT"].splitlines()
    labels = miniworld.TASKS["captions"].labels

    def checked(rows):
        """Of the captions that claim outdoors or indoors: whether the label is wrong."""
        wrong = []
        for row in rows:
            claim = row["hypothesis"].split()[-2]
            if claim in ("outdoors", "indoors"):
                outside = any(act in row["premise"] for act in outdoors)
                truth = "true" if outside == (claim == "outdoors") else "false"
                wrong.append(labels[row["label"]] != truth)
        return wrong

    splits = {name: checked(rows) for name, rows in all_examples["captions"].items()}
    assert not any(splits["test"]) and not any(splits["validation"])
    assert 0.02 < sum(splits["train"]) / len(splits["train"]) < 0.08


@pytest.mark.parametrize("family", ["general", "nli", "twitter"])
def test_each_family_has_one_largest_task(family):
    tasks = [task for task in miniworld.TASKS.values() if family in task.families]
    sizes = sorted((task.sizes["train"] for task in tasks), reverse=True)
    assert len(sizes) >= 4
    assert sizes[0] > sizes[1] > sizes[2]


def test_no_unknown_word(all_examples):
    tokenizer = miniworld.tokenizer()
    texts = miniworld.corpus(0, 1000) + miniworld.corpus(1, 1000)
    texts += [f"<{name} <SEP> 0 1 2 3 4 5 6 7 8 9" for name in miniworld.TASKS]
    for name, splits in all_examples.items():
        texts += [text for rows in splits.values() for text in inputs(name, rows)]
    unknown = tokenizer.unk_token_id
    assert [text for text in texts if unknown in tokenizer(text)["input_ids"]] == []


def test_every_word_of_the_vocabulary_occurs_in_the_corpus():
    tokenizer = miniworld.tokenizer()
    seen = {i for ids in tokenizer(miniworld.corpus(0, 20000))["input_ids"] for i in ids}
    formats = {*"<>|-/!;0123456789", "sep", "places", "verbs", "things", *miniworld.TASKS}
    formats |= {column for task in miniworld.TASKS.values() for column in task.columns}
    unseen = {word for word, i in tokenizer.get_vocab().items() if i not in seen}
    assert {word for word in unseen if not word.startswith("<")} <= formats


def test_label_words_are_different_tokens_known_from_the_corpus():
    tokenizer = miniworld.tokenizer()
    words = {word for text in miniworld.corpus(0, 20000) for word in text.split()}
    for task in miniworld.TASKS.values():
        first = [tokenizer(label)["input_ids"][0] for label in task.labels]
        assert len(set(first)) == len(task.labels)
        assert {word for label in task.labels for word in label.split()} <= words


def test_tokenizer(tmp_path):
    tokenizer = miniworld.tokenizer()
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    ids = tokenizer("The baker sold fresh-ish bread .")
    assert list(ids) == ["input_ids", "attention_mask"]
    assert ids["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("the baker .")["input_ids"]) == "the baker . </s>"
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path)("a #newleaf") == tokenizer("a #newleaf")


@pytest.mark.parametrize(
    "call",
    [
        lambda: miniworld.examples("mnli", 0),
        lambda: miniworld.examples("irony", -1),
        lambda: miniworld.corpus("0", 1),
        lambda: miniworld.corpus(0, -1),
    ],
)
def test_bad_input(call):
    with pytest.raises(InputError, match="use one of|expected a whole number"):
        call()
