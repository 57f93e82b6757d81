"""The cache of token ids: made once, read without texts, the same in every process."""

import json
from pathlib import Path

import numpy as np
import pytest

from fusinglib.training.tokens import Encoded, Tokens, cached


@pytest.fixture
def encoded() -> Encoded:
    texts = {"input_ids": [[5, 6, 7], [8], [9, 4]], "token_type_ids": [[0, 1, 1], [0], [0, 0]]}
    one = Tokens.of(texts, [2, 0, 1], 3)
    return Encoded({"train": one, "dev": one.take([2, 0])}, "r1", ("a note",))


def fail():
    raise AssertionError("nothing is to be tokenized")


def test_tokens_are_made_once_and_read_without_texts(encoded, tmp_path):
    cache = tmp_path / "tokens"
    for encode in (lambda: encoded, fail):
        found = cached({"task": "mood"}, encode, cache)
        assert (found.revision, found.notes, found.truncated) == ("r1", ("a note",), 0)
        assert list(found.splits) == ["train", "dev"]
        for name, split in encoded.splits.items():
            rows = range(len(split))
            one, two = split.pad(rows), found.splits[name].pad(rows)
            assert one.keys() == two.keys() and all((one[k] == two[k]).all() for k in one)
            assert found.splits[name].labels.tolist() == split.labels.tolist()
    (folder,) = [path for path in cache.glob("[!.]*")]
    assert json.loads((folder / "tokens.json").read_text())["task"] == "mood"


def test_the_arrays_are_mapped_not_read(encoded, tmp_path):
    flat = cached({}, lambda: encoded, tmp_path).splits["train"].flat["input_ids"]
    assert isinstance(flat.base, np.memmap)


def test_other_data_are_tokenized_anew(encoded, tmp_path):
    other = Encoded({"train": encoded.splits["train"].take([1])}, None, ())
    cached({"fingerprint": "one"}, lambda: encoded, tmp_path)
    found = cached({"fingerprint": "two"}, lambda: other, tmp_path)
    assert len(found.splits["train"]) == 1 and found.revision is None


def test_what_could_not_be_made_leaves_nothing(encoded, tmp_path):
    with pytest.raises(AssertionError, match="nothing is to be"):
        cached({}, fail, tmp_path)
    assert not [path for path in tmp_path.glob("[!.]*")]
    assert cached({}, lambda: encoded, tmp_path).splits.keys() == encoded.splits.keys()


def test_a_damaged_folder_is_made_again(encoded, tmp_path):
    cached({}, lambda: encoded, tmp_path)
    for damage in (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"), Path.unlink):
        (folder,) = [path for path in tmp_path.glob("[!.]*")]
        damage(folder / "train-input_ids.npy")
        again = cached({}, lambda: encoded, tmp_path)
        assert again.splits["train"].flat["input_ids"].tolist() == [5, 6, 7, 8, 9, 4]
    cached({}, fail, tmp_path)


def test_two_machines_that_do_not_see_each_others_lease(encoded, tmp_path, monkeypatch):
    monkeypatch.setattr("fusinglib.training.tokens.Leases.take", lambda leases, key: True)

    def encode():
        cached({}, lambda: encoded, tmp_path)
        return encoded

    found = cached({}, encode, tmp_path)
    assert found.splits["train"].flat["input_ids"].tolist() == [5, 6, 7, 8, 9, 4]
    (folder,) = tmp_path.glob("[!.]*")


def test_some_of_the_texts_are_the_same_texts(encoded):
    whole = encoded.splits["train"]
    some = whole.take([2, 0])
    assert some.labels.tolist() == [1, 2] and some.lengths.tolist() == [2, 3]
    one, two = some.pad([0, 1]), whole.pad([2, 0])
    assert all((one[name] == two[name]).all() for name in one)
    assert some.flat is whole.flat


def test_truncated_counts_the_texts_that_were_cut(encoded):
    cut = np.array([True, False, True])
    one = encoded.splits["train"]
    some = Tokens(one.flat, one.starts, one.lengths, one.labels, cut, one.pad_id)
    assert Encoded({"train": some, "dev": some.take([1])}, None, ()).truncated == 2 / 4
