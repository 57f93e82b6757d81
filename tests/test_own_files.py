"""Own files: what is kept, read, dropped and refused, and that all of it is told."""

import gzip
import json
import os
import zipfile
from collections import Counter
from dataclasses import replace

import datasets
import pandas as pd
import pytest

from fusinglib.__main__ import main
from fusinglib.errors import InputError
from fusinglib.training import data, description, files, tasks
from fusinglib.training.tasks import own_task

WORDS = {"columns": ["text"], "labels": ["no", "yes"]}


@pytest.fixture
def all_rows(how):
    """The settings that leave no example out."""
    return replace(how, max_dev=0, max_test=0)


def table(count: int, name: str = "row", label=lambda i: i % 2) -> str:
    """A CSV file of different texts."""
    lines = [f"{name} {i},{label(i)}" for i in range(count)]
    return "\n".join(["text,label", *lines]) + "\n"


def written(folder, **contents):
    """A folder with these files, by name without dots (`train_csv`)."""
    for name, content in contents.items():
        path = folder / name.replace("_", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def task_of(folder, files=None, **fields):
    """An own task of files in a folder."""
    if isinstance(files, dict):
        files = {split: str(folder / name) for split, name in files.items()}
    else:
        files = str(folder / (files or "train.csv"))
    return own_task("own", files=files, **{**WORDS, **fields})


def refusal(task, settings) -> str:
    """The line with which a task's data are refused."""
    with pytest.raises(InputError) as caught:
        data.load(task, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Splits.


@pytest.mark.parametrize(
    ("names", "sizes", "rule"),
    [
        (["train"], (80, 10, 10), "cut"),
        (["train", "validation"], (90, 20, 10), "carve"),
        (["train", "test"], (90, 10, 20), "carve_dev"),
        (["train", "validation", "test"], (100, 20, 20), "own"),
        (["training", "dev", "eval"], (100, 20, 20), "own"),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_every_split_is_kept_and_only_missing_ones_are_drawn(
    tmp_path, all_rows, names, sizes, rule, grouped
):
    how = replace(all_rows, split_rule="grouped") if grouped else all_rows
    for number, name in enumerate(names):
        written(tmp_path, **{f"{name}_csv": table(20 if number else 100, name)})
    loaded = data.load(task_of(tmp_path, {name: f"{name}.csv" for name in names}), how)
    assert tuple(loaded.sizes.values()) == sizes and loaded.task.splits == rule
    for split, name in zip(("dev", "test"), names[1:], strict=False) if len(names) > 2 else []:
        own = getattr(loaded, split)
        assert {text[0].split()[0] for text in own.texts} == {name} and own.source == name
    if "test" in names:
        assert [text for (text,) in loaded.test.texts] == [f"test {i}" for i in range(20)]
    drawn = {name for name, source in loaded.sources.items() if source.startswith("drawn from")}
    assert drawn == {"dev", "test"} - {data_name(name) for name in names}
    assert sum(loaded.sizes.values()) == 100 + 20 * (len(names) - 1)


def data_name(name: str) -> str:
    """train, dev or test."""
    return {"validation": "dev", "eval": "test"}.get(name, name)


def test_train_and_test_of_the_hub_need_no_option(tmp_path, monkeypatch, all_rows):
    """The most common shape there; a test split without labels counts as none."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, label in (("public", 1), ("hidden", -1)):
        folder = written(tmp_path / name) if (tmp_path / name).mkdir() else tmp_path / name
        rows = [{"text": f"row {i}", "label": i % 2} for i in range(100)]
        tests = [{"text": f"test {i}", "label": label} for i in range(20)]
        for split, made in (("train", rows), ("test", tests)):
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, made)))
    public = data.load(own_task("own", hub_id=str(tmp_path / "public"), **WORDS), all_rows)
    assert tuple(public.sizes.values()) == (90, 10, 20)
    assert public.notes == ("no example of no in test",)
    hidden = data.load(own_task("own", hub_id=str(tmp_path / "hidden"), **WORDS), all_rows)
    assert tuple(hidden.sizes.values()) == (80, 10, 10)
    assert hidden.notes == ("none of the 20 rows of test has a label: it is not used",)


def test_a_rule_can_be_named_instead(tmp_path, all_rows):
    written(tmp_path, train_csv=table(100), test_csv=table(20, "test"))
    task = task_of(tmp_path, {"train": "train.csv", "test": "test.csv"}, splits="cut")
    loaded = data.load(task, all_rows)
    assert tuple(loaded.sizes.values()) == (80, 10, 10)
    assert not any(text[0].startswith("test") for text in loaded.test.texts)


def test_the_last_example_of_a_label_stays_in_train(tmp_path, all_rows):
    written(tmp_path, train_csv=table(40, label=lambda i: {7: 2, 9: 3}.get(i, i % 2)))
    task = task_of(tmp_path, labels=["no", "yes", "rare", "odd", "never"])
    for seed in range(12):
        loaded = data.load(task, replace(all_rows, split_seed=seed))
        assert set(loaded.train.labels) == {0, 1, 2, 3}
        assert "no example of never in train, dev, test" in loaded.notes
        assert any("rare, odd in" in note and "test" in note for note in loaded.notes)
    frame = description.describe([task], all_rows, lambda task, text: 1)
    shares = Counter(data.load(task, all_rows).train.labels)
    expected = [round(100 * shares[label] / 32) for label in range(5)]
    assert frame.loc["own", "labels"] == "/".join(map(str, expected)) and expected[-1] == 0


# Labels.


@pytest.mark.parametrize("word", ["None", "NA", "null", "nan", "N/A"])
def test_a_label_that_looks_missing_is_a_label_and_a_blank_is_missing(tmp_path, all_rows, word):
    labels = ["Some", word]
    content = table(40, label=lambda i: labels[i % 2])
    written(tmp_path, train_csv=content, blank_csv=content + "blank,\nspace, \n")
    loaded = data.load(task_of(tmp_path, labels=labels), all_rows)
    assert sum(split.labels.count(1) for split in (loaded.train, loaded.dev, loaded.test)) == 20
    task = task_of(tmp_path, "blank.csv", labels=labels)
    assert refusal(task, all_rows) == (
        "task 'own': row 41 of blank.csv has no label: fill it in, or set skip_bad_rows: true"
    )
    skipping = data.load(
        task_of(tmp_path, "blank.csv", labels=labels, skip_bad_rows=True), all_rows
    )
    assert skipping.fingerprint == loaded.fingerprint
    assert skipping.notes[0] == (
        "2 of 42 rows of train were dropped: row 41 of blank.csv has no label, row 42 of blank.csv "
        "has no label"
    )


def test_minus_one_is_a_missing_label_of_an_own_task(tmp_path, all_rows):
    written(tmp_path, train_csv=table(40) + "unknown,-1\n", test_csv=table(9, label=lambda i: -1))
    assert "row 41 of train.csv has no label (-1): fill" in refusal(task_of(tmp_path), all_rows)
    both = task_of(tmp_path, {"train": "train.csv", "test": "test.csv"}, skip_bad_rows=True)
    loaded = data.load(both, all_rows)
    assert tuple(loaded.sizes.values()) == (32, 4, 4)
    assert loaded.notes[0] == "none of the 9 rows of test has a label: it is not used"


FORMS = {
    "booleans": ([False, True], {}),
    "words for booleans": (["FALSE", "TRUE"], {}),
    "named booleans": ([False, True], {"names": ["False", "True"]}),
    "floats": ([0.0, 1.0], {}),
    "named numbers": ([1.0, 5.0], {"names": [1, 5]}),
    "numbers beside words": ([1, "other"], {"names": ["1", "other"]}),
    "numbers and their words": ([3, "4"], {"names": ["3", "4"]}),
    "the labels": (["no", "yes"], {}),
    "ids": ([0, 1], {}),
    "minus one": ([-1, 1], {"names": [-1, 1]}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_may_have_any_form(tmp_path, all_rows, form, suffix):
    labels, fields = FORMS[form]
    frame = pd.DataFrame(
        {"text": [f"row {i}" for i in range(40)], "label": [labels[i % 2] for i in range(40)]},
        dtype=object,
    )
    file = tmp_path / f"train.{suffix}"
    if suffix == "csv":
        frame.to_csv(file, index=False)
    else:
        frame.to_json(file, orient="records", lines=True)
    loaded = data.load(task_of(tmp_path, file.name, **fields), all_rows)
    for split in (loaded.train, loaded.dev, loaded.test):
        assert split.labels == [int(text.split()[1]) % 2 for (text,) in split.texts]


def test_names_of_label_ids_in_the_file_are_read_by_name(tmp_path, all_rows):
    """As `datasets` writes them into Parquet files; their order need not be the task's."""
    made = {"text": [f"row {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    datasets.Dataset.from_dict(made, features).to_parquet(tmp_path / "train.parquet")
    task = task_of(tmp_path, "train.parquet", labels=["good", "bad"])
    assert data.load(task, all_rows).dev.labels == [
        1 - int(text.split()[1]) % 2 for (text,) in data.load(task, all_rows).dev.texts
    ]
    assert refusal(task_of(tmp_path, "train.parquet"), all_rows) == (
        "task 'own': the labels in the data are named bad, good; expected no, yes: set names: "
        "[bad, good], in the order of labels"
    )


@pytest.mark.parametrize(
    ("label", "fields", "said"),
    [
        ("maybe", {}, "has the label 'maybe'; expected one of the labels no, yes, or 0 to 1: set"),
        ("2", {}, "has the label '2'; expected one of the labels no, yes, or 0 to 1: set names"),
        (
            "0",
            {"names": ["1", "2"]},
            "has the label '0'; expected one of the names 1, 2: set names",
        ),
    ],
)
def test_an_unknown_label_is_refused_by_its_row(tmp_path, all_rows, label, fields, said):
    known = fields.get("names", ["0", "1"])
    content = table(20, label=lambda i: known[i % 2]) + f"odd,{label}\n"
    written(tmp_path, train_csv=content)
    assert f"row 21 of train.csv {said}" in refusal(task_of(tmp_path, **fields), all_rows)


def test_yaml_truth_values_are_no_words():
    for field in ({"labels": [False, True]}, {"names": [True, False]}):
        with pytest.raises(InputError, match=r"YAML reads yes, no.*put them in quotes"):
            own_task("own", files="a.csv", **{**WORDS, **field})


# Files.


def test_several_files_patterns_and_kinds_are_one_split(tmp_path, all_rows):
    (tmp_path / "parts").mkdir()
    whole = table(60)
    head, *lines = whole.splitlines()
    rows = [dict(zip(("text", "label"), line.split(","), strict=True)) for line in lines]
    parts = tmp_path / "parts"
    (parts / "a.csv").write_text("\n".join([head, *lines[:10]]))
    with gzip.open(parts / "b.csv.gz", "wt") as stream:
        stream.write("\n".join([head, *lines[10:20]]))
    with zipfile.ZipFile(parts / "c.zip", "w") as archive:
        archive.writestr("inside.tsv", "\n".join([head, *lines[20:30]]).replace(",", "\t"))
        archive.writestr("__MACOSX/._inside.tsv", "junk")
    (parts / "d.json").write_text(json.dumps(rows[30:40], indent=1))
    columns = {name: [row[name] for row in rows[40:50]] for name in ("text", "label")}
    (parts / "e.json").write_text(json.dumps(columns))
    pd.DataFrame(rows[50:60]).to_parquet(parts / "f.parquet")
    (tmp_path / "train.csv").write_text(whole)
    wanted = data.load(task_of(tmp_path), all_rows)
    one_by_one = [str(file) for file in sorted(parts.iterdir())]
    for given in ("parts/*", "part?/[a-f].*"):
        assert data.load(task_of(tmp_path, given), all_rows).fingerprint == wanted.fingerprint
    listed = own_task("own", files={"train": one_by_one}, **WORDS)
    assert data.load(listed, all_rows).fingerprint == wanted.fingerprint
    with pytest.raises(InputError, match=r"task 'own': no file matches .*/none\*.csv"):
        task_of(tmp_path, "none*.csv")


def test_json_of_columns_as_pandas_writes_it(tmp_path, all_rows):
    frame = pd.DataFrame({"text": [f"row {i}" for i in range(40)], "label": [0, 1] * 20})
    found = set()
    for orient in ("records", "columns", "list"):
        text = (
            json.dumps(frame.to_dict("list")) if orient == "list" else frame.to_json(orient=orient)
        )
        (tmp_path / "train.json").write_text(text)
        found.add(data.load(task_of(tmp_path, "train.json"), all_rows).fingerprint)
    (tmp_path / "train.json").write_text(frame.to_json(orient="records", lines=True))
    found.add(data.load(task_of(tmp_path, "train.json"), all_rows).fingerprint)
    assert len(found) == 1


def test_json_by_column_is_paired_by_row_not_by_order(tmp_path, all_rows):
    rows = [str(i) for i in range(40)]
    columns = {
        "text": {row: f"row {row}" for row in rows},
        "label": {row: int(row) % 2 for row in reversed(rows)},
    }
    (tmp_path / "train.json").write_text(json.dumps(columns))
    loaded = data.load(task_of(tmp_path, "train.json"), all_rows)
    assert all(
        int(text.split()[1]) % 2 == label
        for (text,), label in zip(loaded.train.texts, loaded.train.labels, strict=True)
    )
    columns["label"]["41"] = columns["label"].pop("7")
    (tmp_path / "train.json").write_text(json.dumps(columns))
    message = refusal(task_of(tmp_path, "train.json"), all_rows)
    assert "columns of" in message and "have different lengths" in message


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig", "cp1252"])
@pytest.mark.parametrize("separator", [";", "|", "\t"])
def test_other_encodings_and_separators(tmp_path, all_rows, encoding, separator):
    content = table(40, "café").replace(",", separator)
    (tmp_path / "train.csv").write_bytes(content.encode(encoding))
    task = task_of(tmp_path, encoding=encoding, separator=separator)
    assert data.load(task, all_rows).train.texts[0] == ("café 0",)
    message = refusal(replace(task, reading=files.Reading(encoding=encoding)), all_rows)
    shown = "\\t" if separator == "\t" else separator
    assert f"has no column 'text'; it has text{separator}label: if" in message
    assert f'set separator: "{shown}"' in message
    if encoding != "utf-8-sig":
        message = refusal(replace(task, reading=files.Reading(separator=separator)), all_rows)
        assert "line 1 is not utf-8" in message or "line 2 is not utf-8" in message
        assert "name the file's encoding (latin-1, cp1252, utf-16" in message


def test_text_is_text(tmp_path, all_rows):
    """Empty, NA, null and numbers; a comma, a quote or a line break in a quoted cell; long ones."""
    texts = ["", "NA", "null", "007", 'a "b", c', "two\nlines", "x" * 200_000, "N/A", "-1", " a "]
    frame = pd.DataFrame({"text": texts * 4, "label": [0, 1] * 20})
    frame.to_csv(tmp_path / "train.csv", index=False)
    loaded = data.load(task_of(tmp_path), all_rows)
    read = {text for split in (loaded.train, loaded.dev, loaded.test) for (text,) in split.texts}
    assert read == set(texts)


BAD = {
    "ragged.csv": ("one,0\ntwo,1,2\n", "row 2 of ragged.csv has 3 of 2 cells"),
    "short.csv": ("one,0\ntwo\n", "row 2 of short.csv has 1 of 2 cells"),
    "quoted.csv": ('one,0\n"two"x,1\n', "row 2 of quoted.csv cannot be read"),
    "lines.jsonl": ('{"text": "one", "label": 0}\n{"text": \n', "row 2 of lines.jsonl is not"),
    "lists.jsonl": ('{"text": "one", "label": 0}\n[1]\n', "row 2 of lists.jsonl is not a JSON obj"),
    "null.jsonl": ('{"text": "one", "label": 0}\n{"text": null, "label": 1}\n',
                   "row 2 of null.jsonl has no text in its column 'text', but None: fill it in"),
    "number.jsonl": ('{"text": "one", "label": 0}\n{"text": 3, "label": 1}\n',
                     "row 2 of number.jsonl has no text in its column 'text', but 3: convert it"),
    "absent.jsonl": ('{"text": "one", "label": 0}\n{"text": "two"}\n',
                     "row 2 of absent.jsonl has no label: fill it in"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_refused_by_its_number_or_skipped_and_told(tmp_path, all_rows, name, capfd):
    start, said = BAD[name]
    if name.endswith("csv"):
        content = "text,label\n" + start + "".join(f"row {i},{i % 2}\n" for i in range(40))
    else:
        rows = [json.dumps({"text": f"row {i}", "label": i % 2}) for i in range(40)]
        content = start + "\n".join(rows)
    (tmp_path / name).write_text(content)
    message = refusal(task_of(tmp_path, name), all_rows)
    assert said in message and "set skip_bad_rows: true" in message
    loaded = data.load(task_of(tmp_path, name, skip_bad_rows=True), all_rows)
    assert sum(loaded.sizes.values()) == 41
    note = loaded.notes[0]
    assert (
        note.startswith("1 of 42 rows of train were dropped: row 2 of ")
        and said.split(":")[0] in note
    )
    assert capfd.readouterr() == ("", "")


WRONG = {
    "missing.csv": (None, "there is no file .*missing.csv: check its name"),
    "notes.txt": (b"text", "expected a name that ends in .csv .tsv .json"),
    "latin.csv": ("text,label\ncaf\u00e9,0\n".encode("latin-1"), "line 2 is not utf-8 .byte 0xe9"),
    "empty.jsonl": (b"", "empty.jsonl is empty: name a file with rows"),
    "head.csv": (b"text,label\n", "head.csv has no rows"),
    "open.csv": (b'text,label\na,0\n"b,1\nc,0\n', "a quotation mark that opens in row 2 is never"),
    "twice.csv": (b"text,text,label\na,b,0\n", "has 2 columns 'text': rename one"),
    "other.csv": (b"words,label\na,0\n", "has no column 'text'; it has words, label"),
    "not.csv.gz": (b"text,label\n", "not.csv.gz cannot be read .*check or download it again"),
    "not.zip": (b"text,label\n", "not.zip cannot be read .*check or download it again"),
    "not.parquet": (b"text,label\n", "not a valid Parquet file .*save it again"),
    "not.json": (b"[{", "not.json is not valid JSON .*save it again"),
    "one.json": (
        b'{"text": "a", "label": 0, "x": {"y": 1}}\n3',
        "not valid JSON|row 2 of one.json",
    ),
    "ragged.json": (b'{"text": ["a"], "label": [0, 1]}', "columns of .* have different lengths"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_cannot_be_read_is_named_with_its_cause_first(tmp_path, all_rows, name):
    import re

    content, said = WRONG[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refusal(task_of(tmp_path, name), all_rows)
    assert re.search(said, message) and "Hub" not in message and name in message


def test_quotation_marks_may_be_text(tmp_path, all_rows):
    lines = ["text\tlabel", *(f'"row {i}\t{i % 2}' for i in range(39)), "row 39\t1"]
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    assert "set quotes: false" in refusal(task_of(tmp_path, "train.tsv"), all_rows)
    loaded = data.load(task_of(tmp_path, "train.tsv", quotes=False), all_rows)
    assert loaded.train.texts[0] == ('"row 0',) and sum(loaded.sizes.values()) == 40


def test_a_compressed_file_has_a_limit(tmp_path, all_rows, monkeypatch):
    monkeypatch.setattr(files, "MOST", 100)
    content = table(40)
    with gzip.open(tmp_path / "train.csv.gz", "wt") as stream:
        stream.write(content)
    with zipfile.ZipFile(tmp_path / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", content)
    for name in ("train.csv.gz", "train.zip"):
        message = refusal(task_of(tmp_path, name), all_rows)
        assert f"{name} unpacks to more than 100 bytes: unpack it, and name that" in message
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", content)
        archive.writestr("b.csv", content)
    assert "contains a.csv, b.csv: expected one file" in refusal(
        task_of(tmp_path, "two.zip"), all_rows
    )


def test_other_content_of_the_same_size_and_time_is_other_data(tmp_path, all_rows):
    """As `cp -p` and `rsync -t` leave it: labels inverted, nothing else to see."""
    written(tmp_path, train_csv=table(40))
    before, stat = data.load(task_of(tmp_path), all_rows), (tmp_path / "train.csv").stat()
    written(tmp_path, train_csv=table(40, label=lambda i: 1 - i % 2))
    os.utime(tmp_path / "train.csv", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = data.load(task_of(tmp_path), all_rows)
    assert [1 - label for label in after.train.labels] == before.train.labels
    assert after.fingerprint != before.fingerprint


def test_a_folder_that_stands_for_a_hub_id_is_read_anew(tmp_path, monkeypatch, all_rows):
    """The cache of `datasets` goes by sizes and times."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    file, found = tmp_path / "folder/train.jsonl", []
    for flip in (0, 1):
        rows = [{"text": f"row {i}", "label": (i + flip) % 2} for i in range(40)]
        file.write_text("\n".join(map(json.dumps, rows)))
        os.utime(file, (10**9, 10**9))
        found.append(data.load(own_task("own", hub_id=str(file.parent), **WORDS), all_rows))
    assert [1 - label for label in found[0].train.labels] == found[1].train.labels


# Tasks.


def test_an_own_task_cannot_take_the_name_of_a_built_in_one(tmp_path):
    fields = {**WORDS, "files": str(tmp_path / "a.csv")}
    for built_in, name in (("paper", "sst2"), ("miniworld", "mood")):
        with pytest.raises(InputError, match=rf"task {name!r} is there already \(built in\)"):
            tasks.table(built_in, 0, {name: fields})
    tasks.add_task("mine", **fields)
    assert tasks.table("paper", 0, {"mine": fields})[0]["mine"] == tasks.ADDED["mine"]
    with pytest.raises(InputError, match="task 'mine' is there already: give your task another"):
        tasks.table("paper", 0, {"mine": {**fields, "labels": ["a", "b"]}})
    tasks.add_task("mood", **fields)
    with pytest.raises(InputError, match="built in"):
        tasks.table("miniworld", 0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"separator": ";;"}, "separator is ';;': expected one character"),
        ({"separator": 3}, "separator is 3: expected text"),
        ({"encoding": "utf-9"}, "encoding is 'utf-9': expected one of latin-1"),
        ({"quotes": "no"}, "quotes is 'no': expected true or false"),
        ({"skip_bad_rows": 1}, "skip_bad_rows is 1: expected true or false"),
    ],
)
def test_what_says_how_to_read_is_checked(fields, said):
    with pytest.raises(InputError, match=f"task 'own': {said}"):
        own_task("own", files="a.csv", **WORDS, **fields)


def test_a_parameter_file_can_be_moved_with_its_data(tmp_path, capsys, monkeypatch):
    """Files, patterns and the splits' sources, from another folder."""
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "data").mkdir(parents=True)
    written(first / "data", a_csv=table(40), b_csv=table(40, "b"), test_csv=table(9, "test"))
    lines = [
        "own_tasks:", "  own:", "    columns: [text]", "    labels: ['no', 'yes']",
        "    files: {train: 'data/[ab].csv', test: data/test.csv}",
        "families: {few: [own, mood]}", "sources: [few]", "targets: [few]",
        "common: params/mini/common.yaml", f"store: {tmp_path / 'runs'}",
    ]  # fmt: skip
    (first / "p.yaml").write_text("\n".join(lines))
    first.rename(second)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "family_table", "--params", str(second / "p.yaml"), "--plan"]) == 0
    said = capsys.readouterr().out
    expected = "splits (train = rest of train, dev = drawn from train, test = test): own 72 + 8 + 9"
    assert expected in said
    assert "splits (train = train, dev = validation, test = test): mood 4,500 + 200 + 1,000" in said
    assert main(["tasks", "own", "--params", str(second / "p.yaml")]) == 0


def test_lengths_for_an_encoder_are_those_that_it_reads(encoder, mini, how):
    from fusinglib.study import resolver
    from fusinglib.study.settings import FamilyTable
    from fusinglib.training import folders

    task = tasks.mini_tasks(0)["topic"]
    text = data.load(task, how).train.texts[0]
    of_encoder = resolver.length_of(FamilyTable.from_parameters({**mini, "model": str(encoder)}))
    read = folders.tokenizer(encoder)(*data.pair_input(task, text))["input_ids"]
    assert of_encoder(task, text) == len(read)
    of_t5 = resolver.length_of(FamilyTable.from_parameters(mini))
    assert of_t5(task, text) > len(data.text_input(task, text, "t5").split())
    assert of_encoder(task, text) != of_t5(task, text)
