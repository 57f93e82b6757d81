"""Hostile names, damaged stores, huge headers, killed processes: one line, and nothing lost."""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time

import pytest
import torch
import transformers
import yaml

from fusinglib import fuse, integrity
from fusinglib.__main__ import main
from fusinglib.errors import InputError
from fusinglib.evaluation import figures, pairs, playground, tables
from fusinglib.fusion import output
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable, FusePlayground, LossPath, PairwiseHeatmap
from fusinglib.study.store import Store
from fusinglib.training import cards, data, models
from fusinglib.training.scoring import predict
from fusinglib.widgets import view
from fusinglib.widgets.explorer import PairExplorer


def refused(capsys, *words: str) -> str:
    """The only line with which a command refuses (status 2), without a traceback."""
    capsys.readouterr()
    assert main(list(words)) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ") and "\n" not in errors and "Traceback" not in errors
    return errors


# Parameters.

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
FILES = {
    "alias bomb": (BOMB + "families: {x: *a8}\n", "aliases unfold to more than 1,000,000 values"),
    "alias of itself": ("families: &a {x: *a}\n", "nested too deeply|not valid YAML"),
    "deep nesting": (f"families: {'[' * 20_000}{']' * 20_000}\n", "nested too deeply"),
    "5,000 digits": (f"seeds: [{'9' * 5000}]\n", "not valid YAML"),
    "an impossible date": ("model: 2024-13-45\n", "model '2024-13-45': no such folder"),
    "a huge seed": (f"seeds: [{10**20}]\n", "'seeds' is 100000000000000000000: expected a number"),
    "a tag": ("model: !!python/object/apply:os.system [id]\n", "not valid YAML"),
    "no mapping": ("- seeds\n", "expected lines `name: value`"),
    "control characters": ("model: a\x00b\n", "not valid YAML"),
    "blank names": (
        "own_tasks: {a: {files: a.csv, columns: [t], labels: [x, y], names: }}\n",
        "task 'a': names is None: expected a list of words",
    ),
    "nested lists for names": ("families: {few: [[mood]]}\n", "'families'"),
    "numbers for names": ("families: {few: [1, 2]}\n", "'families'"),
}


@pytest.mark.parametrize("name", FILES)
def test_parameter_files(capsys, tmp_path, name):
    import re

    text, said = FILES[name]
    (tmp_path / "p.yaml").write_text(text)
    began = time.monotonic()
    errors = refused(capsys, "run", "family_table", "--params", str(tmp_path / "p.yaml"), "--plan")
    assert re.search(said, errors) and time.monotonic() - began < 20


WORDS = [
    (["run", "family_table", "--plan", "--set", "model=2024-13-45"], "model '2024-13-45'"),
    (["run", "family_table", "--plan", "--set", "model=~nosuch/x"], "no such home folder"),
    (["run", "family_table", "--plan", "--params", "~nosuch/x"], "no such home folder"),
    (["run", "family_table", "--plan", "--set", "seeds"], "expected name=value"),
    (["run", "family_table", "--plan", "--set", "seeds=[[["], "not valid YAML"),
    (["store", "--store", "~nosuch/x"], "no such home folder"),
    (["fuse", "~nosuch/x", "b", "--output", "c"], "no such home folder"),
    (
        ["fuse", "a", "b", "--output", "c", "--set", "weights=1"],
        "--set weights: it is not a setting",
    ),
    (["fuse", "a", "b", "--output", "c", "--set", "heads=1"], "--set heads: it is not a setting"),
    (["fuse", "a", "b", "--output", "c", "--set", "method=1"], "--set method: it is not a setting"),
    (["fuse", "a", "b", "--output", "c", "--set", "models=1"], "--set models: it is not a setting"),
    (["fuse", "<img>", "b", "--output", "c"], "neither a folder nor a file"),
    (["fuse", "a\nb", "b", "--output", "c"], "neither a folder nor a file"),
]


@pytest.mark.parametrize(("words", "said"), WORDS, ids=[" ".join(w[1:]) for w, _ in WORDS])
def test_words_on_the_command_line(capsys, words, said):
    capsys.readouterr()
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert said in errors and "Traceback" not in errors


# Headers.


def weights(folder, header, content=b"\0" * 4):
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content)
    return folder / "model.safetensors"


def one(shape, end=4) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}


HEADERS = {
    "a million dimensions": {"a": one([1] * 1_000_000)},
    "a million dimensions of two": {"a": one([2] * 1_000_000)},
    "300,000 empty tensors": {f"t{i}": one([0], 0) for i in range(300_000)},
    "20,000 huge sizes": {f"t{i}": one([2**40, 2**20], 2**62) for i in range(20_000)},
    "5,000 digits": b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
    "deep nesting": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a name 30,000 times": b"{" + b",".join([b'"a":' + json.dumps(one([0], 0)).encode()] * 30_000)
    + b"}",
    "a list": b"[]",
    "negative offsets": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
    "no offsets": {"a": {"dtype": "F32", "shape": [1]}},
    "an unknown dtype": {"a": {"dtype": "F13", "shape": [1], "data_offsets": [0, 4]}},
    "text for a shape": {"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
    "true for a size": {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_refused_within_a_second_and_200_megabytes(tmp_path, name):
    file = weights(tmp_path, HEADERS[name])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(InputError):
        fuse([file], dry_run=True)
    assert time.process_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize("pattern", [r"((\w|\.)+)+X", "(", "[", "(a*)*b", "query"])
def test_patterns_of_adapters_cannot_hang(encoder, tmp_path, pattern):
    import peft

    model = transformers.AutoModel.from_pretrained(encoder)
    config = peft.LoraConfig(r=2, target_modules=["query"])
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rank_pattern": {pattern: 2}}))
    began = time.monotonic()
    if pattern == "query":
        assert not fuse([tmp_path / "adapter"], dry_run=True).problems
    else:
        with pytest.raises(InputError, match="cannot be used"):
            fuse([tmp_path / "adapter"], dry_run=True)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_configs_nested_deeply_are_refused(encoder, tmp_path, depth):
    folder = shutil.copytree(encoder, tmp_path / "deep")
    (folder / "config.json").write_text('{"x": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(InputError, match=r"config.json"):
        fuse([folder], dry_run=True)


# Markup in names.

EVIL = "<img src=x onerror=alert(document.cookie)>"
NAMES = [EVIL, "$x^{2", "two\nlines: |", 'it\'s "quoted"', "<script>alert(1)</script>", "a|b`c`"]


@pytest.fixture
def named(mini, encoder, tmp_path) -> dict:
    """Parameters of a study of own tasks with hostile names."""
    rows = "".join(f"the baker sold bread {i},{i % 2}\n" for i in range(60))
    own = {}
    for number, name in enumerate(NAMES):
        file = tmp_path / f"{number}.csv"
        file.write_text("text,label\n" + rows.replace("bread", f"bread{number}"))
        own[name] = {"files": str(file), "columns": ["text"], "labels": ["no", "yes"]}
    return {
        **mini, "model": str(encoder), "own_tasks": own,
        "families": {EVIL: NAMES, "$few": NAMES[:3]},
        "sources": [EVIL], "targets": ["$few"], "seeds": [0],
    }  # fmt: skip


def raw(text: str) -> bool:
    """Whether markup of a name reached a page unescaped."""
    return "<img src=x" in text or "<script>alert" in text


def html_of(widget) -> str:
    """Everything that a widget and those in it show as HTML."""
    parts = [widget.value] if type(widget).__name__ == "HTML" else []
    return "\n".join(parts + [html_of(child) for child in getattr(widget, "children", ())])


def test_a_study_with_hostile_names_is_drawn_and_tabulated(named):
    settings = FamilyTable.from_parameters(named)
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    results = execute(plan, store, settings)
    assert results["accuracy"].notna().all()
    for table in (
        tables.accuracy_table(results, plan.families),
        tables.tasks_table(plan.families, plan.sizes),
    ):
        assert not raw(tables.show(table)._repr_html_())
    drawn = [
        figures.family_figure(results, plan.families),
        figures.squares_figure({EVIL: tables.pd.DataFrame(1.0, NAMES, NAMES)}, decimals=(1,)),
    ]
    for figure in drawn:
        figure.savefig(os.devnull, format="png")
        figure.savefig(os.devnull, format="svg")
    for run in plan.runs:
        if run.kind == "source":
            card = (store.model(run) / "README.md").read_text()
            assert card.count("\n---\n") == 1 and cards.read(store.model(run)) == (
                run.task.identity,
            )


def test_a_playground_with_hostile_names_shows_no_markup(named):
    chosen = {"models": NAMES[1:3], "target": EVIL, "method": "mean", "weights": []}
    settings = FusePlayground.from_parameters({**named, **chosen, "method_settings": {}})
    execute(plan_experiment(settings), Store(settings.store_folder()), settings)
    shown = view.Playground(settings)
    deadline = time.monotonic() + 60
    while not shown.outcome.value and time.monotonic() < deadline:
        shown.wake.set()
        time.sleep(0.2)
    assert "Fused:" in shown.outcome.value and "alert" in shown.outcome.value
    assert not raw(html_of(shown))
    assert not any(getattr(tick, "description_allow_html", False) for tick in shown.ticks.values())
    again = yaml.safe_load(playground.parameter_file(settings))
    assert FusePlayground(**again, store=settings.store) == settings
    call, known = playground.call(settings), {}
    exec(call.replace("widgets.playground(", "chosen = dict("), known)
    assert known["chosen"]["target"] == EVIL


def test_a_heatmap_with_hostile_names_shows_no_markup(named):
    settings = PairwiseHeatmap.from_parameters(
        {**named, "families": {EVIL: NAMES[:3], "$few": NAMES[:3]}}
    )
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    results = execute(plan, store, settings)
    figures.pair_figure(pairs.table(results), pairs.diagonal(results)).savefig(
        os.devnull, format="png"
    )
    shown = PairExplorer(settings, results)
    shown._choose(next(iter(shown.buttons)))
    assert not raw(html_of(shown)) and "alert" in html_of(shown)


def test_cards_of_fused_models_hold_what_their_parents_names_say(encoder, tmp_path):
    """A line break writes no front matter, and an @ makes no Hub model."""
    for name in ("a\n---\nbase_model: evil", "ckpt@100", EVIL.replace("/", ""), "x|y`z"):
        shutil.copytree(encoder, tmp_path / name)
        torch.manual_seed(len(name))
        model = transformers.AutoModel.from_pretrained(tmp_path / name)
        torch.nn.init.normal_(model.embeddings.word_embeddings.weight)
        model.save_pretrained(tmp_path / name)
    parents = [path for path in tmp_path.iterdir() if path.is_dir()]
    fuse(parents, tmp_path / "out", progress=False)
    card = (tmp_path / "out/README.md").read_text()
    _, front, rest = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers", "pipeline_tag": "feature-extraction",
        "tags": ["merge", "fusinglib"],
    }  # fmt: skip
    assert "---\n" not in rest.replace("|---|---|---|\n", "")
    table = [line for line in rest.splitlines() if line.startswith("| `")]
    assert len(table) == 4 and all(line.count("`") == 4 for line in table)


def test_only_models_of_the_hub_are_base_models(encoder, tmp_path):
    report = fuse([encoder], tmp_path / "out", progress=False)
    report.hub = ["google-bert/bert-base-uncased"]
    front = yaml.safe_load(output._card(report).split("---\n")[1])
    assert front["base_model"] == ["google-bert/bert-base-uncased"]


# A damaged store.

FORMS = {"empty": "", "cut": '{"ver', "null": "null", "a list": "[1]", "text": '"x"', "{}": "{}"}
COMMANDS = {
    "list": ["store"],
    "check": ["store", "check"],
    "prune": ["store", "prune", "--yes"],
    "export": ["store", "export", "--output", "runs.csv"],
    "plan": ["run", "family_table", "--plan"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, encoder):
    """A finished study: its store, its parameter file, its plan."""
    from conftest import TINY

    folder = tmp_path_factory.mktemp("finished")
    values = {
        **TINY, "model": str(encoder), "store": str(folder / "runs"), "seeds": [0],
        "common": "params/mini/common.yaml",
    }  # fmt: skip
    (folder / "p.yaml").write_text(yaml.safe_dump(values))
    settings = FamilyTable.from_parameters(
        {**values, "intertraining": "largest", "source_seeds": [0], "tasks": "miniworld",
         "model_revision": "", "world_seeds": [0], "pretraining_seed": 0}
    )  # fmt: skip
    plan = plan_experiment(settings)
    execute(plan, Store(settings.store_folder()), settings)
    return folder, plan


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["store.json", "run.json", "result.json", "hashes.json"])
@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_of_a_store_are_named(
    finished, tmp_path, capsys, monkeypatch, command, name, form
):
    """No traceback; whatever is whole stays; what can be recomputed is quarantined, not lost."""
    folder, plan = finished
    monkeypatch.chdir(tmp_path)
    store = shutil.copytree(folder / "runs", tmp_path / "runs")
    target = next(run for run in plan.runs if run.kind == "target")
    damaged = store if name == "store.json" else store / "target" / target.key
    (damaged / name).write_text(FORMS[form])
    where = ["--store", str(store)]
    if command == "plan":
        where = ["--params", str(folder / "p.yaml"), "--set", f"store={store}"]
    whole = {path for path in store.glob("*/*/result.json") if path.parent != damaged}
    capsys.readouterr()
    status = main([*COMMANDS[command], *where])
    out, err = capsys.readouterr()
    assert status in (0, 1, 2) and "Traceback" not in out + err
    assert whole <= set(store.glob("*/*/result.json"))
    if status == 2:
        assert name in err or str(damaged) in err
    if command == "check" and name != "store.json":
        assert status == 1 and target.key in out and list((store / ".damaged").iterdir())


@pytest.mark.parametrize(
    "name", ["run.json", "result.json", "hashes.json", "predictions.safetensors"]
)
@pytest.mark.parametrize("form", ["empty", "cut", "a list"])
def test_a_run_heals_what_is_damaged(finished, tmp_path, name, form):
    folder, plan = finished
    store = Store(shutil.copytree(folder / "runs", tmp_path / "runs"))
    target = next(run for run in plan.runs if run.kind == "target")
    before = store.result(target)["accuracy"]
    (store.path(target) / name).write_text(FORMS[form])
    settings = FamilyTable.from_parameters(
        {**yaml.safe_load((folder / "p.yaml").read_text()), "store": str(store.root),
         "intertraining": "largest", "source_seeds": [0], "tasks": "miniworld",
         "model_revision": "", "world_seeds": [0], "pretraining_seed": 0}
    )  # fmt: skip
    from fusinglib.study.costs import estimate

    estimate(plan, store, settings)  # as a notebook does first
    results = execute(plan, store, settings)
    assert results.set_index("key").loc[target.key, "accuracy"] == before
    if name in ("result.json", "hashes.json"):
        assert store.result(target)["accuracy"] == before
        assert list((store.root / ".damaged").iterdir())


# Killed processes, and what they leave.


def test_a_killed_fuse_is_cleaned_up_by_the_next(encoder, tmp_path):
    """Hidden folders of dead processes go; those of living ones and of other machines stay."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = integrity.machine()
    left = tmp_path / f".out.{here}-{ended.pid}-0123abcd.partial"
    kept = [
        tmp_path / f".out.{here}-{os.getpid()}-0123abcd.partial",
        tmp_path / f".out.elsewhere-{ended.pid}-0123abcd.partial",
        tmp_path / f".other.{here}-{ended.pid}-0123abcd.partial",
    ]
    for folder in (left, *kept):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    fuse([encoder], tmp_path / "out", progress=False)
    assert not left.exists() and all(folder.exists() for folder in kept)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_end_leaves_nothing(encoder, tmp_path, number):
    """In the middle of writing: no partial folder, status 130, one line."""
    code = f"""
import sys, time
from fusinglib.fusion import output
finish = output.Folder.finish
def slow(self, first):
    print("writing", flush=True)
    time.sleep(60)
output.Folder.finish = slow
from fusinglib.__main__ import main
sys.exit(main(["fuse", {str(encoder)!r}, "--output", {str(tmp_path / "out")!r}]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_few_file_descriptors_are_refused_in_a_line(encoder, tmp_path):
    code = f"""
import resource, sys
from fusinglib.__main__ import main
main(["fuse", {str(encoder)!r}, "--output", {str(tmp_path / "first")!r}])  # imports everything
resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))
sys.exit(main(["fuse", {str(encoder)!r}, "--output", {str(tmp_path / "out")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert "Too many open files" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


# Silent wrong numbers.


def test_a_loss_that_is_not_a_number_fails_by_name_and_alone(mini, encoder, capsys):
    settings = FamilyTable.from_parameters(
        {**mini, "model": str(encoder), "learning_rate": 1e30, "seeds": [0]}
    )
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    execute(plan, store, settings)
    said = capsys.readouterr().out
    assert "lower learning_rate (1e+30)" in said
    assert not any(store.has(run) for run in plan.runs if run.kind in ("source", "target"))
    assert store.has(plan.runs[0])


@pytest.fixture
def xlnet(tmp_path, encoder_tokenizer):
    """A tiny XLNet, which reads its answer off the last token, so that padding stands first."""
    config = transformers.XLNetConfig(
        vocab_size=len(encoder_tokenizer), d_model=16, n_layer=1, n_head=2, d_inner=16,
        pad_token_id=0, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.XLNetModel(config).save_pretrained(tmp_path / "xlnet")
    encoder_tokenizer.save_pretrained(tmp_path / "xlnet")
    file = tmp_path / "xlnet/tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "padding_side": "left"}))
    return tmp_path / "xlnet"


def test_padding_is_on_the_side_that_the_tokenizer_says(xlnet, mini_tasks, training, how):
    task = mini_tasks["mood"]
    model = models.load(xlnet, task, training, how, seed=0, device="cpu")
    tokens = model.encode(data.load(task, how).test)
    together = predict(model, tokens)["scores"]
    for row in range(len(tokens)):
        alone = predict(model, tokens.take([row]))["scores"]
        assert abs(together[row] - alone[0]).max() < 1e-4


def test_a_model_whose_padding_changes_its_scores_is_refused(xlnet, mini_tasks, training, how):
    file = xlnet / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "padding_side": "right"}))
    with pytest.raises(InputError, match="in a batch otherwise than alone: its tokenizer pads on"):
        models.load(xlnet, mini_tasks["mood"], training, how, seed=0, device="cpu")


def test_a_folder_and_the_file_in_it_are_one_model(encoder, tmp_path):
    other = shutil.copytree(encoder, tmp_path / "other")
    with pytest.raises(InputError, match="is listed twice"):
        fuse([encoder, encoder / "model.safetensors"], dry_run=True)
    os.symlink(encoder, tmp_path / "link")
    with pytest.raises(InputError, match="is listed twice"):
        fuse([encoder, tmp_path / "link"], dry_run=True)
    assert not fuse([encoder, other], dry_run=True).problems


def test_one_file_under_two_names_is_one_task(mini, encoder, tmp_path):
    rows = "".join(f"the baker sold bread {i},{i % 2}\n" for i in range(60))
    (tmp_path / "a.csv").write_text("text,label\n" + rows)
    shutil.copy(tmp_path / "a.csv", tmp_path / "copy.csv")
    fields = {"columns": ["text"], "labels": ["no", "yes"]}
    own = {
        "one": {**fields, "files": str(tmp_path / "a.csv")},
        "two": {**fields, "files": {"train": str(tmp_path / "a.csv")}, "labels": ["bad", "good"]},
        "three": {**fields, "files": str(tmp_path / "copy.csv")},
    }
    few = {"few": ["one", "two", "three", "mood"]}
    settings = FamilyTable.from_parameters(
        {**mini, "model": str(encoder), "own_tasks": own, "families": few, "split_rule": "paper"}
    )
    plan = plan_experiment(settings)
    sources = {row["target"]: row["sources"] for row in plan.rows if row["base"] == "fused"}
    assert sources["one"] == ("mood",) and len(sources["mood"]) == 3
    assert "one: two is left out as well, since it reads the same files" in plan.notes


# Dead ends.


def test_a_loss_path_between_own_models_alone(mini, encoder, tmp_path):
    from fusinglib.evaluation import paths

    folders = []
    for seed in range(2):
        folders.append(str(shutil.copytree(encoder, tmp_path / f"m{seed}")))
        torch.manual_seed(seed)
        model = transformers.AutoModel.from_pretrained(folders[-1])
        torch.nn.init.normal_(model.embeddings.word_embeddings.weight)
        model.save_pretrained(folders[-1])
    changes = {
        "model": str(encoder), "families": {"mine": folders, "few": ["mood"]}, "sources": ["mine"],
        "targets": ["few"], "points": 3, "head_learning_rate": 1e-3, "seeds": [0],
    }  # fmt: skip
    settings = LossPath.from_parameters({**mini, **changes})
    plan = plan_experiment(settings)
    table = paths.points(execute(plan, Store(settings.store_folder()), settings))
    assert paths.between(table, "barrier").shape == (4, 4)
    assert set(paths.summary(table).index.unique("tasks")) == {"unseen"}
