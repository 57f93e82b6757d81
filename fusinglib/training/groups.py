"""Find examples that share a text: a paragraph, a sentence, or a phrase of one sentence, exactly or
nearly.

Two examples share a text if

- a text of one and a text of the other have `PASSAGE` consecutive words in common (a paragraph, a
  sentence, a near-duplicate), or - a text of one with at least `PHRASE` words is also a text of the
  other or, if each has a single text, part of it (the phrases of one parse tree), or - all their
  texts are equal.

Case, punctuation and repeated words ("@user @user") do not count. Passages are compared by 64-bit
hashes of their words (n-gram hashing), in time linear in the length of the texts.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

PASSAGE, PHRASE = 8, 4
"""The least number of consecutive words that two examples share as a passage, and as a whole
phrase."""

Texts = Sequence[tuple[str, ...]]
"""Examples, each a tuple of texts."""

UNPLACED = -1
"""The group of an example whose text is too short to show where it comes from."""


def groups(texts: Texts) -> np.ndarray:
    """The group of every example, int (examples,): those that share a text, directly or through
    others, have the same number.

    `UNPLACED` is a single text of fewer than `PHRASE` words that is part of longer ones.
    """
    index = _index(texts)
    keys, numbers = np.unique(np.concatenate([index.keys, index.whole]), return_inverse=True)
    ends = len(texts), index.count, len(keys)  # a graph of examples, texts and keys
    of_texts, of_examples = np.split(numbers + ends[0] + ends[1], [len(index.keys)])
    starts = np.concatenate([index.rows, index.owners + ends[0], np.arange(ends[0])])
    stops = np.concatenate([index.texts + ends[0], of_texts, of_examples])
    edges = coo_array((np.ones(len(starts), bool), (starts, stops)), shape=(sum(ends), sum(ends)))
    found = connected_components(edges, directed=False)[1][: len(texts)].astype(int)
    found[_too_short(texts)] = UNPLACED
    return found


def sharing(texts: Texts, others: Texts) -> np.ndarray:
    """Which examples share a text with any of `others`, bool (examples,)."""
    index, count = _index([*texts, *others]), len(texts)
    own = index.rows < count
    known = index.keys[np.isin(index.owners, index.texts[~own])]
    shared = index.owners[np.isin(index.keys, known)]
    found = np.isin(index.whole[:count], index.whole[count:])
    found[index.rows[own][np.isin(index.texts[own], shared)]] = True
    return found


def passages(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """The passages of all examples: the example's row, int, and the passage's hash, uint64."""
    distinct = _distinct(texts)
    owners, keys, _ = _ngrams(_Words(map(_words, distinct)), PASSAGE)
    starts = np.searchsorted(owners, np.arange(len(distinct) + 1))
    number = {text: at for at, text in enumerate(distinct)}
    pairs = [(row, number[text]) for row, columns in enumerate(texts) for text in columns]
    parts = [slice(*starts[at : at + 2]) for _, at in pairs]
    counts = [part.stop - part.start for part in parts]
    rows = np.repeat([row for row, _ in pairs], counts).astype(int)
    return rows, np.concatenate([keys[part] for part in parts]) if parts else keys


class _Index(NamedTuple):
    """Which examples (`rows`) have which distinct `texts`, which of these (`owners`) which `keys`,
    how many texts there are (`count`), and a hash of all that an example says (`whole`)."""

    rows: np.ndarray
    texts: np.ndarray
    owners: np.ndarray
    keys: np.ndarray
    count: int
    whole: np.ndarray


def _index(texts: Texts) -> _Index:
    distinct = _distinct(texts)
    number, words = {text: at for at, text in enumerate(distinct)}, list(map(_words, distinct))
    owners, keys = _keys(_Words(words), single=all(len(columns) == 1 for columns in texts))
    pairs = [(row, number[text]) for row, columns in enumerate(texts) for text in columns]
    rows, of_rows = np.array(pairs, dtype=int).reshape(-1, 2).T
    telling = np.isin(of_rows, owners)  # short texts ("yes") say nothing
    plain = [" ".join(text) for text in words]
    whole = [_hash("\n".join(plain[number[text]] for text in columns)) for columns in texts]
    whole = np.array(whole, dtype=np.uint64)
    return _Index(rows[telling], of_rows[telling], owners, keys, len(distinct), whole)


def _distinct(texts: Texts) -> list[str]:
    return list(dict.fromkeys(text for columns in texts for text in columns))


class _Words:
    """The words of all texts one after the other: their hashes, and where the texts are."""

    def __init__(self, texts: Iterable[list[str]]):
        texts, known = list(texts), functools.cache(_hash)
        self.hashes = np.array([known(word) for text in texts for word in text], dtype=np.uint64)
        self.lengths = np.array([len(text) for text in texts], dtype=int)
        self.ends = np.cumsum(self.lengths)
        self.owners = np.repeat(np.arange(len(texts)), self.lengths)


def _words(text: str) -> list[str]:
    """The words of a text, a repeated one once."""
    words = re.findall(r"\w+", text.casefold())
    return [word for before, word in zip(["", *words], words, strict=False) if word != before]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


_ODD = np.uint64(0x9E3779B97F4A7C15)
"""The golden ratio in 64 bits, an odd number whose multiples are spread evenly."""


def _ngrams(words: _Words, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All runs of `size` words: the text's number, the hash, and whether it is the whole text."""
    count = max(len(words.hashes) - size + 1, 0)
    value = np.full(count, size, dtype=np.uint64)
    for k in range(size):
        value = (value ^ words.hashes[k : count + k]) * _ODD
        value ^= value >> np.uint64(29)
    owners = words.owners[:count]
    inside = np.arange(count) + size <= words.ends[owners]
    owners = owners[inside]
    return owners, value[inside], words.lengths[owners] == size


def _keys(words: _Words, single: bool) -> tuple[np.ndarray, np.ndarray]:
    """What texts share: their numbers and hashes; phrases that are parts of texts for examples of a
    `single` text alone."""
    found = [_ngrams(words, PASSAGE)[:2]]
    for size in range(PHRASE, PASSAGE):
        owners, keys, whole = _ngrams(words, size)
        phrase = np.isin(keys, keys[whole]) if single else whole
        found.append((owners[phrase], keys[phrase]))
    owners, keys = zip(*found, strict=True)
    return np.concatenate(owners), np.concatenate(keys)


def _too_short(texts: Texts) -> list[int]:
    """The examples of a single text of fewer than `PHRASE` words that is part of longer ones."""
    distinct, short = _distinct(texts), set()
    words = _Words(map(_words, distinct))
    for size in range(1, PHRASE):
        owners, keys, whole = _ngrams(words, size)
        part = np.isin(keys[whole], keys[~whole])
        short |= {distinct[owner] for owner in owners[whole][part]}
    return [row for row, columns in enumerate(texts) if len(columns) == 1 and columns[0] in short]
