"""More than two thousand malformed models: each a clear error that names the file or the tensor, no
crash, no hang, no memory blow-up, and nothing left behind."""

import json
import random
import shutil
import struct
import time
import tracemalloc

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fusinglib import fuse
from fusinglib.errors import InputError

CASES = 270
CONFIG = {"architectures": ["BertModel"], "model_type": "bert", "vocab_size": 30}
NAMES = ["embeddings.words", "encoder.layer.0.weight", "encoder.layer.1.bias", "pooler", "scale"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"


def tensors(seed, dtype=np.float32):
    numbers = np.random.default_rng(seed)
    shapes = [(30, 4), (4, 4), (4,), (3, 0), ()]
    made = {
        n: np.asarray(numbers.normal(size=s), dtype) for n, s in zip(NAMES, shapes, strict=True)
    }
    return made | {"position_ids": np.arange(8)[None]}


def write(folder, content, shards=False):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    if not shards:
        save_file(content, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {name: SHARDS[i % 2] for i, name in enumerate(content)}
    for shard in SHARDS:
        save_file({n: t for n, t in content.items() if weight_map[n] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def parts(file):
    """The header of a safetensors file and what follows it."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(file, header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(header, draw):
    """A tensor's entry, drawn at random."""
    return header[draw.choice([name for name in header if name != "__metadata__"])]


# The kinds: each spoils a model and returns the words of which the error must hold one.


def truncated(folder, draw):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    cut = draw.choice([draw.randrange(len(content)), draw.randrange(12), len(content) - 1])
    file.write_bytes(content[:cut])
    return [str(file)]


def lying_header(folder, draw):
    file = folder / "model.safetensors"
    header, data = parts(file)
    text = json.dumps(header)
    one = entry(header, draw)
    match draw.randrange(12):
        case 0:
            put(file, header, data, length=draw.choice([0, 1, 2**63, 2**64 - 1, 10**8 + 1]))
        case 1:
            put(file, header, data, length=len(text) + draw.choice([-1, -7, 1, 2, 9]))
        case 2:
            put(
                file,
                draw.choice([b"[]", b"1", b"null", b'"a"', b"[" * 10**4, b"{", b"\xff\xfe"]),
                data,
            )
        case 3:
            name = draw.choice(NAMES)
            put(file, f'{text[:-1]}, "{name}": {json.dumps(header[name])}}}'.encode(), data)
        case 4:
            del one[draw.choice(["dtype", "shape", "data_offsets"])]
            put(file, header, data)
        case 5:
            one["shape"] = draw.choice([[-1], [1.5], [True], ["4"], 4, None, [None], {}, [[4]]])
            put(file, header, data)
        case 6:
            one["data_offsets"] = draw.choice([[0], [], [0, 1, 2], None, "ab", [0.0, 4.0], [-4, 0]])
            put(file, header, data)
        case 7:
            one["dtype"] = draw.choice([32, None, [], {"F32": 1}, True])
            put(file, header, data)
        case 8:
            put(file, header, data + b"\0" * draw.randrange(1, 99))
        case 9:
            one["shape"] = [*one["shape"], draw.randrange(2, 9)] if 0 not in one["shape"] else [7]
            put(file, header, data)
        case 10:
            header[draw.choice(NAMES)] = draw.choice([None, 1, [], "tensor", {}])
            put(file, header, data)
        case 11:
            header["more"] = {
                "dtype": "F32",
                "shape": [2],
                "data_offsets": [len(data), len(data) + 8],
            }
            put(file, header, data)
    return [str(file)]


def overlapping(folder, draw):
    file = folder / "model.safetensors"
    header, data = parts(file)
    full = [
        value
        for name, value in header.items()
        if name != "__metadata__" and 0 not in value["shape"]
    ]
    one, other = draw.sample(full, 2)
    start, end = one["data_offsets"]
    match draw.randrange(4):
        case 0:  # onto another one
            first = other["data_offsets"][0]
            one["data_offsets"] = [first, first + end - start]
        case 1:
            shift = draw.choice([-8, -4, -1, 1, 4, 8, 400])
            one["data_offsets"] = [max(start + shift, 0) + (start + shift < 0), end + shift]
        case 2:
            one["data_offsets"] = [end, start]
        case 3:  # a hole
            for value in full:
                if value["data_offsets"][0] >= end:
                    value["data_offsets"] = [offset + 8 for offset in value["data_offsets"]]
            one["data_offsets"] = [start, end + (end == len(data)) * 8]
            data += b"\0" * (16 if end == len(data) else 8)
    put(file, header, data)
    return [str(file)]


def wrong_dtype(folder, draw):
    """Valid files, of integers where their siblings have numbers; or what is not averaged."""
    name = draw.choice(NAMES)
    content = tensors(1)
    if draw.random() < 0.5:
        kind = draw.choice([np.int64, np.int32, np.uint8, np.bool_])
        content[name] = content[name].astype(kind)
        save_file(content, folder / "model.safetensors")
        return [name, name.split(".")[-1]]
    header, data = parts(folder / "model.safetensors")
    name = draw.choice([n for n in NAMES if 0 not in header[n]["shape"]])
    header[name]["dtype"] = draw.choice(
        ["F8_E4M3", "F8_E5M2", "F4", "C64", "Q4", "f32", "", "F32 "]
    )
    put(folder / "model.safetensors", header, data)
    return [name]


def not_finite(folder, draw):
    shutil.rmtree(folder)
    content = tensors(1)
    name = draw.choice([n for n in NAMES if content[n].size])
    flat = content[name].reshape(-1).copy()
    flat[draw.randrange(flat.size)] = draw.choice([np.nan, np.inf, -np.inf, -np.nan])
    content[name] = flat.reshape(content[name].shape)
    write(folder, content, shards=draw.random() < 0.5)
    return [name]


def missing_shards(folder, draw):
    shutil.rmtree(folder)
    write(folder, tensors(1), shards=True)
    index = json.loads((folder / INDEX).read_text())
    weight_map, shard = index["weight_map"], draw.choice(SHARDS)
    match draw.randrange(6):
        case 0:
            (folder / shard).unlink()
        case 1:
            del weight_map[draw.choice(NAMES)]
        case 2:
            weight_map[f"more{draw.randrange(9)}"] = shard
        case 3:
            name = draw.choice(NAMES)
            weight_map[name] = SHARDS[1 - SHARDS.index(weight_map[name])]
        case 4:
            weight_map[draw.choice(NAMES)] = shard.upper().replace(".SAFE", ".safe")
        case 5:
            index["weight_map"] = draw.choice([None, {}, [], "x", 3])
    (folder / INDEX).write_text(json.dumps(index))
    return [str(folder)]


PATHS = [
    "../good0/model.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "config.json",
    "~/x.safetensors", "\0.safetensors", "x\0", "folder", "\\server\\x.safetensors",
    "loop.safetensors", "./model-00001-of-00002.safetensors", "file:///x.safetensors",
    "pytorch_model.bin", 3, None, ["a"], {"a": 1}, True, "x" * 5000 + ".safetensors",
    "../" * 40 + "etc/passwd.safetensors", "folder.safetensors", "\ud800.safetensors",
]  # fmt: skip


def path_tricks(folder, draw):
    shutil.rmtree(folder)
    write(folder, tensors(1), shards=True)
    (folder / "folder").mkdir()
    (folder / "folder.safetensors").mkdir()
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    index = json.loads((folder / INDEX).read_text())
    for name in draw.sample(NAMES, draw.randrange(1, 4)):
        index["weight_map"][name] = draw.choice(PATHS)
    (folder / INDEX).write_text(json.dumps(index))
    return [str(folder)]


def giant(folder, draw):
    file = folder / "model.safetensors"
    header, data = parts(file)
    size = draw.choice([2**31, 2**40, 2**62, 2**63, 2**64, 2**70, 10**30])
    one = entry(header, draw)
    shape = draw.choice([[size], [size, 4], [2**32, 2**32], [size, 0, 4], [2**21, 2**21, 2**22]])
    one["shape"] = shape
    if draw.random() < 0.6:
        one["data_offsets"] = [one["data_offsets"][0], draw.choice([4 * size, size, 2**64 - 4])]
    if one["data_offsets"][0] == one["data_offsets"][1]:  # nothing is a valid size of [.., 0, ..]
        one["data_offsets"] = [0, 4 * size]
    put(file, header, data)
    return [str(file)]


KINDS = [truncated, lying_header, overlapping, wrong_dtype, not_finite, missing_shards, path_tricks,
         giant]  # fmt: skip


def opened_by_the_library(file):
    try:
        with safe_open(file, "np") as weights:
            return [weights.get_tensor(name) for name in weights.keys()]
    except (SafetensorError, OSError):
        return None


@pytest.mark.slow
@pytest.mark.parametrize("spoil", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_malformed_models(tmp_path, spoil):
    for seed in (0, 2):
        write(tmp_path / f"good{seed}", tensors(seed))
    bad, draw, wrong = tmp_path / "bad", random.Random(spoil.__name__), []
    started = time.monotonic()
    tracemalloc.start()
    for case in range(CASES):
        shutil.rmtree(bad, ignore_errors=True)
        write(bad, tensors(1))
        words = spoil(bad, draw)
        before = sorted(path for path in tmp_path.rglob("*"))
        models = [tmp_path / "good0", bad, tmp_path / "good2"]
        draw.shuffle(models)
        with pytest.raises(InputError) as error:
            fuse(models, tmp_path / "out", progress=False)
            print(f"{spoil.__name__} {case} was not refused")
        message = str(error.value)
        assert "\n" not in message and any(word in message for word in words), message
        assert sorted(path for path in tmp_path.rglob("*")) == before
        if spoil in (truncated, lying_header, overlapping, giant):
            taken = opened_by_the_library(bad / "model.safetensors") is not None
            if taken and "a name twice" not in message:  # the library takes the last of them
                wrong.append((case, message))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not wrong, wrong[:5]
    assert peak < 100e6 and time.monotonic() - started < 60
