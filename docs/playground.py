"""Take the documentation's picture of the playground: `python docs/playground.py`, some minutes.

Runs `fuse_playground.ipynb` on the miniature world in JupyterLab, in a new project, and saves what
the widget shows after **Finetune and compare**; a store that FUSINGLIB_STORE names is used. Needs
`chromium` on the path.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from fusinglib.__main__ import main

PICTURE = Path(__file__).parent / "images/playground.png"
PORT = 8765
LAB = f"http://127.0.0.1:{PORT}"
PATIENCE = 900_000  # milliseconds


def picture(folder: Path) -> None:
    """Start JupyterLab on the project in `folder`, and take the picture."""
    quiet = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
    quiet |= {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
    (folder / "overrides.json").write_text(json.dumps(quiet))
    words = ["--no-browser", "--allow-root", f"--port={PORT}", "--IdentityProvider.token=t"]
    words += [f"--LabApp.app_settings_dir={folder}", f"--LabApp.workspaces_dir={folder}/spaces"]
    words += [f"--LabApp.user_settings_dir={folder}/settings", "--LabApp.news_url="]
    environment = {"FUSINGLIB_STORE": str(folder / "runs"), **os.environ}
    lab = [sys.executable, "-m", "jupyterlab", *words, f"--ServerApp.root_dir={folder}/notebooks"]
    with subprocess.Popen(lab, cwd=folder, env=environment) as server:
        try:
            _wait()
            _take(folder / "widget.png")
        finally:
            server.terminate()
    image = Image.open(folder / "widget.png").convert("RGB")
    image.quantize(64).save(PICTURE, optimize=True)
    print(PICTURE)


def _wait() -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(f"{LAB}/api?token=t").close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("JupyterLab does not start")


def _take(file: Path) -> None:
    with sync_playwright() as playwright:
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1900})
        page.set_default_timeout(PATIENCE)
        page.goto(f"{LAB}/lab/tree/fuse_playground.ipynb?token=t&reset")
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
        page.keyboard.press("Control+b")  # hides the side bar
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.get_by_role("button", name="Fuse", exact=True).wait_for()
        page.wait_for_timeout(3000)
        page.get_by_label("Method").select_option("weighted")
        page.get_by_label("weight of topic", exact=True).fill("2")
        page.get_by_label("weight of topic", exact=True).press("Tab")
        page.get_by_role("button", name="Finetune and compare").click()
        page.locator(".fusinglib-status", has_text="done").wait_for()
        page.wait_for_timeout(6000)
        widget = page.locator(".fusinglib-playground")
        widget.evaluate("widget => widget.scrollIntoView()")
        page.wait_for_timeout(1000)
        top = widget.bounding_box()
        last = page.locator(".fusinglib-outcome svg").bounding_box()
        assert top and last
        height = last["y"] + last["height"] + 10 - top["y"]
        page.screenshot(
            path=file, clip={"x": top["x"], "y": top["y"], "width": 1250, "height": height}
        )
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch) / "project"
        main(["new", str(project)])
        picture(project)
