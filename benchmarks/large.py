"""The private memory of fusing three models of 13 GB, whose files are made sparse.

    python benchmarks/large.py --work DIR

The models are shaped like Llama 2 7B in bfloat16 and take no room on the disk; the result takes
13 GB, and is removed.
"""

import argparse
import csv
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

LLAMA = {  # hidden, intermediate, layers, query heads, key heads, vocabulary
    "70B": (8192, 28672, 80, 64, 8, 128256),
    "7B": (4096, 11008, 32, 32, 32, 32000),
    "240M": (1024, 2816, 16, 16, 4, 32000),
}


def config(size: str) -> dict:
    hidden, intermediate, layers, heads, keys, words = LLAMA[size]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "vocab_size": words,
        "num_attention_heads": heads, "num_key_value_heads": keys, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }  # fmt: skip


def shapes(size: str) -> dict[str, list[int]]:
    hidden, intermediate, layers, heads, keys, words = LLAMA[size]
    narrow = hidden * keys // heads
    layer = {
        "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [narrow, hidden],
        "self_attn.v_proj": [narrow, hidden], "self_attn.o_proj": [hidden, hidden],
        "mlp.gate_proj": [intermediate, hidden], "mlp.up_proj": [intermediate, hidden],
        "mlp.down_proj": [hidden, intermediate], "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
    }  # fmt: skip
    found = {"model.embed_tokens": [words, hidden], "model.norm": [hidden],
             "lm_head": [words, hidden]}  # fmt: skip
    found |= {f"model.layers.{i}.{name}": layer[name] for i in range(layers) for name in layer}
    return {f"{name}.weight": shape for name, shape in found.items()}


def sparse(folder: Path, size: str, shard: float = 5e9) -> Path:
    """A model of zeros that take no room on the disk, in several files."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config(size)))
    files, weight_map, room = [], {}, 0.0
    for name, shape in shapes(size).items():
        count = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        if count > room:
            files.append({})
            room = shard
        end = max((entry["data_offsets"][1] for entry in files[-1].values()), default=0)
        files[-1][name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + count]}
        room -= count
    for number, header in enumerate(files, 1):
        file = folder / f"model-{number:05d}-of-{len(files):05d}.safetensors"
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text)
        with file.open("r+b") as opened:
            opened.truncate(8 + len(text) + max(e["data_offsets"][1] for e in header.values()))
        weight_map |= dict.fromkeys(header, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


MEASURED = """
import re, sys, threading, time
from pathlib import Path
from fusinglib import fuse

most, done = 0, False

def watch():
    global most
    while not done:
        text = Path("/proc/self/smaps_rollup").read_text()
        found = re.findall(r"Private_(?:Clean|Dirty): +([0-9]+) kB", text)
        most = max(most, 1024 * sum(map(int, found)))
        time.sleep(0.01)

thread = threading.Thread(target=watch)
thread.start()
report = fuse(sys.argv[2:], sys.argv[1], progress=False)
done = True
thread.join()
print(most, report.memory)
"""


def measure(folders: list[Path], output: Path) -> tuple[int, int]:
    """The most private memory of a process that fuses models, in bytes, and what was foretold."""
    words = [sys.executable, "-c", MEASURED, output, *folders]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    most, foretold = map(int, done.stdout.split())
    return most, foretold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", metavar="DIR", help="for 13 GB")
    parser.add_argument("--output", type=Path, metavar="DIR", default="results/benchmarks")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        for size in ("240M", "7B"):
            folders = [sparse(Path(work) / f"{size}-{number}", size) for number in range(3)]
            stored = sum(file.stat().st_size for file in folders[0].glob("*.safetensors"))
            most, foretold = measure(folders, Path(work) / size)
            row = {"models": 3, "gb_each": round(stored / 1e9, 2)}
            rows.append(row | {"private_mb": most // 10**6, "foretold_mb": foretold // 10**6})
            print(rows[-1], flush=True)
    with (options.output / "large.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
