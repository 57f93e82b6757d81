"""The Hub, as a server on this machine: what is downloaded, and what is not."""

import base64
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading

import pytest
import yaml
from test_engine import make_bert, make_t5, save_all
from transformers import BertForMaskedLM

from fusinglib import fuse
from fusinglib.places import PROJECT

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Models in the folders below `root`, as `huggingface_hub` asks for them."""

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), Answers)
        self.root, self.served = root, {}
        self.created, self.uploaded = [], {}
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


def entry(file) -> dict:
    """A file as the tree of a repository lists it."""
    oid = hashlib.sha1(file.read_bytes()).hexdigest()
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": oid}


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        known = r"/api/models/(\w+/\w+)(/revision|/tree)?(/\w+)?(\?.*)?"
        found = re.fullmatch(known, self.path)
        if found and (folder := self.server.root / found[1]).is_dir():
            files = sorted(folder.iterdir())
            said = {"id": found[1], "sha": REVISION,
                    "siblings": [{"rfilename": file.name} for file in files]}  # fmt: skip
            if found[2] == "/tree":
                said = [entry(file) for file in files]
            return self.json(said)
        if self.path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == "Bearer hf_me"
            return self.json({"name": "you", "type": "user"}) if known else self.answer(b"{}", 401)
        found = re.fullmatch(r"/(\w+/\w+)/resolve/\w+/([\w.-]+)", self.path)
        file = self.server.root / found[1] / found[2] if found else None
        if not file or not file.is_file():
            return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
        content, status = file.read_bytes(), 200
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "X-Repo-Commit": REVISION}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, size = int(wanted[1]), len(content)
            stop = min(int(wanted[2] or size), size - 1) + 1
            content, status = content[start:stop], 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if self.command == "GET":
            served = self.server.served
            served[found[2]] = served.get(found[2], 0) + len(content)
        return self.answer(content, status, headers)

    do_HEAD = do_GET

    def do_POST(self):
        content = self.body()
        if self.headers.get("Authorization") != "Bearer hf_me":
            return self.answer(b'{"error": "who are you?"}', 401)
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(content))
            return self.json({"url": f"{self.server.address}/you/mine"})
        if self.path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = [{**one, "uploadMode": "regular", "shouldIgnore": False}
                     for one in json.loads(content)["files"]]  # fmt: skip
            return self.json({"files": files})
        for line in content.decode().splitlines():
            said = json.loads(line)
            if said["key"] == "file":
                value = said["value"]
                self.server.uploaded[value["path"]] = base64.b64decode(value["content"])
        return self.json(
            {"commitUrl": f"{self.server.address}/you/mine/commit/1", "commitOid": REVISION}
        )

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def json(self, said):
        return self.answer(json.dumps(said).encode(), headers={"Content-Type": "application/json"})


@pytest.fixture
def hub(tmp_path):
    """A Hub with two models of several hundred kB, of which one is sharded."""
    models = [make_bert(seed, hidden_size=96, vocab_size=2000) for seed in range(2)]
    one, two = save_all(tmp_path, models)
    models[1].save_pretrained(tmp_path / "sharded", max_shard_size="300kB")
    for folder in (one, tmp_path / "sharded"):
        (folder / "vocab.txt").write_text("a\nb\n")
    (tmp_path / "hub/you").mkdir(parents=True)
    one.rename(tmp_path / "hub/you/one")
    (tmp_path / "sharded").rename(tmp_path / "hub/you/two")
    server = Hub(tmp_path / "hub")
    yield server
    server.shutdown()
    server.server_close()


def fusinglib(hub, tmp_path, *words, offline="0", token=""):
    """A command that finds this Hub and a cache of its own."""
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": offline, "NO_PROXY": "127.0.0.1"}
    address = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1",
               "HF_TOKEN": token}  # fmt: skip
    command = [sys.executable, "-m", "fusinglib", "fuse", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **home, **address}, timeout=60
    )


def weights_served(hub):
    return sum(size for name, size in hub.served.items() if name.endswith(".safetensors"))


def test_a_dry_run_reads_headers_alone(hub, tmp_path):
    """mergekit#527: a mistake was found after hours of downloads."""
    words = ["you/one", "you/two", "--pretrained", "you/one"]
    done = fusinglib(hub, tmp_path, *words[:2], "--dry-run")
    assert done.returncode == 0, done.stderr
    stored = sum(file.stat().st_size for file in hub.root.rglob("*.safetensors"))
    assert 0 < weights_served(hub) < 0.5 * stored
    assert not [*(tmp_path / "home").rglob("*.safetensors")]
    assert f"you/one@{REVISION[:12]}" in done.stdout and "averaged" in done.stdout
    done = fusinglib(hub, tmp_path, *words, "--dry-run", "--method", "ties")
    assert "norms and cosines of updates need the weights" in done.stdout
    made = fusinglib(hub, tmp_path, *words[:2], "--output", str(tmp_path / "out"))
    assert made.returncode == 0, made.stderr
    planned = fusinglib(hub, tmp_path, *words, "--dry-run", offline="1")  # from the cache
    assert "% of the pretrained norm" in planned.stdout
    assert f"you/two@{REVISION}" in (tmp_path / "out/recipe.yml").read_text()


def test_a_misspelt_method_asks_the_hub_for_nothing(hub, tmp_path):
    done = fusinglib(hub, tmp_path, "you/one", "you/two", "--method", "tie", "--dry-run")
    assert done.returncode == 2 and "Unknown method 'tie'" in done.stderr and not hub.served


def test_headers_of_two_architectures_are_enough_to_refuse(hub, tmp_path):
    (folder,) = save_all(tmp_path, [make_bert(3, hidden_size=48, vocab_size=2000)])
    folder.rename(hub.root / "you/three")
    done = fusinglib(hub, tmp_path, "you/one", "you/three", "--dry-run")
    assert done.returncode == 2 and "shapes must be equal" in done.stdout
    assert weights_served(hub) < 250_000


def test_a_model_that_is_not_there_or_has_no_safetensors(hub, tmp_path):
    done = fusinglib(hub, tmp_path, "you/one", "you/nobody", "--dry-run")
    assert done.returncode == 2 and "no such model on the Hub" in done.stderr
    (hub.root / "you/one/model.safetensors").rename(hub.root / "you/one/other.safetensors")
    done = fusinglib(hub, tmp_path, "you/one", "you/two", "--dry-run")
    assert done.returncode == 2 and "no safetensors files that can be read" in done.stderr


# Uploads.


def test_a_fused_model_is_uploaded_after_a_yes(hub, tmp_path):
    out = tmp_path / "out"
    words = ["you/one", "you/two", "--output", str(out), "--push", "you/mine"]
    done = fusinglib(hub, tmp_path, *words)
    assert done.returncode == 2 and "the Hub does not know you: log in" in done.stderr
    done = fusinglib(hub, tmp_path, *words, token="hf_me")
    assert done.returncode == 2 and "pass --yes" in done.stderr and "averaged" in done.stdout
    assert not out.exists() and not hub.created and not hub.uploaded
    done = fusinglib(hub, tmp_path, *words, "--yes", token="hf_me")
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/you/mine" in done.stdout
    (created,) = hub.created
    assert created["name"] == "mine" and created["visibility"] == "private"
    assert hub.uploaded == {file.name: file.read_bytes() for file in out.iterdir()}
    card = hub.uploaded["README.md"].decode()
    assert "base_model:\n- you/one\n- you/two" in card and "fusinglib fuse recipe.yml" in card


def test_a_recipe_of_local_folders_stays_behind(hub, tmp_path):
    (folder,) = save_all(tmp_path, [make_bert(2, hidden_size=96, vocab_size=2000)])
    out = tmp_path / "out"
    words = ["you/one", str(folder), "--output", str(out), "--push", "you/mine", "--yes"]
    done = fusinglib(hub, tmp_path, *words, token="hf_me")
    assert done.returncode == 0, done.stderr
    kept = {file.name for file in out.iterdir()}
    assert hub.uploaded.keys() == kept - {"recipe.yml"} and "recipe.yml" in kept


def test_what_cannot_be_fused_is_not_uploaded(hub, tmp_path):
    (folder,) = save_all(tmp_path, [make_bert(3, hidden_size=48, vocab_size=2000)])
    words = ["you/one", str(folder), "--output", str(tmp_path / "out"), "--yes", "--push"]
    done = fusinglib(hub, tmp_path, *words, "you/mine", token="hf_me")
    assert done.returncode == 2 and "shapes must be equal" in done.stderr and not hub.created
    done = fusinglib(hub, tmp_path, *words, "mine", token="hf_me")
    assert done.returncode == 2 and "expected OWNER/NAME" in done.stderr
    assert "--push needs --output" in fusinglib(hub, tmp_path, "a", "--push", "you/b").stderr


# Cards.


def card(folder, text):
    (folder / "README.md").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("cards", "licence"),
    [
        (["---\nlicense: mit\n---\n# A", "---\r\nlicense: mit\r\ntags: [x]\r\n---\r\n"], "mit"),
        (["---\nlicense: mit\n---\n", "---\nlicense: apache-2.0\n---\n"], ""),
        (["---\nlicense: mit\n---\n", "no front matter"], ""),
        (["---\nlicense: [mit]\n---\n"] * 2, ""),
        (["---\nlicense: \"x\\n- evil\"\n---\n"] * 2, ""),
        (["---\nlicense: *a\n---\n"] * 2, ""),
    ],
)  # fmt: skip
def test_the_card_names_the_licence_that_all_parents_name(tmp_path, cards, licence):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    for folder, text in zip(folders, cards, strict=True):
        card(folder, text)
    report = fuse(folders, tmp_path / "out", progress=False)
    front = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])
    assert front.get("license", "") == licence
    differ = cards[0] != cards[1] and not licence
    assert any("licences differ" in note for note in report.notes) == differ


def test_the_card_says_how_to_make_the_model_again(tmp_path):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    fuse(folders, tmp_path / "out", max_shard_size="3KB", progress=False)
    text = (tmp_path / "out/README.md").read_text()
    (command,) = re.findall(r"^fusinglib .*$", text, re.MULTILINE)
    assert command == "fusinglib fuse recipe.yml --output again --max-shard-size 3KB"
    subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=tmp_path / "out", check=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    again = tmp_path / "out/again"
    for file in again.iterdir():
        same = (
            file.name == "recipe.yml"
            or file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()
        )
        assert same, file.name
    assert len([*again.iterdir()]) == len([*(tmp_path / "out").iterdir()]) - 1


@pytest.mark.parametrize(
    ("made", "tag"),
    [(make_bert, "feature-extraction"), (make_t5, "text2text-generation"),
     (lambda seed: make_bert(seed, kind=BertForMaskedLM), "fill-mask")],
)  # fmt: skip
def test_the_card_names_the_hubs_task(tmp_path, made, tag):
    folders = save_all(tmp_path, [made(seed) for seed in range(2)])
    fuse(folders, tmp_path / "out", progress=False)
    front = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])
    assert front["pipeline_tag"] == tag
