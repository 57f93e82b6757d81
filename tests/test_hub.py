"""The Hub, as a server on this machine: what is downloaded, and what is not."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading

import pytest
from test_engine import make_bert, save_all

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Models in the folders below `root`, as `huggingface_hub` asks for them."""

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), Answers)
        self.root, self.served = root, {}
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
        if self.command == "GET":
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
            content = json.dumps(said).encode()
            return self.answer(content, headers={"Content-Type": "application/json"})
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


def fusinglib(hub, tmp_path, *words, offline="0"):
    """A command that finds this Hub and a cache of its own."""
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": offline, "NO_PROXY": "127.0.0.1"}
    address = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_DISABLE_XET": "1"}
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
