"""Take the documentation's pictures of the playground: `python docs/playground.py`, some minutes.

Runs `fuse_playground.ipynb` on the miniature world in JupyterLab, in a new project, and saves what
the board shows after **Finetune and compare**, in both themes and three widths, and a slider on the
move; a store that FUSINGLIB_STORE names is used. Needs `chromium` on the path.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from fusinglib.__main__ import main

IMAGES = Path(__file__).parent / "images"
PORT = 8765
LAB = f"http://127.0.0.1:{PORT}"
PATIENCE = 900_000  # milliseconds
WIDTHS = (800, 1200, 1600)
MAXCOVERAGE = Image.Quantize.MAXCOVERAGE  # keeps colours that are rare


@contextlib.contextmanager
def jupyterlab(folder: Path, theme: str) -> Iterator[None]:
    """JupyterLab on the project in `folder`, in one of its themes."""
    quiet = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
    quiet |= {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
    quiet |= {"@jupyterlab/apputils-extension:themes": {"theme": f"JupyterLab {theme}"}}
    (folder / "overrides.json").write_text(json.dumps(quiet))
    words = ["--no-browser", "--allow-root", f"--port={PORT}", "--IdentityProvider.token=t"]
    words += [f"--LabApp.app_settings_dir={folder}", f"--LabApp.workspaces_dir={folder}/spaces"]
    words += [f"--LabApp.user_settings_dir={folder}/settings", "--LabApp.news_url="]
    environment = {"FUSINGLIB_STORE": str(folder / "runs"), **os.environ}
    lab = [sys.executable, "-m", "jupyterlab", *words, f"--ServerApp.root_dir={folder}/notebooks"]
    with subprocess.Popen(lab, cwd=folder, env=environment) as server:
        try:
            _wait()
            yield
        finally:
            server.terminate()


def _wait() -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(f"{LAB}/api?token=t").close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("JupyterLab does not start")


@contextlib.contextmanager
def board() -> Iterator[Page]:
    """A page whose board shows a finished comparison."""
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 2600})
        page.set_default_timeout(PATIENCE)
        page.goto(f"{LAB}/lab/tree/fuse_playground.ipynb?token=t&reset")
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
        page.keyboard.press("Control+b")  # hides the side bar
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.get_by_text("runs of the comparison are in the store").wait_for()
        page.get_by_label("Method").select_option("weighted")
        _weigh(page, "2")
        page.get_by_role("button", name="Finetune and compare").click()
        page.locator(".fusinglib-status", has_text="done").wait_for()
        page.wait_for_timeout(6000)
        yield page
        browser.close()


def _weigh(page: Page, weight: str) -> None:
    page.get_by_label("weight of topic", exact=True).fill(weight)
    page.get_by_label("weight of topic", exact=True).press("Tab")


def shot(page: Page, last: str) -> Image.Image:
    """The board from its top down to the element `last`."""
    page.locator(".fusinglib-playground").evaluate("board => board.scrollIntoView()")
    page.wait_for_timeout(1000)
    top = page.locator(".fusinglib-playground").bounding_box()
    end = page.locator(last).first.bounding_box()
    assert top and end
    height = end["y"] + end["height"] + 10 - top["y"]
    clip = {"x": top["x"], "y": top["y"], "width": top["width"], "height": height}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def save(image: Image.Image, name: str) -> None:
    image.quantize(64).save(IMAGES / name, optimize=True)
    print(IMAGES / name, flush=True)


def moving(page: Page) -> None:
    """The board while a weight grows, as an animation."""
    frames = []
    for step in (*range(0, 31, 3), *range(27, 0, -3)):
        _weigh(page, f"{step / 10}")
        frame = shot(page, ".fusinglib-board")
        frames.append(
            frame.resize((800, 800 * frame.height // frame.width)).quantize(96, MAXCOVERAGE)
        )
    first, *others = frames
    file = IMAGES / "playground.gif"
    first.save(file, save_all=True, append_images=others, duration=250, loop=0, optimize=True)
    print(file, flush=True)


def pictures(folder: Path) -> None:
    for theme in ("Light", "Dark"):
        with jupyterlab(folder, theme), board() as page:
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 2600})
                page.wait_for_timeout(1000)
                image = shot(page, ".fusinglib-outcome svg")
                save(image, f"playground-{theme.lower()}-{width}.png")
                if (theme, width) == ("Light", 1200):
                    save(image, "playground.png")
            if theme == "Light":
                page.set_viewport_size({"width": 1200, "height": 2600})
                moving(page)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch) / "project"
        main(["new", str(project)])
        pictures(project)
