"""Notebooks: strict parameters, plain papermill, files beside the executed copy, hygiene."""

import ast
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from fusinglib.__main__ import main
from fusinglib.places import PROJECT
from fusinglib.progress import Line, duration
from fusinglib.study import notebooks, parameters, summary
from fusinglib.study.costs import of_notebooks
from fusinglib.study.execution import execute, results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable
from fusinglib.study.store import Store
from fusinglib.study.study import Study

WORLDS = ("many_worlds", "when_fusing_helps")
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def params(mini, tmp_path):
    """A parameter file of the tiny grid."""
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**mini, "seeds": [0]}))
    return path


def refused(capsys, *arguments):
    """The one line with which the command line refuses something."""
    assert main(["run", "family_table", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"seds: [0]", "no parameter 'seds': did you mean 'seeds'?"),
        (b"[model, seeds]", "expected lines `name: value`"),
        (b"", "expected lines `name: value`"),
        (b"seeds: [0", "is not valid YAML"),
        (b"\xff\xfe\x00", "expected a text file"),
        (b"seeds: 0", "'seeds' is 0: expected a list"),
        (b"max_test: 1.5", "'max_test' is 1.5: expected a whole number"),
        (b"allow_pickle: 1", "'allow_pickle' is 1: expected true or false"),
        (b"model: 3", "'model' is 3: expected text"),
    ],
)
def test_parameter_files_are_read_strictly(tmp_path, capsys, content, expected):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert expected in refused(capsys, "--params", path)


def test_other_strictness(tmp_path, capsys):
    assert "No such file" in refused(capsys, "--params", tmp_path / "none.yaml")
    assert "Is a directory" in refused(capsys, "--params", tmp_path)
    assert "--set 'seeds': expected name=value" in refused(capsys, "--set", "seeds")
    assert "--set 'seeds=[' is not valid YAML" in refused(capsys, "--set", "seeds=[")
    assert "did you mean 'workers'" in refused(capsys, "--set", "worker=1")
    assert main(["run", "family_tabel"]) == 2
    assert "did you mean 'family_table'?" in capsys.readouterr().err


def test_overrides_come_after_the_file(params):
    chosen = parameters.choose("family_table", str(params), ["seeds=[7]", "max_dev=5"])
    assert (chosen["seeds"], chosen["max_dev"], chosen["model"]) == ([7], 5, "miniworld")


def test_the_plan_is_printed_and_nothing_computed(params, mini, tmp_path, capsys):
    arguments = ["run", "family_table", "--params", str(params), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--plan"]) == 0
    out = capsys.readouterr().out
    assert all(kind in out for kind in ("pretrain", "source", "fuse", "target", "finished"))
    assert not Store(mini["store"]).describe() and not (tmp_path / "out").exists()


def test_the_store_is_listed(tmp_path, capsys):
    Store(tmp_path / "runs")
    assert main(["store", "--store", str(tmp_path / "runs")]) == 0
    assert "0 finished runs" in capsys.readouterr().out
    assert main(["store", "--store", str(tmp_path / "misspelt")]) == 2
    assert "there is no store" in capsys.readouterr().err
    assert not (tmp_path / "misspelt").exists()
    (tmp_path / "other").mkdir()
    assert main(["store", "--store", str(tmp_path / "other")]) == 2
    assert "other is not a store" in capsys.readouterr().err
    assert not list((tmp_path / "other").iterdir())


def command(params, output, *more):
    words = [sys.executable, "-m", "fusinglib", "run", "family_table", "--params", params]
    return [*map(str, words), "--output", str(output), *more]


@pytest.fixture
def plan(mini):
    return plan_experiment(FamilyTable.from_parameters({**mini, "seeds": [0]}))


def test_a_notebook_in_batch(params, plan, mini, tmp_path):
    done = subprocess.run(command(params, tmp_path / "out"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for text in ("intertrained", "fused - pretrained", str(tmp_path / "out/family_table.ipynb")):
        assert text in done.stdout
    log = done.stderr.splitlines()
    assert log[-1].startswith("16 of 16 runs, 16 computed in")
    assert all(re.match(r"\d+ of 16 runs", line) for line in log), done.stderr

    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"family_table-accuracy.png", "family_table-forest.png"} <= files
    assert (tmp_path / "out/family_table-forest.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out/family_table.txt").read_text().startswith("fusinglib run")
    kept = results(plan, Store(mini["store"]))
    recorded = pd.read_csv(tmp_path / "out/family_table.csv", dtype={"key": str})
    assert list(recorded.key) == list(kept.key) and len(kept) == 9
    assert list(recorded.accuracy) == list(kept.accuracy)

    copy = nbformat.read(tmp_path / "out/family_table.ipynb", as_version=4)
    cell = next(cell for cell in copy.cells if cell.id == "execute")
    shown = [output.data["text/plain"] for output in cell.outputs if "data" in output]
    assert [text for text in shown if "16 of 16 runs, 16 computed in" in text] == shown
    assert "<progress value='16' max='16'" in cell.outputs[0].data["text/html"]
    shown = {cell.id: cell.get("outputs", []) for cell in copy.cells}
    tensors = len(load_file(next(Path(mini["store"]).glob("source/*/model/model.safetensors"))))
    expected = f"{tensors} of {tensors} tensors are equal, bit for bit"
    assert shown["mean"][0]["text"].strip() == expected
    assert "sentiment sentence: " in shown["texts"][0]["data"]["text/html"]
    order = [cell.id for cell in copy.cells]
    assert order.index("headline") < order.index("accuracy") < order.index("mean")
    assert order.index("mean") < order.index("table-1") < order.index("claims")
    assert order.index("claims") < order.index("table-3") < order.index("settings")
    assert "learning_rate" in shown["settings"][0]["data"]["text/plain"]


PATH = {
    "families": {"few": ["sentiment", "mood", "irony"], "unseen": ["emotion"]},
    "targets": ["unseen"],
    "points": 3,
    "head_learning_rate": 1e-3,
}


@pytest.mark.parametrize(
    ("name", "changes", "made"),
    [  # the tiny family table has 3 source models, 3 means and 3 x 3 targets
        ("weight_decay", {"weight_decay": 0.5, "explored_decays": [2.0]}, 2 * (3 + 3 + 9)),
        ("source_size", {"sizes": [4, 4500]}, 3 + 3 + 6),  # 4500 is all there is
        ("pairwise_heatmap", {}, 3 + 4),  # of three tasks, pairs are all but one; random weights
        ("loss_path", PATH, 1 + 6 + 4 + 9 + 12),  # the mean of all three, and lines of four kinds
    ],
)
def test_the_other_notebooks_share_the_runs_of_the_family_table(
    name, changes, made, mini, tmp_path, capsys
):
    tiny = {**mini, "seeds": [0], **changes}
    settings = FamilyTable.from_parameters({**mini, "seeds": [0]})
    execute(plan_experiment(settings), Store(mini["store"]), settings)
    before = len(Store(mini["store"]).describe())
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({k: tiny[k] for k in tiny.keys() & parameters.names(name)}))
    out = tmp_path / "out"
    assert main(["run", name, "--params", str(path), "--output", str(out)]) == 0
    assert f"{name}.ipynb" in capsys.readouterr().out
    assert (out / f"{name}-figure.png").read_bytes().startswith(b"\x89PNG")
    assert pd.read_csv(out / f"{name}.csv")["accuracy"].notna().all()
    assert len(Store(mini["store"]).describe()) - before == made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("family_table", {"arms": ["random"]}),
        ("weight_decay", {"weight_decay": 0.5, "explored_decays": []}),
        ("source_size", {"sizes": [4, 50]}),
        (
            "fusing_methods",
            {
                "arms": ["placebo", "scaled single", {"ties": {}}, {"ties": {"density": 0.5}}],
                "tried_rates": [1e-4],
            },
        ),
        ("shrinkage", {"scales": [0.5, 1.0], "counts": [1], "draws": 2}),
        ("loss_path", {"points": 3, "head_learning_rate": 1e-3, "targets": ["unseen"]}),
    ],
)
def test_thin_studies_run_and_say_so(name, changes, mini, tmp_path, capsys):
    """One seed and one target: dashes where a spread cannot be had."""
    families = {"few": ["sentiment", "mood"], "one": ["irony"], "unseen": ["emotion"]}
    thin = {**mini, "families": families, "targets": ["one"], "seeds": [0], **changes}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({k: thin[k] for k in thin.keys() & parameters.names(name)}))
    assert main(["run", name, "--params", str(path), "--output", str(tmp_path / "out")]) == 0
    report = capsys.readouterr().out
    if name != "loss_path":  # which has no intervals
        assert "–" in report and ("undecided" in report or "nothing is decided" in report)
    assert not re.search(r"\bnan\b", report, re.IGNORECASE)


CLUSTER = {"moods": ["mood", "irony"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("many_worlds", {"first_worlds": 2, "recorded": ""}),
        ("when_fusing_helps", {"first_worlds": 2, "recorded": ""}),
        ("family_table", {"arms": ["random"], "clusters": CLUSTER}),
        ("pairwise_heatmap", {}),
        ("weight_decay", {"weight_decay": 0.5, "explored_decays": [], "clusters": CLUSTER}),
        ("source_size", {"sizes": [4, 50], "clusters": CLUSTER}),
        (
            "fusing_methods",
            {
                "arms": ["placebo", "scaled single", {"ties": {}}, {"ties": {"density": 0.5}}],
                "tried_rates": [1e-4],
                "source_seeds": [],
            },
        ),
        (
            "shrinkage",
            {
                "scales": [0.5, 1.0],
                "counts": [1],
                "draws": 2,
                "clusters": CLUSTER,
                "source_seeds": [],
            },
        ),
        ("seed_planner", {"spread_from": "guess", "tried_seeds": [2], "tried_targets": [3]}),
    ],
)
def test_notebooks_over_many_worlds(name, changes, mini, tmp_path, capsys):
    tiny = {**mini, "world_seeds": [0, 1, 2], **changes}
    common = yaml.safe_load((PROJECT / "params/mini/common.yaml").read_text())
    known = parameters.names(name)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (common | tiny).items() if k in known}))
    assert main(["run", name, "--params", str(path), "--output", str(tmp_path / "out")]) == 0
    report = capsys.readouterr().out
    assert not re.search(r"\bnan\b", report, re.IGNORECASE)
    if name == "when_fusing_helps":
        assert len(pd.read_csv(tmp_path / f"out/{name}.csv")) == 3 * 3
    elif name == "many_worlds":
        rows = pd.read_csv(tmp_path / f"out/{name}.csv").groupby("comparison").size()
        assert (rows == 3 + 2).all()  # three worlds, and their mean in two scopes
    elif name != "seed_planner":
        results = pd.read_csv(tmp_path / f"out/{name}.csv")
        assert set(results["world"]) == {0, 1, 2} and results["accuracy"].notna().all()
        assert "other tasks from this mix of families" in report
    if name in ("many_worlds", "pairwise_heatmap"):
        picture = {"many_worlds": "forest"}.get(name, "figure")
        assert (tmp_path / f"out/{name}-{picture}.png").is_file()


@pytest.fixture
def folder(mini, tmp_path):
    """A folder with tiny parameter files for two notebooks."""
    for name in ("family_table", "pairwise_heatmap"):
        tiny = {k: v for k, v in {**mini, "seeds": [0]}.items() if k in parameters.names(name)}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tiny))
    return tmp_path


def test_all_notebooks_of_a_folder_and_their_summary(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["run", "--all", "--params", str(folder), "--output", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out.count(str(out / "summary.html")) == 2
    first, second = shown.out.index("family_table (1 of 2)"), shown.out.index("(2 of 2)")
    assert first < shown.out.index(str(out / "family_table.ipynb")) < second
    runs = 1 + 3 + (3 + 9)  # pretrained, sources; means and targets
    assert f"{runs} of {runs} runs, {runs} computed in" in shown.err
    assert "7 computed in" in shown.err  # single models, and random weights
    assert f"run pairwise_heatmap --params {folder}" in (out / "pairwise_heatmap.txt").read_text()
    page = (out / "summary.html").read_text()
    for name in ("family_table", "pairwise_heatmap"):
        assert f'<section id="{name}">' in page and f'href="#{name}"' in page
    assert page.count('src="data:image/png') == 3
    assert page.count("<details>") == 2 * 2  # all of a notebook, and in there its settings
    assert "no evidence about English" in page and "with fusinglib" in page
    assert page.index("targets with 1 seed: the fused model ends") < page.index("data:image/png")
    verdicts = page.index("9 good models make good pairs")
    assert page.index("data:image/png") < verdicts < page.index('<section id="pairwise_heatmap">')
    assert not re.findall(r'(?:src|href)="http', page)
    assert "Still to come" not in page


def test_the_summary_grows_and_says_what_is_still_to_come(folder, tmp_path, monkeypatch):
    pages = []

    def written(executed, page, coming):
        write(executed, page, coming)
        pages.append(page.read_text())

    write = summary.write
    monkeypatch.setattr(summary, "write", written)
    assert main(["run", "--all", "--params", str(folder), "--output", str(tmp_path / "out")]) == 0
    first, last = pages
    assert "Still to come: pairwise heatmap." in first and 'id="family_table"' in first
    assert "Still to come" not in last and 'id="pairwise_heatmap"' in last


def test_a_notebook_that_cannot_be_executed_leaves_the_others_and_the_summary(
    folder, mini, tmp_path, capsys
):
    planner = yaml.safe_load((PROJECT / "params/mini/seed_planner.yaml").read_text())
    tiny = {**planner, **mini, "seeds": [0]}
    (folder / "seed_planner.yaml").write_text(yaml.safe_dump(tiny))
    (folder / "pairwise_heatmap.yaml").unlink()
    out = tmp_path / "out"
    assert main(["run", "--all", "--params", str(folder), "--output", str(out)]) == 2
    err = capsys.readouterr().err
    assert "error: seed_planner: parameter 'spread_from' is 'store'" in err
    page = (out / "summary.html").read_text()
    assert '<section id="family_table">' in page


def test_all_notebooks_are_checked_before_the_first_begins(folder, mini, tmp_path, capsys):
    (folder / "pairwise_heatmap.yaml").write_text("seds: [0]")
    out = tmp_path / "out"
    assert main(["run", "--all", "--params", str(folder), "--output", str(out)]) == 2
    assert "pairwise_heatmap has no parameter 'seds'" in capsys.readouterr().err
    assert not out.exists() and not Store(mini["store"]).describe()


@pytest.mark.parametrize(
    "words", [[], ["--all", "family_table"], ["--all", "--params", "/nowhere/at/all"]]
)
def test_all_or_one_notebook(words, capsys):
    assert main(["run", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_all_plans_are_printed(folder, capsys):
    assert main(["run", "--all", "--params", str(folder), "--plan"]) == 0
    assert "pairwise_heatmap\n" in capsys.readouterr().out


@pytest.mark.slow
def test_missing_results_are_status_1(params, plan, mini, tmp_path, capsys):
    store = Store(mini["store"])
    settings = FamilyTable.from_parameters({**mini, "seeds": [0]})
    execute(plan, store, settings)
    lost = next(run for run in plan.runs if run.kind == "fuse")
    (store.model(lost) / "model.safetensors").write_bytes(b"damaged")
    (store.path(lost) / "hashes.json").unlink()  # so that it is not seen before it is read
    target = next(run for run in plan.runs if lost in run.parents)
    (store.path(target) / "result.json").unlink()
    store.path(target).rename(tmp_path / "away")
    assert main(command(params, tmp_path / "out")[3:]) == 1
    err = capsys.readouterr().err
    assert "error: 1 results are missing" in err and err.count("failed: ") == 1
    assert str(store.model(lost)) in err and f"{target.key}.txt)" in err
    assert target.key in [path.stem for path in (store.root / "failed").iterdir()][0]


@pytest.mark.slow
def test_plain_papermill(params, mini, tmp_path):
    """As `papermill notebook.ipynb out.ipynb -f params.yaml` does."""
    out = tmp_path / "out.ipynb"
    papermill.execute_notebook(
        PROJECT / "notebooks/family_table.ipynb", out, yaml.safe_load(params.read_text()),
        progress_bar=False, kernel_name="python3",
    )  # fmt: skip
    assert notebooks.missing(out) == 0
    assert "intertrained" in notebooks.report(out)
    assert len(Store(mini["store"]).describe()) == 16


def read(terminal, until, seconds=90):
    """What comes from a terminal, until a pattern is seen or the other end is closed."""
    text, end = b"", time.monotonic() + seconds
    while not re.search(until, text):
        ready, _, _ = select.select([terminal], [], [], end - time.monotonic())
        assert ready, f"waited too long: {text}"
        try:
            text += os.read(terminal, 1000)
        except OSError:  # Linux's end of a terminal
            break
    return text


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_terminal_shows_one_line_and_ctrl_c_ends_soon(executor, params, mini, tmp_path):
    long = command(params, tmp_path / "out", "--set", "source_max_steps=100000")
    long += ["--set", "source_patience=100000", "--set", "eval_every=20"]
    long += ["--set", f"executor={executor}"]
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        long, stdin=end, stdout=end, stderr=end, start_new_session=True,
        env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    os.close(end)
    text = read(terminal, until=rb"step \d+ of 100000")
    assert text.count(b"\r\x1b[2K") > 1 and b"\n" not in text
    children = psutil.Process(process.pid).children(recursive=True)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    text = read(terminal, until=rb"\nstopped; finished runs are kept: start .*\r?\n")
    os.close(terminal)
    assert process.wait(timeout=20) == 130
    assert time.monotonic() - started < 10
    last = "stopped; finished runs are kept: start the same command again to go on"
    assert text.decode().strip().splitlines()[-1] == last and b"Traceback" not in text, text
    assert b"Traceback" not in text
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert [run["kind"] for run in Store(mini["store"]).describe()] == ["pretrain"]
    assert not list((Store(mini["store"]).root / ".pending").iterdir())


def test_a_log_gets_a_line_every_30_seconds(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    line = Line()
    for second in range(70):
        clock[0] = second
        line.show(f"{second} done")
    line.show("all done", last=True)
    assert capsys.readouterr().err == "0 done\n30 done\n60 done\nall done\n"


def test_durations_read_well():
    assert [duration(s) for s in (1.2, 89, 100, 5000, 9000)] == [
        "1 s", "89 s", "2 min", "83 min", "2.5 h",
    ]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_hygiene(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for line, node in zip(
        tagged[0].source.splitlines(), ast.parse(tagged[0].source).body, strict=True
    ):
        assert isinstance(node, ast.AnnAssign), line
        ast.literal_eval(node.value)
    if path.stem != "index":
        assert set(parameters.defaults(path.stem)) <= parameters.names(path.stem)
    for cell in code:
        if cell is not tagged[0]:
            assert len(cell.source.splitlines()) <= 15, cell.id
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)]


def test_notebooks_are_clean_for_ruff():
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, PROJECT / "notebooks"], capture_output=True
        )
        assert done.returncode == 0, done.stdout.decode()


def test_the_index_leads_to_every_notebook_with_a_picture(mini, tmp_path, monkeypatch):
    notebook = nbformat.read(PROJECT / "notebooks/index.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells)
    links = set(re.findall(r"\]\((\w+)\.ipynb\)", text))
    assert links == {path.stem for path in NOTEBOOKS} - {"index"} == set(parameters.EXPERIMENTS)
    pictures = re.findall(r"!\[.+\]\(\.\./(.+\.png)\)", text)
    assert len(pictures) == len(links) and all((PROJECT / one).is_file() for one in pictures)
    monkeypatch.setenv("FUSINGLIB_STORE", mini["store"])
    found = of_notebooks("params/mini")
    assert list(found.index) == [name for name in parameters.EXPERIMENTS if name not in WORLDS]
    assert (found["finished"] == 0).all() and found.loc["family_table", "runs"] == 653


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many_worlds", "when_fusing_helps"])
def test_ten_worlds_open_on_recorded_results(name, tmp_path, monkeypatch):
    """Without a run in the store, the notebook as it is shows what was recorded, and says so."""
    monkeypatch.setenv("FUSINGLIB_STORE", str(tmp_path / "runs"))
    assert main(["run", name, "--output", str(tmp_path / "out")]) == 0
    notebook = nbformat.read(tmp_path / f"out/{name}.ipynb", as_version=4)
    (said,) = [cell.outputs[0]["text"] for cell in notebook.cells if cell.id == "execute"]
    assert said.startswith("Shown: the results recorded in results/mini-worlds, since 3,120 of")
    assert not Store(tmp_path / "runs").describe()
    report = (PROJECT / "results/mini-worlds/report.txt").read_text()
    assert notebooks.report(tmp_path / f"out/{name}.ipynb") in report


def test_recorded_results_are_those_of_the_same_runs(mini):
    tiny = {**mini, "world_seeds": [0, 1, 2], "first_worlds": 2}
    for folder in ("results/mini-worlds", "", "results/nowhere"):
        assert Study.open("many_worlds", {**tiny, "recorded": folder}).recorded() is None
