"""Groups of examples that share texts, the splits made of them, and what is left out for them."""

import random
from dataclasses import replace

import numpy as np
import pytest

from fusinglib.errors import InputError
from fusinglib.training import data, description, groups
from fusinglib.training.data import Split

SENTENCE = "the old captain told a long and winding story about the sea"
OTHER = "nobody in the small village had ever believed a word of it"


def together(*texts: tuple[str, ...]) -> list[int]:
    return groups.groups(texts).tolist()


@pytest.mark.parametrize(
    ("one", "two", "shared"),
    [
        ((SENTENCE,), (f"And so, {SENTENCE.upper()}!",), True),  # a passage; case, punctuation
        ((SENTENCE, "yes indeed"), (OTHER, SENTENCE), True),  # in another column
        ((SENTENCE,), (OTHER,), False),
        (("a long and winding story",), (SENTENCE,), True),  # a phrase of a sentence
        (("a long and winding story", "x"), (SENTENCE, "y"), False),  # a short part of a pair
        (("a man is sleeping", "x"), (OTHER, "a man is sleeping"), True),  # a short sentence of one
        (("a winding story",), ("a winding story",), True),  # equal
        (("story", "yes"), ("story", "no"), False),  # a word in common
        (("@user @user @user @user @user @user @user @user hi there",),
         ("@user @user @user @user @user @user @user @user good night",), False),
        (("one two three four five six seven x",), ("one two three four five six seven y",), False),
        (("one two three four five six seven eight x",),
         ("one two three four five six seven eight y",), True),
    ],
)  # fmt: skip
def test_what_counts_as_a_shared_text(one, two, shared):
    first, second = together(one, two)
    assert (first == second) == shared
    assert (
        groups.sharing([one], [two]).tolist() == [shared] == groups.sharing([two], [one]).tolist()
    )


def test_groups_are_joined_by_what_lies_between():
    first, second, third, fourth = together((SENTENCE,), (OTHER,), (f"{SENTENCE} {OTHER}",), ("a",))
    assert first == second == third != fourth


def test_single_words_of_a_sentence_belong_to_no_group():
    found = together((SENTENCE,), ("winding story",), ("lonely word",), ("winding story", "x"))
    assert found[1] == groups.UNPLACED and groups.UNPLACED not in (found[0], *found[2:])


def test_no_texts_have_no_groups():
    assert together() == [] == groups.sharing([], [(SENTENCE,)]).tolist()
    assert groups.sharing([(SENTENCE,)], []).tolist() == [False]
    assert together(("",), ("",))[0] == together(("",))[0]


def test_groups_are_those_of_the_definition():
    """Random texts of few words, against a search through all pairs."""
    rng = random.Random(1)
    texts = [
        (" ".join(rng.choice("abcdefghijk") for _ in range(rng.randint(1, 14))),)
        for _ in range(120)
    ]
    words = [groups._words(text) for (text,) in texts]

    def runs(of, size):
        return {tuple(of[i : i + size]) for i in range(len(of) - size + 1)}

    def share(one, two):
        short, long = sorted((one, two), key=len)
        part = len(short) >= groups.PHRASE and tuple(short) in runs(long, len(short))
        return one == two or part or bool(runs(one, groups.PASSAGE) & runs(two, groups.PASSAGE))

    want = np.arange(len(texts))
    for i in range(len(texts)):
        for j in range(i):
            if share(words[i], words[j]):
                want[want == want[i]] = want[j]
    found = groups.groups(texts)
    placed = found != groups.UNPLACED
    same = found[:, None] == found
    assert (same == (want[:, None] == want))[np.ix_(placed, placed)].all()
    assert all(len(words[at]) < groups.PHRASE for at in np.flatnonzero(~placed))
    sharing = [any(share(one, two) for two in words[60:]) for one in words[:60]]
    assert groups.sharing(texts[:60], texts[60:]).tolist() == sharing


def paragraphs(count: int, questions: int) -> Split:
    """Rows of `questions` for each paragraph, shuffled."""
    rng = random.Random(0)
    texts = []
    for number in range(count):
        paragraph = " ".join(f"w{rng.randrange(10**6)}" for _ in range(30))
        texts += [(paragraph, f"what is {number} {q}") for q in range(questions)]
    rng.shuffle(texts)
    return Split(texts, [i % 2 for i in range(len(texts))])


@pytest.fixture
def grouped(how):
    return replace(how, split_rule="grouped", max_dev=0, max_test=0)


@pytest.mark.parametrize("rule", ["carve", "cut"])
def test_splits_are_carved_by_group(rule, grouped):
    pool = paragraphs(60, 7)
    dev = pool.take(range(10))  # some paragraphs stand in dev as well
    raw = {"train": pool.take(range(10, len(pool))), "validation": dev}
    splits = data.SPLIT_RULES[rule](raw, grouped)
    of = {name: {text[0] for text in split.texts} for name, split in splits.items()}
    assert not of["test"] & (of["train"] | of["dev"])
    assert 35 <= len(splits["test"]) <= 41  # whole paragraphs of seven, a tenth at most
    paper = data.SPLIT_RULES[rule](raw, replace(grouped, split_rule="paper"))
    assert {text[0] for text in paper["test"].texts} & {text[0] for text in paper["train"].texts}
    other = data.SPLIT_RULES[rule](raw, replace(grouped, split_seed=1))
    assert other["test"] != splits["test"]
    if rule == "cut":
        assert not of["dev"] & of["train"]
        assert sum(map(len, splits.values())) == len(raw["train"])  # nothing is lost


def test_a_group_that_is_too_large_stays_in_train(grouped):
    large = Split([(SENTENCE, str(i)) for i in range(50)], [0] * 50)
    small = paragraphs(50, 1)
    raw = {"train": Split(large.texts + small.texts, large.labels + small.labels)}
    splits = data.SPLIT_RULES["carve"]({**raw, "validation": small.take([0])}, grouped)
    assert len(splits["test"]) == 10 and large.texts[0] in splits["train"].texts
    assert not set(splits["test"].texts) & set(large.texts)


def csv(path, split: Split) -> str:
    lines = [
        f"{one},{two},{label}" for (one, two), label in zip(split.texts, split.labels, strict=True)
    ]
    path.write_text("\n".join(["text,question,label", *lines]) + "\n")
    return str(path)


@pytest.fixture
def make(tmp_path):
    """Makes an own task of splits, in files."""
    from fusinglib.training.tasks import own_task

    def made(name="made", **splits):
        files = {split: csv(tmp_path / f"{name}-{split}.csv", of) for split, of in splits.items()}
        return own_task(name, columns=["text", "question"], labels=["no", "yes"], files=files)

    return made


def test_what_shares_a_text_with_an_official_test_split_leaves_train_and_dev(make, grouped):
    pool = paragraphs(20, 4)
    task = make(train=pool.take(range(50)), validation=pool.take(range(50, 60)),
                test=pool.take(range(60, 80)))  # fmt: skip
    loaded = data.load(task, grouped)
    of = {name: {text[0] for text in getattr(loaded, name).texts} for name in data.SPLITS}
    assert loaded.test == pool.take(range(60, 80)) and not of["test"] & (of["train"] | of["dev"])
    dropped = 50 - len(loaded.train)
    assert f"{dropped} of 50 examples of train share a text with the test split" in loaded.notes[0]
    assert data.load(task, replace(grouped, split_rule="paper")).sizes["train"] == 50


def test_data_of_one_group_are_refused(make, grouped):
    one = Split([(SENTENCE, f"question {i}") for i in range(40)], [i % 2 for i in range(40)])
    with pytest.raises(InputError, match="test split is empty.*split_rule 'paper'"):
        data.load(make(train=one), grouped)


def letters(task, text) -> int:
    """A length that needs no model."""
    return len("".join(text))


def test_overlaps_between_tasks_are_counted_and_described(make, grouped):
    pool = paragraphs(40, 5)
    task, other = make("one", train=pool), make("two", train=pool.take(range(0, 200, 2)))
    one, two = data.load(task, grouped), data.load(other, grouped)
    known = {text[0] for text in two.train.texts}
    share = np.mean([text[0] in known for text in one.test.texts])
    assert data.overlap(one, two) == share > data.KIN
    assert data.overlap(one, one) == 0.0
    table = description.describe([task, other], grouped, letters)
    assert table.loc["one", "overlaps"] == f"two {100 * share:.0f} %"
    assert table.loc["one", "groups"] == len({text[0] for text in one.test.texts})
    assert table.loc["one", "error"] == pytest.approx(50 / np.sqrt(len(one.test)))
    assert table.loc["one", "overlap"] == 0
    leaking = description.describe([task], replace(grouped, split_rule="paper"), letters)
    assert leaking.loc["one", "overlap"] > 90
