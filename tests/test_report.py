"""What is said before anything is read: the compatibility report, and the doors that show it."""

import json
import subprocess
import sys

import pytest
import torch
from test_engine import edit, edit_config, make_bert, make_t5, save_all
from transformers import BertModel

from fusinglib import fuse
from fusinglib.__main__ import main
from fusinglib.errors import InputError


@pytest.fixture
def heads(tmp_path):
    """Three classifiers of one kind with other numbers of labels."""
    return save_all(tmp_path, [make_bert(seed, labels=seed + 2) for seed in range(3)])


def values(report, what):
    return [row["value"] for row in report.rows() if row["what"] == what]


def test_a_dry_run_reads_no_weights_and_writes_nothing(tmp_path, heads, monkeypatch):
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("fusinglib.fusion.tensors.Reader.raw", None)
    report = fuse(heads, tmp_path / "out", dry_run=True)
    assert sorted(tmp_path.iterdir()) == before
    sizes = [(folder / "model.safetensors").stat().st_size for folder in heads]
    assert 0.5 * sum(sizes) < report.bytes_read < sum(sizes)
    assert report.bytes_written * 3 == report.bytes_read
    assert values(report, "left out") == [
        f"classifier.{part}: head, not part of the body" for part in ("bias", "weight")
    ]
    assert "the labels of the heads differ; heads are left out" in report.notes
    assert not report.problems and report.updates == [] and report.hashes == []
    assert "averaged" in report._repr_html_() and "averaged" in str(report)


def test_a_dry_run_lists_all_problems_and_a_refusal_quotes_the_first(tmp_path, heads):
    edit(heads[1], lambda tensors: tensors.pop("bert.pooler.dense.bias"))
    edit(heads[2], lambda tensors: tensors.update({"bert.pooler.dense.bias": torch.zeros(9)}))
    edit_config(heads[2], num_attention_heads=4)
    report = fuse(heads, tmp_path / "out", dry_run=True)
    assert len(report.problems) == 3
    assert "missing in model" in report.problems[0] and "shape" in report.problems[1]
    assert "num_attention_heads" in report.problems[2]
    with pytest.raises(InputError) as error:
        fuse(heads, tmp_path / "out")
    assert str(error.value).startswith(report.problems[0]) and "2 more" in str(error.value)


def test_updates_and_who_is_out_of_line(tmp_path):
    base = make_bert(0, kind=BertModel)
    folders = save_all(tmp_path, [base, base, base, base])
    for i, folder in enumerate(folders[1:], 1):

        def shift(tensors, i=i):
            for name, tensor in tensors.items():
                generator = torch.Generator().manual_seed(i if name[0] == "p" else 9)
                noise = torch.randn(tensor.shape, generator=generator)
                tensor += noise * (0.01 if i < 3 else 0.3)

        edit(folder, shift)
    report = fuse(folders[1:], tmp_path / "out", pretrained=folders[0], dry_run=True)
    norms = [row["norm"] for row in report.updates]
    assert norms[2] == pytest.approx(30 * norms[0], rel=0.05)
    assert report.updates[0]["cosines"][0] is None and report.updates[0]["cosines"][1] > 0.5
    assert any("model3" in note and "another ancestor" in note for note in report.notes)
    weights = [torch.cat([t.flatten() for t in load(folder).parameters()]) for folder in folders]
    expected = ((weights[1] - weights[0]).norm() / weights[0].norm()).item()
    assert norms[0] == pytest.approx(expected, rel=1e-4)
    assert "of the pretrained norm, cosines with the others'" in values(report, "model 1")[0]


def test_only_language_models_have_output_embeddings_to_tie(tmp_path):
    bodies = save_all(tmp_path, [make_bert(seed, kind=BertModel) for seed in range(2)])
    tied = [tmp_path / f"t5-{seed}" for seed in range(2)]
    for seed, folder in enumerate(tied):
        make_t5(seed).save_pretrained(folder)
    said = "output embeddings are tied to the input embeddings, which are stored once"
    assert said not in fuse(bodies, dry_run=True).notes
    assert said in fuse(tied, dry_run=True).notes


def test_a_card_cites_the_source_of_its_own_method(tmp_path):
    folders = save_all(tmp_path, [make_bert(seed, kind=BertModel) for seed in range(2)])
    cards = {}
    for method in ("mean", "slerp", "weighted"):
        fuse(folders, tmp_path / method, method=method, progress=False)
        cards[method] = (tmp_path / method / "README.md").read_text()
    assert "with the method mean (Choshen et al. 2022" in cards["mean"]
    assert (
        "slerp, straight 1.0 (Shoemake 1985" in cards["slerp"] and "Choshen" not in cards["slerp"]
    )
    assert "with the method weighted, tensor by tensor" in cards["weighted"]


def load(folder):
    return BertModel.from_pretrained(folder)


def test_heads_are_averaged_on_request_where_labels_agree(tmp_path):
    folders = save_all(tmp_path, [make_bert(seed, labels=3) for seed in range(2)])
    report = fuse(folders, tmp_path / "out", heads=True, progress=False)
    assert report.architecture == "BertForSequenceClassification" and not report.left_out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    edit_config(folders[1], id2label={"0": "c", "1": "b", "2": "a"})
    with pytest.raises(InputError, match="different labels"):
        fuse(folders, tmp_path / "other", heads=True)


def test_shards_of_the_asked_size(tmp_path):
    folders = save_all(tmp_path, [make_t5(seed, untied=True) for seed in range(2)])
    fuse(folders, tmp_path / "whole", progress=False)
    fuse(folders, tmp_path / "parts", max_shard_size="2KB", progress=False)
    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and {file.name for file in files} == set(index["weight_map"].values())
    kind = type(make_t5(0))
    one, two = (kind.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for size in ("0", "big", "-1GB", 0):
        with pytest.raises(InputError, match="max_shard_size"):
            fuse(folders, tmp_path / "out", max_shard_size=size)


def test_the_command_line(tmp_path, heads, capsys):
    models = [str(folder) for folder in heads]
    assert main(["fuse", *models, "--output", str(tmp_path / "out")]) == 0
    assert "averaged" in capsys.readouterr().out
    fuse(heads, tmp_path / "same", progress=False)
    files = [tmp_path / name / "model.safetensors" for name in ("out", "same")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert main(["fuse", *models, "--dry-run"]) == 0
    assert main(["fuse", *models]) == 2
    options = ["--method", "weighted", "--weights", "1,2,1", "--output", str(tmp_path / "w")]
    assert main(["fuse", *models, *options]) == 0
    assert "weight 0.25\n" in capsys.readouterr().out
    options = ["--method", "ties", "--set", "density=0.5", "--pretrained", models[0]]
    assert main(["fuse", *models[1:], *options, "--output", str(tmp_path / "t")]) == 0
    edit(heads[1], lambda tensors: tensors.pop("bert.pooler.dense.bias"))
    assert main(["fuse", *models, "--dry-run"]) == 2
    assert main(["fuse", *models, "--output", str(tmp_path / "no")]) == 2
    assert "pooler.dense.bias" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_the_mean_needs_neither_torch_nor_transformers(tmp_path, heads):
    code = (
        "import sys\nfrom fusinglib.__main__ import main\n"
        f"main({['fuse', *map(str, heads), '--output', str(tmp_path / 'out')]!r})\n"
        "print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_threads_and_pieces_leave_the_bits_alone(tmp_path, heads, monkeypatch):
    fuse(heads, tmp_path / "usual", progress=False)
    monkeypatch.setattr("fusinglib.fusion.streaming.CHUNK", 16)
    monkeypatch.setattr("fusinglib.fusion.streaming.BUFFER", 200)
    monkeypatch.setattr("fusinglib.fusion.streaming.threads", lambda: 5)
    fuse(heads, tmp_path / "small", progress=False)
    kind = BertModel
    one, two = (kind.from_pretrained(tmp_path / n).state_dict() for n in ("usual", "small"))
    assert all(torch.equal(one[name], two[name]) for name in one)
