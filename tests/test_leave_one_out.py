"""All leave-one-out means in one pass: bit for bit those of fusing the same models directly."""

import json

import numpy as np
import pytest
import torch
import transformers

from fusinglib import fuse, leave_one_out
from fusinglib.errors import InputError
from fusinglib.fusion import methods, streaming
from fusinglib.fusion.engine import fuse_subsets

T5 = {"d_model": 8, "d_ff": 16, "d_kv": 4, "num_heads": 2, "num_layers": 1, "vocab_size": 30}


@pytest.fixture
def five(tmp_path):
    """Five small models of one kind."""
    folders = []
    for seed in range(5):
        torch.manual_seed(seed)
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(**T5, decoder_start_token_id=0)
        )
        folders.append(tmp_path / f"model{seed}")
        model.save_pretrained(folders[-1])
    return folders


def same_files(one, other):
    """Whether two model folders hold the same bytes."""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, other)]
    return names[0] == names[1] and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names[0]
    )


def test_equal_to_fusing_directly(tmp_path, five):
    reports = leave_one_out(five, tmp_path / "all", progress=False)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        f"without-{i}" for i in range(5)
    ]
    for i in range(5):
        rest = five[:i] + five[i + 1 :]
        direct = fuse(rest, tmp_path / "direct" / f"{i}", progress=False)
        assert same_files(tmp_path / "all" / f"without-{i}", tmp_path / "direct" / f"{i}")
        assert direct.done() == reports[i].done()


def test_subsets_of_any_size_in_their_order(tmp_path, five):
    subsets = [[0, 1], [4, 2, 0], [3], [0, 1, 2, 3, 4]]
    folders = [tmp_path / f"s{i}" for i in range(4)]
    fuse_subsets(five, subsets, folders, progress=False)
    for folder, subset in zip(folders, subsets, strict=True):
        fuse([five[i] for i in subset], tmp_path / "direct", progress=False)
        assert same_files(folder, tmp_path / "direct")
        (tmp_path / "direct").rename(tmp_path / f"{folder.name}-direct")


def test_every_piece_of_all_inputs_is_read_once(tmp_path, five, monkeypatch):
    seen = []
    raw = streaming.Reader.raw

    def counted(self, tensor, start, stop, into):
        seen.append((tensor.file, tensor.name, start))
        raw(self, tensor, start, stop, into)

    monkeypatch.setattr(streaming.Reader, "raw", counted)
    leave_one_out(five, tmp_path / "all", progress=False)
    assert len(seen) == len(set(seen)) > 5


def test_all_or_none(tmp_path, five):
    with pytest.raises(InputError, match="at least three"):
        leave_one_out(five[:2], tmp_path / "all", progress=False)
    file = five[4] / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # the last number becomes NaN
    file.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="model4 contains NaN"):
        leave_one_out(five, tmp_path / "all", progress=False)
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "all").mkdir()
    with pytest.raises(InputError, match="already exists"):
        leave_one_out(five[:4], tmp_path / "all", progress=False)


def test_subsets_that_would_keep_a_head_are_refused(tmp_path):
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=16, vocab_size=30)  # fmt: skip
    kinds = [transformers.BertForMaskedLM] * 3 + [transformers.BertForTokenClassification]
    folders = [tmp_path / f"bert{i}" for i in range(4)]
    for kind, folder in zip(kinds, folders, strict=True):
        kind(config).save_pretrained(folder)
    with pytest.raises(InputError, match="different classes"):
        leave_one_out(folders, tmp_path / "all", progress=False)


def test_parents_and_hashes_are_those_of_the_subset(tmp_path, five):
    reports = leave_one_out(five, tmp_path / "all", progress=False)
    assert [len(report.parents) for report in reports] == [4] * 5
    card = (tmp_path / "all" / "without-2" / "README.md").read_text()
    assert reports[0].hashes[0] in card and reports[0].hashes[1] not in card
    json.dumps([report.done() for report in reports])


def test_shared_sums_change_no_bit():
    rng = np.random.default_rng(0)
    tensors = list(rng.normal(size=(6, 50)).astype(np.float32))
    lists = [[[j for j in range(6) if j != i] for i in range(6)], [[2], [2, 3], [2, 3], [0, 5]]]
    for _ in range(200):
        chosen = [sorted(rng.choice(6, rng.integers(1, 7), replace=False)) for _ in range(5)]
        lists.append([[int(i) for i in one] for one in chosen])
    for subsets in lists:
        found = list(methods.means(tensors, subsets))
        for subset, result in zip(subsets, found, strict=True):
            expected = methods.mean([tensors[i] for i in subset])
            assert result.tobytes() == expected.tobytes(), subsets
