"""The playground as a person meets it: a real JupyterLab in a real headless Chromium."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import transformers
import yaml

from fusinglib.evaluation import playground
from fusinglib.places import PROJECT
from fusinglib.study.execution import execute, results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FusePlayground
from fusinglib.study.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium on PATH"),
]

COMMON = PROJECT / "params/mini/common.yaml"

PATIENCE = 300_000
"""Milliseconds that a person waits on a busy machine."""

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Where the notebook's own comparison is kept, computed once."""
    return tmp_path_factory.mktemp("playground") / "runs"


@pytest.fixture
def mini(mini, finished) -> dict:
    """Runs that go on until somebody stops them, where they are given many batches; a store with
    the notebook's own comparison."""
    endless = {**mini, "target_patience": 10**6}
    if not finished.exists():
        own = {"models": ["topic", "entailment", "sentiment"], "target": "emotion"}
        own |= {"method": "mean", "weights": [], "method_settings": {}, "seeds": [0, 1, 2]}
        settings = FusePlayground.from_parameters({**endless, **own, "store": str(finished)})
        execute(plan_experiment(settings), Store(finished), settings)
    shutil.copytree(finished, mini["store"])
    return endless


@pytest.fixture(params=["Light"])
def theme(request) -> str:
    return request.param


@pytest.fixture
def lab(tmp_path, mini, theme):
    """The address of a JupyterLab over tiny copies of the notebooks, with settings of its own."""
    folder = shutil.copytree(PROJECT / "notebooks", tmp_path / "notebooks")
    common = {k: v for k, v in mini.items() if k not in ("families", "sources", "targets")}
    tiny = {"seeds", "source_seeds", "model", "tasks", "arms", "intertraining"}
    common = {k: v for k, v in common.items() if k not in tiny and k != "world_seeds"}
    del common["pretraining_seed"]
    common |= {"executor": "processes", "workers": 2}
    (tmp_path / "common.yaml").write_text(yaml.safe_dump(common))
    for file in folder.glob("*.ipynb"):
        text = file.read_text().replace("params/mini/common.yaml", str(tmp_path / "common.yaml"))
        file.write_text(text)
    overrides = tmp_path / "overrides"
    overrides.mkdir()
    windowing = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
    windowing |= {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
    windowing |= {"@jupyterlab/apputils-extension:themes": {"theme": f"JupyterLab {theme}"}}
    (overrides / "overrides.json").write_text(json.dumps(windowing))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    words += [f"--port={port}", "--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}"]
    words += [f"--LabApp.user_settings_dir={tmp_path / 'settings'}"]
    words += [f"--LabApp.workspaces_dir={tmp_path / 'workspaces'}"]
    words += [f"--LabApp.app_settings_dir={overrides}", "--LabApp.news_url="]
    with open(tmp_path / "lab.log", "w") as log:
        env = {**os.environ, "FUSINGLIB_STORE": mini["store"]}
        server = subprocess.Popen(words, stdout=log, stderr=log, cwd=tmp_path, env=env)
    address = f"http://127.0.0.1:{port}"
    try:
        _answer(f"{address}/api?token=t")
        yield address
    finally:
        end(server)


def end(server: subprocess.Popen) -> None:
    """Stop a server, which Jupyter now and then does not do by itself while a page is open
    (jupyter/notebook issue 5386). Its kernels end when it is gone."""
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _answer(address: str) -> None:
    end = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            assert time.monotonic() < end, "JupyterLab does not start"
            time.sleep(0.3)


@pytest.fixture
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def run_all(page, lab, name) -> None:
    """Open a notebook and run it through the menu."""
    page.goto(f"{lab}/lab/tree/{name}.ipynb?token=t&reset")
    page.wait_for_selector(".jp-NotebookPanel-toolbar")
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def no_traceback(page) -> None:
    errors = '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]'
    assert page.locator(errors).count() == 0
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0


def status(page, words: str) -> None:
    """Wait until the playground's state reads so."""
    page.locator(".fusinglib-status", has_text=re.compile(words)).wait_for()


def picture(page, name: str) -> None:
    """Keep a screenshot where FUSINGLIB_SCREENSHOTS asks for it, to be looked at."""
    folder = os.environ.get("FUSINGLIB_SCREENSHOTS")
    if folder:
        page.locator(".fusinglib-playground").scroll_into_view_if_needed()
        page.screenshot(path=f"{folder}/{name}.png")


def test_fuse_compare_stop_save(page, lab, mini, tmp_path):
    run_all(page, lab, "fuse_playground")
    page.get_by_role("button", name="Fuse", exact=True).wait_for()
    no_traceback(page)

    page.get_by_role("button", name="none", exact=True).click()
    page.get_by_text("tick at least two models").first.wait_for()
    for task in ("mood", "irony", "emoji"):
        page.get_by_label(task, exact=True).check()
    page.get_by_role("button", name="Fuse", exact=True).click()
    status(page, "done")
    page.get_by_role("img", name="The weight space").wait_for()
    page.get_by_text("mean of 3 models").first.wait_for()
    picture(page, "fused")

    page.get_by_role("button", name="Finetune and compare").click()
    page.get_by_role("button", name="Finetune and compare").click(force=True)  # a double click
    curves = page.locator("svg path[class^=accuracy-]")
    chosen = {"models": ["mood", "emoji", "irony"], "target": "emotion", "method": "mean"}
    chosen |= {"weights": [], "method_settings": {}, "seeds": [0, 1, 2]}
    settings = FusePlayground.from_parameters({**mini, **chosen})
    plan = plan_experiment(settings)
    status(page, f"done: {len(plan.runs)} of {len(plan.runs)} runs")  # fusing was done before
    assert curves.count() == 3 * 3  # base models, seeds
    assert "after" in page.locator("svg circle title", has_text="fused, seed 0").first.inner_html()
    no_traceback(page)
    picture(page, "compared")

    folder = tmp_path / "mine"
    page.get_by_label("Save model to").fill(str(folder))
    page.get_by_label("Save model to").press("Tab")
    page.get_by_role("button", name="Save model", exact=True).click()
    page.get_by_text(f"saved: {folder}").wait_for()
    assert transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).config.model_type == "t5"

    found = results(plan, Store(settings.store_folder()))
    assert found["accuracy"].notna().all()
    shown = page.locator(".fusinglib-outcome").inner_text()
    for number in playground.accuracies(found, {})["accuracy"]:
        assert f"{number:.1f}" in shown

    page.get_by_label("Max. batches").fill("90000")
    page.get_by_label("Max. batches").press("Tab")
    page.get_by_role("button", name="Finetune and compare").click()
    status(page, "working")
    page.get_by_role("button", name="Stop", exact=True).click()
    status(page, "stopped")
    no_traceback(page)


def test_the_board_follows_the_choice(page, lab):
    """Search, sliders, the map that moves with them, dimmed results, and what was tried before."""
    run_all(page, lab, "fuse_playground")
    page.get_by_role("button", name="Fuse", exact=True).wait_for()
    outcome, look = page.locator(".fusinglib-outcome"), page.locator(".fusinglib-look")
    outcome.get_by_role("img", name="Test accuracy").wait_for()  # of the notebook's own cells
    look.get_by_role("img", name="Cosines").wait_for()
    page.get_by_label("Method").select_option("weighted")
    page.get_by_text("what counts are the shares").wait_for()
    outcome.get_by_text("of the previous choice").wait_for()
    words = look.get_by_text("its update is").inner_text()
    handle = page.get_by_label("slider for the weight of topic", exact=True)
    handle.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "old => !document.querySelector('.fusinglib-look').innerText.includes(old)", arg=words
    )
    page.wait_for_timeout(1000)
    weight = page.get_by_label("weight of topic", exact=True).input_value()
    assert float(weight) > 1.5 and float(handle.input_value()) == float(weight)
    page.get_by_text(f"share {float(weight) / (float(weight) + 2):.0%}").wait_for()
    page.get_by_label("Search models").fill("moo")
    page.get_by_text("ticked, not shown: sentiment, topic, entailment").wait_for()
    assert page.locator(".fusinglib-row").count() == 1
    page.get_by_label("Search models").fill("")
    picture(page, "board")
    page.get_by_role("button", name="Bring back").and_(page.locator(":enabled")).first.click()
    page.wait_for_function(
        "!document.querySelector('.fusinglib-outcome').innerText.includes('previous choice')"
    )
    assert page.get_by_label("Method").input_value() == "mean"
    no_traceback(page)


def test_the_kernel_answers_while_runs_go_on(page, lab):
    run_all(page, lab, "fuse_playground")
    page.get_by_role("button", name="Fuse", exact=True).wait_for()
    page.get_by_label("Max. batches").fill("90000")
    page.get_by_label("Max. batches").press("Tab")
    page.get_by_role("button", name="Finetune and compare").click()
    status(page, "working")
    page.locator(".jp-Notebook-footer").click()
    page.locator(".jp-Notebook .jp-CodeCell").last.locator(".cm-content").click()
    page.keyboard.type("print(6 * 7 * 1000)")
    page.keyboard.press("Shift+Enter")
    picture(page, "while-runs-go-on")
    page.locator("pre", has_text="42000").wait_for()
    status(page, "working")
    page.get_by_role("button", name="Stop", exact=True).click()
    status(page, "stopped")
    no_traceback(page)


@pytest.mark.parametrize("theme", ["Light", "Dark"], indirect=True)
def test_every_control_has_a_label(page, lab, theme):
    from axe_playwright_python.sync_playwright import Axe

    run_all(page, lab, "fuse_playground")
    page.get_by_role("button", name="Fuse", exact=True).wait_for()
    assert page.locator("body").get_attribute("data-jp-theme-name") == f"JupyterLab {theme}"
    page.get_by_role("button", name="Finetune and compare").click()
    status(page, "done")
    picture(page, theme)
    found = Axe().run(page, context=".fusinglib-playground").response["violations"]
    rules = {one["id"] for one in found}
    assert not rules


def test_the_keyboard_alone_is_enough(page, lab):
    """Arrow keys in the list, one stop of Tab; Enter keeps the focus; what happens is read out."""
    run_all(page, lab, "fuse_playground")
    page.get_by_role("button", name="Fuse", exact=True).wait_for()
    listed = ".fusinglib-models input[type=checkbox]"
    places = page.locator(listed).evaluate_all("all => all.map((one) => one.tabIndex)")
    assert len(places) == 13 and sorted(places) == [-1] * 12 + [0]
    page.get_by_role("checkbox", name="sentiment", exact=True).focus()
    for key in ("ArrowDown", "ArrowDown", "Space"):
        page.keyboard.press(key)
    assert page.get_by_role("checkbox", name="yesno", exact=True).is_checked()
    page.keyboard.press("End")
    page.keyboard.press("x")  # cuts the cell where the notebook's own shortcuts apply
    assert page.evaluate("document.activeElement.type") == "checkbox"
    page.get_by_role("button", name="Finetune and compare").focus()
    page.keyboard.press("Enter")
    status(page, "done")
    assert page.evaluate("document.activeElement.innerText") == "Finetune and compare"
    assert page.locator(".fusinglib-status").get_attribute("role") == "status"
    no_traceback(page)


def test_what_stays_open_and_what_a_stopped_kernel_leaves(page, lab):
    run_all(page, lab, "fuse_playground")
    page.get_by_role("button", name="Fuse", exact=True).wait_for()
    page.locator("summary", has_text="norms and cosines").click()
    table = page.locator(".fusinglib-look table", has_text="cosine with")
    table.wait_for()
    page.get_by_label("slider for scale", exact=True).focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    table.get_by_text("cosine with mean").wait_for()  # still open
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Restart Kernel…")).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.locator(".jupyter-widgets-disconnected > .fusinglib-status").wait_for(state="attached")
    said = page.evaluate("""getComputedStyle(document.querySelector('.fusinglib-status'),
        '::after').content""")
    assert "run this cell again" in said
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()


def test_the_heatmap_is_walked_with_arrow_keys(page, lab):
    run_all(page, lab, "pairwise_heatmap")
    cells = page.locator(".fusinglib-cells button")
    cells.first.wait_for()
    cells.first.focus()
    place = "document.activeElement.getBoundingClientRect().toJSON()"
    first = page.evaluate(place)
    page.keyboard.press("ArrowDown")
    below = page.evaluate(place)
    assert below["y"] > first["y"] and abs(below["x"] - first["x"]) < 2
    page.keyboard.press("Enter")
    page.locator(".fusinglib-explorer", has_text="points over pretrained").wait_for()
    page.locator(".fusinglib-explorer th", has_text="mean").wait_for()
    title = page.evaluate("document.activeElement.title")
    assert re.search(r"fused [+-].*\(.* to .*\) points over pretrained, ", title)
    assert cells.evaluate_all("all => all.filter((one) => one.tabIndex === 0).length") == 1
    picture(page, "heatmap")
    no_traceback(page)


def test_two_rows_are_compared_and_copied(page, lab):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    run_all(page, lab, "fuse_playground")
    page.get_by_role("button", name="Fuse", exact=True).wait_for()
    page.get_by_role("checkbox", name=re.compile("^compare mean of")).check()
    page.get_by_role("checkbox", name="compare pretrained", exact=True).check()
    page.locator("th", has_text="seed 0").wait_for()
    page.locator("summary", has_text="repeat it").first.click()
    page.get_by_role("button", name="copy as Python").locator("visible=true").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("from fusinglib import widgets") and "models=[" in copied
    page.get_by_role("button", name="greedy").click()
    page.locator(".fusinglib-playground", has_text="No suggestion").wait_for()
    picture(page, "history")
    no_traceback(page)


def test_the_app_shows_the_board_without_code(page, mini, tmp_path):
    """`make app`: the notebook in voila."""
    shutil.copy(PROJECT / "notebooks/fuse_playground.ipynb", tmp_path)
    common = tmp_path / "common.yaml"
    known = {k: v for k, v in mini.items() if k in yaml.safe_load(COMMON.read_text())}
    common.write_text(yaml.safe_dump(yaml.safe_load(COMMON.read_text()) | known))
    file = tmp_path / "fuse_playground.ipynb"
    file.write_text(file.read_text().replace("params/mini/common.yaml", str(common)))
    recipe = (PROJECT / "Makefile").read_text().partition("\napp:")[2].splitlines()[1].split()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "voila", str(file), *recipe[2:], "--no-browser"]
    with open(tmp_path / "voila.log", "w") as log:
        env = {**os.environ, "FUSINGLIB_STORE": mini["store"]}
        words += [f"--port={port}", "--Voila.ip=127.0.0.1"]
        server = subprocess.Popen(words, stdout=log, stderr=log, cwd=tmp_path, env=env)
    try:
        _answer(f"http://127.0.0.1:{port}/voila/static/voila.js")
        page.goto(f"http://127.0.0.1:{port}/")
        page.locator(".fusinglib-outcome").get_by_role("img", name="Test accuracy").wait_for()
        assert not page.get_by_text("Study.open").count()
        page.get_by_role("checkbox", name="topic", exact=True).uncheck()
        page.locator(".fusinglib-outcome", has_text="of the previous choice").wait_for()
        picture(page, "app")
    finally:
        end(server)


def test_the_index_shows_what_is_there(page, lab):
    run_all(page, lab, "index")
    page.locator(".jp-RenderedHTMLCommon td", has_text=re.compile("^343$")).first.wait_for()
    no_traceback(page)
    page.get_by_role("link", name="fuse_playground.ipynb").wait_for()


def test_a_kernel_restarted_in_the_middle_loses_nothing_that_was_finished(page, lab, mini):
    run_all(page, lab, "fuse_playground")
    page.get_by_role("button", name="Fuse", exact=True).wait_for()
    page.get_by_text("all 14 runs of the comparison are in the store").wait_for()
    before = len(Store(mini["store"]).describe())
    page.get_by_label("Max. batches").fill("90000")
    page.get_by_label("Max. batches").press("Tab")
    page.get_by_role("button", name="Finetune and compare").click()
    status(page, "working")
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Restart Kernel and Run All Cells", exact=False).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.locator(".fusinglib-status", has_text="ready").wait_for()
    page.get_by_role("button", name="Finetune and compare").click()
    status(page, r"done: 14 of 14 runs")
    no_traceback(page)
    assert len(Store(mini["store"]).describe()) == before  # as run by the notebook's own cells


def test_hostile_names_are_shown_and_not_executed(page, lab, tmp_path):
    """A task called by markup, as a model and as the target: no dialog, no image, no script."""
    from test_hostile import EVIL, NAMES

    rows = "".join(f"the baker sold bread {i},{i % 2}\n" for i in range(60))
    own = {}
    for number, name in enumerate(NAMES):
        text = "text,label\n" + rows.replace("bread", f"bread{number}")
        (tmp_path / f"{number}.csv").write_text(text)
        own[name] = {
            "files": str(tmp_path / f"{number}.csv"), "columns": ["text"],
            "labels": ["no", "yes"], "names": [0, 1],
        }  # fmt: skip
    file = tmp_path / "common.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "own_tasks": own}))
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    run_all(page, lab, "fuse_playground")
    page.get_by_role("button", name="Fuse", exact=True).wait_for()
    page.get_by_label(NAMES[1], exact=True).check()
    page.get_by_label("Target task").select_option(EVIL)
    page.get_by_role("button", name="Finetune and compare").click()
    status(page, "done")
    page.locator(".fusinglib-outcome", has_text=EVIL).wait_for()
    picture(page, "hostile")
    assert not dialogs and page.locator("img[src='x']").count() == 0
    no_traceback(page)
