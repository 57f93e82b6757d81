"""Data: splits, samples, fingerprints, text formats, and what is refused."""

import json
from dataclasses import replace

import datasets
import pandas as pd
import pytest

from fusinglib.errors import InputError
from fusinglib.training import data, groups
from fusinglib.training.data import Split, label_texts, text_input
from fusinglib.training.rows import MARKS
from fusinglib.training.tasks import TASKS, Task, own_task

SIZES = {  # shared README of the offline copy: train, validation, test
    "emoji": (45000, 5000, 50000),
    "emotion": (3257, 374, 1421),
    "hate": (9000, 1000, 2970),
    "irony": (2862, 955, 784),
    "offensive": (11916, 1324, 860),
    "sentiment": (45615, 2000, 12284),
    "stance_abortion": (587, 66, 280),
    "stance_atheism": (461, 52, 220),
    "stance_climate": (355, 40, 169),
    "stance_feminist": (597, 67, 285),
    "stance_hillary": (620, 69, 295),
}


@pytest.fixture
def all_rows(how):
    """The settings that leave no example out."""
    return replace(how, max_dev=0, max_test=0)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Makes a task of rows given per split, in a folder that `datasets` reads."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(made: dict[str, list[dict]], name="made", **fields) -> Task:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        files = [f"  - split: {split}\n    path: {split}.jsonl\n" for split in made]
        start = "---\nconfigs:\n- config_name: default\n  data_files:\n"
        (folder / "README.md").write_text(start + "".join(files) + "---\n")
        for split, rows in made.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        fields = {"columns": ("text",), "labels": ("no", "yes"), **fields}
        return Task(name, str(folder), "default", **fields)

    return make


def rows(count: int, name: str = "row") -> list[dict]:
    """Different rows with labels in turn."""
    return [{"text": f"{name} {i}", "label": i % 2, "idx": i} for i in range(count)]


def numbers(split: Split) -> list[int]:
    """The row numbers of a split made by `rows`."""
    return [int(text[0].split()[1]) for text in split.texts]


@pytest.mark.parametrize(
    ("size", "cut"), [(10, 1), (19, 1), (999, 99), (10000, 1000), (12345, 1000)]
)
def test_carve_cuts_a_tenth_up_to_a_thousand(size, cut, how):
    train, validation = (
        Split([(f"{name} {i}",) for i in range(count)], [i % 2 for i in range(count)])
        for name, count in (("row", size), ("dev", 30))
    )
    raw = {"train": train, "validation": validation}
    splits = data.SPLIT_RULES["carve"](raw, how)
    assert len(splits["test"]) == cut
    kept, tested = numbers(splits["train"]), numbers(splits["test"])
    assert sorted(kept + tested) == list(range(size))  # disjoint, and all of the training rows
    assert splits["dev"] == validation
    assert kept == sorted(kept) and tested == sorted(tested)
    for split, found in ((splits["train"], kept), (splits["test"], tested)):
        assert split.labels == [i % 2 for i in found]


def test_carve_on_a_loaded_task_depends_on_the_split_seed_alone(local, all_rows):
    task = local({"train": rows(500), "validation": rows(30, "dev"), "test": rows(9, "hidden")})
    loaded = data.load(task, all_rows)
    assert loaded.sizes == {"train": 450, "dev": 30, "test": 50}
    assert {text[0].split()[0] for text in loaded.test.texts} == {"row"}
    same = [{"max_length": 8}, {"text_format": "later"}, {"max_dev": 5}, {"max_test": 49}]
    for change in same:
        assert data.load(task, replace(all_rows, **change)).train == loaded.train
    sampled = data.load(task, replace(all_rows, max_test=20)).test
    assert set(sampled.texts) < set(loaded.test.texts)
    other = data.load(task, replace(all_rows, split_seed=1))
    assert other.sizes == loaded.sizes and other.test != loaded.test
    assert 0 < len(set(other.test.texts) & set(loaded.test.texts)) < 25  # about 5 by chance


def test_later_rule(local, all_rows):
    task = local({"train": rows(430), "validation": rows(30, "dev")})
    loaded = data.load(task, replace(all_rows, split_rule="later"))
    assert numbers(loaded.dev) == list(range(21))
    assert numbers(loaded.train) == list(range(21, 408))
    assert loaded.test.texts == [(f"dev {i}",) for i in range(30)]


def test_own_splits_under_both_rules(local, all_rows):
    made = {"train": rows(40), "validation": rows(4, "dev"), "test": rows(6, "test")}
    task = local(made, splits="own")
    for rule in ("paper", "later"):
        loaded = data.load(task, replace(all_rows, split_rule=rule))
        for name, own in (("train", "train"), ("dev", "validation"), ("test", "test")):
            assert getattr(loaded, name).texts == [(row["text"],) for row in made[own]]


def test_mnli_rule(local, all_rows):
    names = ("validation_matched", "validation_mismatched", "test_matched")
    task = local({"train": rows(100), **{name: rows(10, name) for name in names}}, splits="mnli")
    paper = data.load(task, all_rows)
    assert numbers(paper.train) == list(range(100))
    assert paper.dev.texts[0] == ("validation_matched 0",)
    assert paper.test.texts[0] == ("validation_mismatched 0",)
    later = data.load(task, replace(all_rows, split_rule="later"))
    assert later.sizes == {"train": 90, "dev": 5, "test": 10}
    assert later.test.texts[0] == ("validation_matched 0",)


def test_rounds_are_put_together_in_order(local, all_rows):
    made = {f"{split}_r{n}": rows(n, f"{split}{n}") for split in ("train", "dev", "test")
            for n in (3, 1, 2) if (split, n) != ("train", 2)}  # fmt: skip
    loaded = data.load(local(made, splits="rounds"), all_rows)
    assert loaded.sizes == {"train": 4, "dev": 6, "test": 6}
    assert [text[0] for text in loaded.train.texts] == [
        "train1 0",
        "train3 0",
        "train3 1",
        "train3 2",
    ]
    assert loaded.dev.texts[0] == ("dev1 0",)


def test_sample_is_fixed_by_the_split_seed(how, mini_tasks):
    task = mini_tasks["mood"]
    full = data.load(task, replace(how, max_dev=0, max_test=0))
    one, again = data.load(task, how), data._loaded.__wrapped__(task, how, ())
    assert one.fingerprint == again.fingerprint
    assert [one.train, one.dev, one.test] == [again.train, again.dev, again.test]
    assert one.sizes == {**full.sizes, "dev": 40, "test": 40}
    assert one.train == full.train
    places = [full.test.texts.index(text) for text in one.test.texts]
    assert places == sorted(places)
    assert [full.test.labels[place] for place in places] == one.test.labels
    fewer = data.load(task, replace(how, max_test=10))
    assert set(fewer.test.texts) < set(one.test.texts)  # a smaller sample is a part of a larger
    assert data.load(task, replace(how, split_seed=1)).test != one.test
    assert data.load(task, replace(how, max_test=10**6)).test == full.test


def test_fingerprint_follows_the_content_alone(local, all_rows):
    made = {"train": rows(40), "validation": rows(4, "dev"), "test": rows(6, "test")}
    before = data.load(local(made, splits="own"), all_rows).fingerprint
    moved = local({k: [{**r, "idx": 0} for r in v] for k, v in made.items()}, "moved", splits="own")
    assert data.load(moved, replace(all_rows, max_length=9, split_seed=3)).fingerprint == before
    for split in made:
        for column, value in (("text", "changed"), ("label", 1)):
            changed = {**made, split: [{**made[split][0], column: value}, *made[split][1:]]}
            task = local(changed, f"{split}_{column}", splits="own")
            assert data.load(task, all_rows).fingerprint != before
    swapped = local({**made, "test": made["test"][::-1]}, "swapped", splits="own")
    assert data.load(swapped, all_rows).fingerprint != before
    assert data.load(moved, replace(all_rows, max_test=5)).fingerprint != before


def test_world_seed_is_the_revision_of_a_mini_task(how, mini_tasks):
    task = mini_tasks["mood"]
    loaded, other = data.load(task, how), data.load(replace(task, revision="1"), how)
    assert (loaded.revision, other.revision) == ("0", "1")
    assert loaded.fingerprint != other.fingerprint


def test_splits_of_the_mini_tasks_share_no_text(how, mini_tasks):
    for task in mini_tasks.values():
        loaded = data.load(task, replace(how, max_dev=0, max_test=0))
        texts = [*loaded.train.texts, *loaded.dev.texts, *loaded.test.texts]
        assert len(set(texts)) == len(texts)


def test_unlabelled_rows_are_left_out(local, all_rows):
    made = {"train": [*rows(20), {"text": "unlabelled", "label": -1, "idx": 0}],
            "validation": rows(4, "dev")}  # fmt: skip
    loaded = data.load(local(made), all_rows)
    assert loaded.sizes == {"train": 18, "dev": 4, "test": 2}
    dropped = "1 of 21 rows of train were dropped: row 20 of train has no label (-1)"
    assert loaded.notes == (dropped,)


def test_a_label_that_is_called_minus_one_is_a_label(local, all_rows):
    made = [{"text": f"row {i}", "label": (-1, 1)[i % 2]} for i in range(200)]
    task = local({"train": made, "validation": made[:4]}, names=("-1", "1"))
    loaded = data.load(task, all_rows)
    assert loaded.sizes == {"train": 180, "dev": 4, "test": 20}
    assert loaded.dev.labels == [0, 1, 0, 1] and not any("dropped" in n for n in loaded.notes)


@pytest.mark.parametrize("labels", [(False, True), (0.0, 1.0), ("0", "1")])
def test_labels_of_other_types_are_their_numbers(local, all_rows, labels):
    made = [{"text": f"row {i}", "label": labels[i % 2]} for i in range(20)]
    task = local({"train": made, "validation": made[:4]}, names=("0", "1"))
    if labels != ("0", "1"):
        task = replace(task, names=())
    assert data.load(task, all_rows).dev.labels == [0, 1, 0, 1]


def refusal(task, settings) -> str:
    """The message with which a task's data are refused."""
    with pytest.raises(InputError) as caught:
        data.load(task, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("label", [2, -2, None, "perhaps", 0.5])
def test_label_out_of_range_is_refused(local, all_rows, label):
    bad = [{"text": "a", "label": label}] * 20
    task = local({"train": bad, "validation": bad})
    said = f"has the label {label!r}; expected one of the labels no, yes, or 0 to 1: set names"
    said = "has no label: fill it in" if label is None else said
    assert refusal(task, all_rows).startswith(f"task 'made': row 0 of train {said}")


def test_column_without_text_is_refused(local, all_rows):
    bad = [{"text": i, "label": 0} for i in range(20)]
    task = local({"train": bad, "validation": bad})
    assert refusal(task, all_rows) == (
        "task 'made': row 0 of train has no text in its column 'text', but 0: convert it to text, "
        "or name another column"
    )
    for value, remedy in (([["a", "b"]], "join its items into one text"), (None, "fill it in")):
        bad = [{"text": value, "label": 0} for i in range(20)]
        task = local({"train": bad, "validation": bad}, f"made {remedy}")
        assert remedy in refusal(task, all_rows)


def test_malformed_files_are_refused(local, all_rows):
    bad = [{"text": "a", "label": "yes"}]
    message = refusal(local({"train": rows(20), "validation": bad}), all_rows)
    assert message.startswith("task 'made': ") and "cannot be loaded: " in message
    assert "'yes' as a scalar of type int64" in message


def test_missing_column_is_named_with_what_there_is(local, all_rows):
    made = {"train": rows(20), "validation": rows(4)}
    message = refusal(local(made, columns=("text", "sentence")), all_rows)
    assert "has no column 'sentence'; it has text, label, idx" in message
    assert "no column 'gold'" in refusal(local(made, "b", label_column="gold"), all_rows)


def test_missing_split_is_named_with_what_there_is(local, all_rows):
    task = local({"train": rows(20), "test": rows(4)})
    expected = "task 'made': it has no split 'validation'; it has test, train"
    assert refusal(task, all_rows).startswith(expected)
    for rule in ("own", "mnli"):
        task = local({"train": rows(20)}, rule, splits=rule)
        assert "has no split 'validation" in refusal(task, all_rows)
    assert "train split is empty" in refusal(local({"x": rows(2)}, "r", splits="rounds"), all_rows)


def test_unknown_split_rule_is_refused(local, all_rows):
    task = local({"train": rows(20), "validation": rows(4)}, splits="carved")
    assert refusal(task, all_rows) == (
        "task 'made': unknown split rule 'carved': did you mean 'carve'?"
    )


def test_empty_split_is_refused(local, all_rows):
    task = local({"train": rows(9), "validation": rows(4)})
    assert "task 'made': its test split is empty" in refusal(task, all_rows)
    hidden = [{"text": "a", "label": -1}] * 3
    task = local({"train": rows(30), "validation": rows(4), "test": hidden}, "own", splits="own")
    why = "3 of 3 rows of test were dropped: row 0 of test has no label (-1), "
    assert f"task 'own': its test split is empty ({why}" in refusal(task, all_rows)


def test_unreachable_hub_is_one_clear_error(monkeypatch, tmp_path, how):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    task = replace(TASKS["irony"], hub_id="nobody/nothing")
    message = refusal(task, how)
    said = "task 'irony': nobody/nothing (irony) cannot be loaded: Couldn't reach"
    assert message.startswith(said) and "the cache that HF_HOME names" in message


def test_labels_may_be_words_or_names_of_their_own(local, all_rows):
    made = [{"text": f"row {i}", "label": "yes" if i % 2 else "no"} for i in range(20)]
    loaded = data.load(local({"train": made, "validation": made}), all_rows)
    assert loaded.dev.labels == [0, 1] * 10
    stars = [{"text": f"row {i}", "label": 1 + i % 2} for i in range(20)]
    task = local({"train": stars, "validation": stars}, "stars", names=("1", "2"))
    assert data.load(task, all_rows).dev.labels == [0, 1] * 10


def test_other_names_of_labels_are_refused_and_another_order_is_read(
    tmp_path, monkeypatch, all_rows
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = {"text": [f"row {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
    for names in (["yes", "no"], ["nay", "yea"], ["no", "yes", "perhaps"]):
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
        )
        folder = tmp_path / "-".join(names)
        datasets.Dataset.from_dict(made, features).to_parquet(folder / "train.parquet")
        task = Task("made", str(folder), "default", ("text",), ("no", "yes"), splits="cut")
        if names == ["yes", "no"]:
            loaded = data.load(task, all_rows)
            assert loaded.dev.labels == [1 - number % 2 for number in numbers(loaded.dev)]
            continue
        message = refusal(task, all_rows)
        assert f"are named {', '.join(names)}; expected no, yes: set names" in message


def test_other_row_counts_and_texts_seen_twice_are_noted(local, all_rows):
    made = {"train": rows(40), "validation": rows(4, "dev"), "test": rows(6)}
    counts = (("train", 41), ("test", 6), ("extra", 7))
    loaded = data.load(local(made, splits="own", rows=counts), all_rows)
    assert loaded.notes == (
        "train has 40 rows; the published data have 41",
        "extra has 0 rows; the published data have 7",
        "6 of 6 test texts also occur in train",
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_own_files(kind, tmp_path, monkeypatch, all_rows):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / f"reviews.{kind}"
    frame = pd.DataFrame({"review": [f"row {i}" for i in range(40)], "stars": ["low", "high"] * 20})
    if kind == "jsonl":
        frame.to_json(file, orient="records", lines=True)
    else:
        getattr(frame, f"to_{kind}")(file, index=False)
    task = own_task(
        "reviews", files=str(file), columns=["review"], labels=["bad", "good"],
        names=["low", "high"], label_column="stars",
    )  # fmt: skip
    loaded = data.load(task, all_rows)
    assert loaded.sizes == {"train": 32, "dev": 4, "test": 4}
    every = [*loaded.train.texts, *loaded.dev.texts, *loaded.test.texts]
    assert sorted(every) == sorted((f"row {i}",) for i in range(40))
    for split in (loaded.train, loaded.dev, loaded.test):
        assert split.labels == [number % 2 for number in numbers(split)]
    with pytest.raises(InputError, match="no file .*missing.csv"):
        data.load(replace(task, files=(("train", str(tmp_path / "missing.csv")),)), all_rows)
    other = tmp_path / "reviews.txt"
    other.write_text("text")
    with pytest.raises(
        InputError, match="reviews.txt: expected a name that ends in .csv .tsv .json"
    ):
        data.load(replace(task, files=(("train", str(other)),)), all_rows)


def test_own_files_may_be_several_compressed_or_separated_by_tabs(tmp_path, monkeypatch, all_rows):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    frame = pd.DataFrame({"text": [f"row {i}" for i in range(40)], "label": [0, 1] * 20})
    wanted = None
    for suffix, separator in ((".csv", ","), (".csv.gz", ","), (".tsv", "\t")):
        parts = [tmp_path / f"{part}{suffix}" for part in "ab"]
        frame[:10].to_csv(parts[0], index=False, sep=separator)
        frame[10:].to_csv(parts[1], index=False, sep=separator)
        own = {"columns": ["text"], "labels": ["no", "yes"]}
        for files in ([*map(str, parts)], {"train": [*map(str, parts)]}):
            loaded = data.load(own_task("own", files=files, **own), all_rows)
            wanted = wanted or loaded.fingerprint
            assert loaded.fingerprint == wanted and loaded.sizes["train"] == 32


def test_marks_of_wic_and_wsc():
    mark = MARKS["characters"].mark
    assert mark(("place", "a place later", "no place"), 2, 7, 3, 8) == (
        "place", "a * place * later", "no * place *"
    )  # fmt: skip
    text = "Mark told Pete many lies about himself, which Pete had. He should be."
    mark = MARKS["words"].mark
    expected = "* Mark * told Pete many lies about himself, which Pete had. # He # should be."
    assert mark((text,), 0, "Mark", 10, "He") == (expected,)
    assert mark((text,), 10, "He", 0, "Mark") == (
        "# Mark # told Pete many lies about himself, which Pete had. * He * should be.",
    )
    punctuated = "The town fetched them. They ran."
    assert mark((punctuated,), 0, "the town", 3, "them") == (
        "* The town * fetched # them #. They ran.",
    )
    assert mark((punctuated,), 0, "a city", 3, "them") == (  # a copy that writes it otherwise
        "* The town * fetched # them #. They ran.",
    )


def test_an_encoder_reads_the_names_of_columns_that_tell_texts_apart():
    copa = TASKS["copa"]
    text = ("It rained.", "effect", "The grass grew.", "The sun set.")
    assert data.pair_input(copa, text) == (
        "It rained.",
        "question: effect choice1: The grass grew. choice2: The sun set.",
    )
    assert data.pair_input(TASKS["mnli"], ("A b.", "C d?")) == ("A b.", "C d?")
    assert data.pair_input(TASKS["sst2"], ("A b.",)) == ("A b.",)


def test_t5_format():
    assert text_input(TASKS["sst2"], ("a fine film",), "t5") == "sst2 sentence: a fine film"
    assert (
        text_input(TASKS["mnli"], ("A b.", "C d?"), "t5") == "mnli premise: A b. hypothesis: C d?"
    )
    assert label_texts(TASKS["mnli"], "t5") == ["entailment", "neutral", "contradiction"]
    assert label_texts(TASKS["emoji"], "t5")[0] == "red heart"


def test_later_format():
    assert text_input(TASKS["sst2"], ("a fine film",), "later") == "a fine film <sst2"
    assert text_input(TASKS["mnli"], ("A b.", "C d?"), "later") == "A b. <SEP> C d? <mnli"
    assert label_texts(TASKS["mnli"], "later") == ["0", "1", "2"]


def test_text_of_the_wrong_width_is_an_error():
    with pytest.raises(ValueError):
        text_input(TASKS["mnli"], ("only one",), "t5")


@pytest.mark.parametrize("name", SIZES)
def test_real_tweets_have_their_sizes_and_a_revision(hub, all_rows, name):
    loaded = data.load(TASKS[name], all_rows)
    assert tuple(loaded.sizes.values()) == SIZES[name]
    (revision,) = (p.name for p in (hub / f"cardiffnlp___tweet_eval/{name}/0.0.0").iterdir())
    assert loaded.revision == revision


CARVED = {  # rows of train at hand and validation; fewer than published are (capped)
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "qqp": (12255, 7600),  # capped
    "qnli": (10293, 5463),  # capped
    "rte": (2490, 277),
    "wnli": (635, 71),
    "boolq": (2045, 3270),  # capped
    "cb": (250, 56),
    "copa": (400, 100),
    "multirc": (27243, 4848),
    "wic": (5428, 638),
    "wsc": (554, 104),
}


@pytest.mark.parametrize("name", CARVED)
def test_real_tasks_are_carved_to_the_row(hub, all_rows, name):
    loaded, other = (data.load(TASKS[name], replace(all_rows, split_seed=s)) for s in (0, 1))
    total, validation = CARVED[name]
    test = min(1000, total // 10)
    assert loaded.sizes == {"train": total - test, "dev": validation, "test": test}
    assert loaded.dev == other.dev and loaded.test != other.test
    capped = dict(TASKS[name].rows)["train"] != total
    assert any(note.startswith("train has") for note in loaded.notes) == capped
    assert capped == (name in ("qqp", "qnli", "boolq"))


def test_real_esnli_has_its_own_splits(hub, all_rows):
    loaded = data.load(TASKS["esnli"], all_rows)
    assert loaded.sizes == {"train": 13039, "dev": 9842, "test": 9824}  # train is capped


def test_real_spans_are_marked(hub, all_rows):
    for name, signs in (("wic", "**"), ("wsc", "*#")):
        loaded = data.load(TASKS[name], all_rows)
        for split in (loaded.train, loaded.dev, loaded.test):
            for text in split.texts:
                for sign in set(signs):
                    assert " ".join(text).count(sign) >= 2 * signs.count(sign)


def test_real_anli_and_mnli(hub, how):
    anli = data.load(TASKS["anli"], replace(how, max_dev=0, max_test=0))
    assert anli.sizes == {"train": 2000, "dev": 3198, "test": 3200}  # this copy lacks rounds 1, 2
    mnli = data.load(TASKS["mnli"], replace(how, max_dev=0, max_test=0))
    assert mnli.sizes == {"train": 13391, "dev": 9815, "test": 1000}


def test_smaller_training_splits_hold_one_another(mini_tasks, how):
    whole = data.load(mini_tasks["irony"], how).train
    sizes = (3, 20, 10_000)
    some = [data.sample(whole, size, 0, "train") for size in sizes]
    assert [len(one) for one in some] == [3, 20, len(whole)]
    texts = [set(one.texts) for one in some]
    assert texts[0] < texts[1] < texts[2] == set(whole.texts)
    assert some[1] != data.sample(whole, 20, 1, "train")


def test_a_missing_configuration_is_named(local, all_rows):
    task = replace(local({"train": rows(20), "validation": rows(4)}), config="other")
    message = refusal(task, all_rows)
    assert "(other)" in message and "BuilderConfig 'other' not found" in message


@pytest.mark.parametrize(
    ("name", "sizes", "groups_tested"),
    [
        ("wsc", (499, 104, 55), 19),
        ("multirc", (26243, 4848, 1000), 18),
        ("sst2", (66349, 872, 1000), 132),
    ],
)
def test_real_tasks_are_carved_by_group(hub, all_rows, name, sizes, groups_tested):
    loaded = data.load(TASKS[name], replace(all_rows, split_rule="grouped"))
    assert tuple(loaded.sizes.values()) == sizes
    assert not groups.sharing(loaded.train.texts, loaded.test.texts).any()
    assert len(set(groups.groups(loaded.test.texts))) == groups_tested
    paper = data.load(TASKS[name], all_rows)
    assert groups.sharing(paper.test.texts, paper.train.texts).mean() > 0.7


def test_real_wsc_and_wnli_share_their_sentences(hub, all_rows):
    wsc, wnli = (
        data.load(TASKS[n], replace(all_rows, split_rule="grouped")) for n in ("wsc", "wnli")
    )
    assert data.overlap(wsc, wnli) > 0.9 and data.overlap(wnli, wsc) > 0.4
