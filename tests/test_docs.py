"""README and documentation: every code block is executed, every link leads somewhere.

The blocks of a page are executed in their order, in a project whose parameter files are so small
that every study takes seconds, beside small models of the names that the pages use.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import transformers
import yaml
from conftest import TINY

from fusinglib.__main__ import main
from fusinglib.places import PROJECT
from fusinglib.study.settings import EXPERIMENTS, ManyWorlds, Settings
from fusinglib.study.store import Store
from fusinglib.training import pretraining

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

PAGES = [PROJECT / "README.md", *sorted(PROJECT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^( *)```(python|bash|yaml)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
HELPERS = """
fusinglib() {
    if [ "$1" = lab ]; then command fusinglib lab -- --version; return; fi
    command fusinglib "$@" || return
    if [ "$1" = new ]; then cp -R "$SMALL/params" "$2/"; fi
}
dask() { command dask "$@" >>"$SMALL/dask.log" 2>&1 & echo $! >>"$SMALL/dask.pids"; }
set -e
"""
"""How this differs from a reader's shell: JupyterLab is only asked for its version, projects get
the small parameter files, and Dask runs in the background."""


def name_of(page: Path) -> str:
    return str(page.relative_to(PROJECT))


def code(page: Path) -> list[tuple[str, str, str]]:
    """The blocks of a page: language, text, and the YAML file that a block is saved as."""
    text = page.read_text()
    found = []
    for block in BLOCK.finditer(text):
        saved = re.match(r"\s*Saved as `(\S+)`", text[block.end() :])
        body = re.sub(f"^{block[1]}", "", block[3], flags=re.MULTILINE)
        found.append((block[2], body, saved[1] if saved else ""))
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder `models` with a T5 as `base` and others that start from it."""
    folder = tmp_path_factory.mktemp("docs") / "models"
    for seed, name in enumerate(["base", "emotion", "irony", "hate"]):
        pretraining.pretrain(folder / name, world_seed=0, seed=0, steps=2 + seed)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / name)
        tokenizer.add_tokens(["hateful"])  # of a label of the tasks for which pages use them
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for part in (tokenizer, model):
            part.save_pretrained(folder / name)
    for name in ("emotion", "irony"):
        network = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "base")
        adapter = peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=["q", "v"]))
        adapter.save_pretrained(folder.parent / "adapters" / name)
    return folder


@pytest.fixture
def project(tmp_path, models) -> Path:
    """A project with notebooks, small parameter files, models, and a file of reviews."""
    folder = tmp_path / "project"
    main(["new", str(folder)])
    known = Settings.__dataclass_fields__.keys()
    small = {name: value for name, value in TINY.items() if name in known}
    for file in folder.glob("params/*/*.yaml"):
        kind = EXPERIMENTS.get(file.stem)
        mini = PROJECT / f"params/{'mini-worlds' if kind is ManyWorlds else 'mini'}/{file.name}"
        values = yaml.safe_load(mini.read_text())
        if kind is None:  # a common file
            values |= {name: small[name] for name in small.keys() & values.keys()}
        else:
            values |= {name: value for name, value in TINY.items() if name in values}
            values |= {"common": yaml.safe_load(file.read_text())["common"]}
        if kind is ManyWorlds:
            values |= {"world_seeds": [0, 1, 2], "first_worlds": 2, "recorded": ""}
        if file.stem == "shrinkage":
            values |= {"counts": [1], "scales": [0.5, 1.0]}
        if file.stem == "loss_path":
            values |= {"points": 3, "targets": ["unseen"]}
            values["families"] = {**TINY["families"], "unseen": ["emotion"]}
        file.write_text(yaml.safe_dump(values))
    for name in ("models", "adapters"):
        shutil.copytree(models.parent / name, folder / name)
    Store(folder / "runs")
    rows = [f"the baker sold the bread {i},{(1, 5)[i % 2]}" for i in range(60)]
    (folder / "reviews.csv").write_text("\n".join(["text,stars", *rows]) + "\n")
    return folder


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def executed(page: Path, project: Path, monkeypatch) -> None:
    """Execute the blocks of a page in their order."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("SMALL", str(project))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    known, port = {}, free_port()
    for language, text, saved in code(page):
        if language == "yaml":
            yaml.safe_load(text)
            if saved:
                Path(saved).write_text(text)
        elif language == "python":
            exec(compile(text, name_of(page), "exec"), known)
        else:
            text = text.replace("HEAD", "127.0.0.1").replace("8786", port)
            text = text.replace("/shared", str(project))
            script = f"{HELPERS}\n{text}\npwd >{project}/where; export -p >{project}/exported"
            before = project / "exported"
            start = f". {before}\n" if before.is_file() else ""
            done = subprocess.run(
                ["bash", "-c", start + script], capture_output=True, text=True, timeout=500
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            monkeypatch.chdir((project / "where").read_text().strip())


WITH_CODE = [page for page in PAGES if code(page)]
NEEDS_DATA = {"docs/how-to/fuse.md", "docs/concepts/splits.md"}


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_every_code_block_works(page, project, monkeypatch, request):
    if name_of(page) in NEEDS_DATA:
        request.getfixturevalue("hub")
    if "dask_jobqueue" in page.read_text():  # a stand-in for Slurm
        request.getfixturevalue("slurm")
    try:
        executed(page, project, monkeypatch)
    finally:
        pids = project / "dask.pids"
        for pid in pids.read_text().split() if pids.is_file() else []:
            subprocess.run(["kill", pid])


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A module `dask_jobqueue` whose Slurm cluster is a worker on this machine."""
    (tmp_path / "dask_jobqueue.py").write_text(
        "import distributed\n\nclusters = []\n\n\n"
        "class SLURMCluster(distributed.LocalCluster):\n"
        "    def __init__(self, **asked):\n"
        "        super().__init__(n_workers=1, threads_per_worker=1, dashboard_address=':0')\n"
        "        clusters.append(self)\n\n"
        "    def scale(self, jobs):\n"
        "        return super().scale(min(jobs, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for cluster in sys.modules.pop("dask_jobqueue").clusters:
        cluster.close()


def test_the_readme_is_short():
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_repository_lead_somewhere(name):
    """Those of the documentation are checked by MkDocs."""
    for target in re.findall(r"\]\(([^)#\s]+)\)", (PROJECT / name).read_text()):
        assert target.startswith("https://") or (PROJECT / target).exists(), target


@pytest.mark.parametrize("name", ["changelog", "contributing"])
def test_pages_that_are_files_of_the_repository(name):
    assert (PROJECT / f"docs/{name}.md").resolve() == PROJECT / f"{name.upper()}.md"


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"(\S+\.md)$", (PROJECT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {name_of(page) for page in PAGES[1:]} == {f"docs/{name}" for name in listed}


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(project, monkeypatch):
    """With notebooks that are executed small, by the configuration and the pages as they are."""
    monkeypatch.chdir(project)
    assert main(["run", "--all", "--params", "params/mini", "--output", "executed/mini"]) == 0
    for name in ("fusinglib", "results", "CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml"):
        if (project / name).is_dir():
            shutil.rmtree(project / name)
        (project / name).symlink_to(PROJECT / name)
    (project / "mkdocs.yml").unlink()
    shutil.copy(PROJECT / "mkdocs.yml", project)
    shutil.rmtree(project / "docs")  # pictures alone
    shutil.copytree(PROJECT / "docs", project / "docs", symlinks=True)
    built = [sys.executable, "-m", "mkdocs", "build", "--quiet"]
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    done = subprocess.run(built, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (project / "site/tutorials/family_table/index.html").read_text()
    assert (
        "widgets.playground" in (project / "site/tutorials/fuse_playground/index.html").read_text()
    )
    assert not [p for p in project.glob("site/**/*.html") if "unpkg.com/@jupyter" in p.read_text()]
    assert "Table 1" in page and "data:image/png" in page
    parameters = (project / "site/reference/parameters/index.html").read_text()
    assert all(f"<code>{name}</code>" in parameters for name in Settings.__dataclass_fields__)
    assert "fusinglib fuse" in (project / "site/reference/commands/index.html").read_text()
