"""A LoRA adapter out of LoRA adapters of one base model: `sum_i w_i s_i B_i A_i`, exactly by
putting the factors side by side, or cut to a rank."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusinglib.errors import InputError
from fusinglib.fusion.adapters import configuration, scale_of, tensors_of
from fusinglib.fusion.checkpoints import locate
from fusinglib.fusion.output import check_free, one_line
from fusinglib.fusion.tensors import Reader, TensorInfo, write_file
from fusinglib.integrity import staged, write_json
from fusinglib.progress import Progress

ALIKE = ("base_model_name_or_path", "revision", "task_type", "fan_in_fan_out")
"""Settings that must be the same in all adapters."""

HEADS = re.compile(r"(^|\.)(classifier|pre_classifier|score|qa_outputs|classification_head)\.")
"""Modules that are heads: an adapter may have one of its own, which is left out."""


class Adapter(NamedTuple):
    """An adapter: its folder, its name, its configuration and its tensors."""

    folder: Path
    name: str
    config: dict
    tensors: dict[str, TensorInfo]


class AdapterReport(NamedTuple):
    """What was fused into an adapter.

    `rank` is the largest rank of the result, `error` the norm of what a chosen rank cuts off,
    relative to that of the whole update (0 if nothing is), `left_out` the names of heads.
    """

    parents: list[str]
    weights: list[float]
    base: str
    modules: list[str]
    rank: int
    error: float
    left_out: list[str]

    def __str__(self) -> str:
        how = f"cut to rank {self.rank}: {100 * self.error:.2g} % of the update's norm is lost"
        rows = [("base", self.base)]
        rows += [(f"adapter {i + 1}", f"{parent}: weight {weight:.4g}") for i, (parent, weight) in
                 enumerate(zip(self.parents, self.weights, strict=True))]  # fmt: skip
        rows += [("result", f"an adapter of {len(self.modules)} matrices")]
        rows += [("rank", how if self.error else f"{self.rank}: exact, factors side by side")]
        rows += [("left out", f"{name}: a head") for name in self.left_out]
        width = max(len(what) for what, _ in rows)
        return "\n".join(f"{what:{width}}  {value}" for what, value in rows)

    __repr__ = __str__


def fuse_adapters(
    adapters: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    rank: int = 0,
    progress: bool = True,
) -> AdapterReport:
    """Fuse LoRA adapters of one base model into the new folder `output`, an adapter of that base.

    The update of every matrix is `sum_i w_i s_i B_i A_i`, s_i being `alpha / r` (or rsLoRA's) of
    adapter i; a matrix that an adapter leaves alone counts as zero. With `rank` 0 it is exact: the
    new factors are the given ones side by side, of the sum of their ranks. Otherwise they are the
    nearest ones of that rank (singular value decomposition), and the report says what is lost. The
    base itself is not read. Computed in float64, stored in float32.

    Arguments:
        adapters: folders or Hub ids.
        output: a folder that does not exist yet; it appears complete or not at all.
        weights: one number per adapter, used as they are; by default 1 / n each, the mean.
        rank: the largest rank of the result; 0 keeps all.

    Raises `InputError` for adapters that are no plain LoRA (DoRA and others), that are of
    different bases, or that hold whole modules other than heads.
    """
    check_free(Path(output))
    opened = [_open(str(adapter)) for adapter in adapters]
    shares = _weights(weights, len(opened))
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
        raise InputError(f"rank is {rank!r}: expected a whole number, 0 for all.")
    _check_alike(opened)
    left_out = [name for one in opened for name in _heads(one)]
    modules = sorted({module for one in opened for module in _modules(one)})
    found, lost, whole = {}, 0.0, 0.0
    bar = Progress(len(modules), "{} of {} matrices".format) if progress else None
    reader = Reader()
    try:
        for number, module in enumerate(modules, 1):
            left, right = _side_by_side(opened, shares, module, reader)
            if rank and rank < len(right):
                left, right, cut, full = _nearest(left, right, rank)
                lost, whole = lost + cut, whole + full
            found[module] = left, right
            if bar:
                bar.update(number, "", last=number == len(modules))
    finally:
        reader.close()
        if bar:
            bar.close()
    largest = max(len(right) for _, right in found.values())
    base = str(opened[0].config["base_model_name_or_path"])
    report = AdapterReport(
        [one.name for one in opened], shares, base, modules, largest,
        float(np.sqrt(lost / whole)) if whole else 0.0, left_out,
    )  # fmt: skip
    _write(Path(output), opened[0].config, found, report)
    return report


def _open(model: str) -> Adapter:
    located = locate(model)
    if not (located.path / "adapter_config.json").is_file():
        raise InputError(f"Model {model} is no adapter: only adapters are fused into an adapter.")
    config, tensors = configuration(located.path), tensors_of(located.path)
    return Adapter(located.path, located.name, config, tensors)


def _weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if not count:
        raise InputError("adapters is empty: expected a list of at least one adapter.")
    if weights is None:
        return [1 / count] * count
    try:
        values = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise InputError(f"weights are {weights!r}: expected {count} numbers, one per adapter.")
    return values


def _check_alike(opened: list[Adapter]) -> None:
    first, *others = opened
    for number, other in enumerate(others, 1):
        if any(other.folder.resolve() == one.folder.resolve() for one in opened[:number]):
            raise InputError(f"Adapter {other.folder} is listed twice: list each adapter once.")
        for name in ALIKE:
            ours, theirs = (one.config.get(name) or None for one in (first, other))
            if ours != theirs:
                raise InputError(
                    f"Adapters {first.folder} and {other.folder} differ in {name} ({ours!r} and "
                    f"{theirs!r}): fuse adapters of one base model."
                )


def _modules(adapter: Adapter) -> list[str]:
    """The names of the matrices that an adapter updates."""
    suffix = ".lora_A.weight"
    found = [name.removesuffix(suffix) for name in adapter.tensors if name.endswith(suffix)]
    if not found:
        raise InputError(f"Adapter {adapter.folder} updates nothing: save it again with peft.")
    return found


def _heads(adapter: Adapter) -> list[str]:
    """The names of heads that an adapter holds in full; other whole modules are refused."""
    names = [name for name in adapter.tensors if ".lora_" not in name]
    for name in names:
        if not HEADS.search(name):
            raise InputError(
                f"Adapter {adapter.folder} holds {name} in full, which an adapter cannot average: "
                "fuse the models instead (without --adapter)."
            )
    return [f"{name} of {adapter.name}" for name in names]


def _side_by_side(
    opened: list[Adapter], shares: list[float], module: str, reader: Reader
) -> tuple[np.ndarray, np.ndarray]:
    """The factors of a matrix's update, float64: (outputs, ranks) and (ranks, inputs)."""
    lefts, rights = [], []
    for adapter, share in zip(opened, shares, strict=True):
        pair = [adapter.tensors.get(f"{module}.lora_{side}.weight") for side in "BA"]
        if pair == [None, None]:
            continue
        left, right = (_matrix(adapter, module, stored, reader) for stored in pair)
        if left.shape[1] != len(right):
            raise InputError(f"Adapter {adapter.folder} has an incomplete update for {module}.")
        scale = scale_of(adapter.folder, adapter.config, module, len(right))
        lefts.append(share * scale * left)
        rights.append(right)
        if (len(left), right.shape[1]) != (len(lefts[0]), rights[0].shape[1]):
            raise InputError(
                f"The update of {module} has another shape in {adapter.folder} than in the "
                "adapters before it: fuse adapters of one base model."
            )
    return np.concatenate(lefts, axis=1), np.concatenate(rights)


def _matrix(adapter: Adapter, module: str, stored: TensorInfo | None, reader: Reader) -> np.ndarray:
    if stored is None or len(stored.shape) != 2 or not stored.is_float:
        raise InputError(f"Adapter {adapter.folder} has an incomplete update for {module}.")
    values = np.empty(stored.size, np.float64)
    reader.numbers(stored, 0, stored.size, values)
    if not np.isfinite(values).all():
        raise InputError(
            f"Tensor {stored.name} of adapter {adapter.folder} contains NaN or infinity: leave it "
            "out."
        )
    return values.reshape(stored.shape)


def _nearest(left, right, rank: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """The factors of this rank whose product is nearest, the squared norm of what they lack, and
    that of the whole product (Eckart and Young 1936); the product itself is never formed."""
    (q, r), (p, s) = np.linalg.qr(left), np.linalg.qr(right.T)
    u, sizes, v = np.linalg.svd(r @ s.T)
    root = np.sqrt(sizes[:rank])
    squares = sizes**2
    return (
        q @ u[:, :rank] * root,
        root[:, None] * v[:rank] @ p.T,
        float(squares[rank:].sum()),
        float(squares.sum()),
    )


def _write(output: Path, config: dict, found: dict, report: AdapterReport) -> None:
    """The new adapter's folder; `alpha` equals the rank, so that nothing is scaled."""
    tensors = {}
    for module, (left, right) in found.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = right.astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = left.astype(np.float32)
    ranks = {module: len(right) for module, (_, right) in found.items()}
    other = {module: rank for module, rank in ranks.items() if rank != report.rank}
    config = {
        **config,
        "r": report.rank,
        "lora_alpha": report.rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "use_rslora": False,
        "modules_to_save": None,
        "target_modules": sorted(found),
        "inference_mode": True,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with staged(output, durable=False) as partial:
        partial.mkdir()
        facts = {"parents": report.parents, "weights": report.weights}
        metadata = {"format": "pt"} | {name: json.dumps(value) for name, value in facts.items()}
        write_file(partial / "adapter_model.safetensors", tensors, metadata)
        write_json(partial / "adapter_config.json", config)
        (partial / "README.md").write_text(_card(report), encoding="utf-8")
        check_free(output)


def _card(report: AdapterReport) -> str:
    """The card of a fused adapter."""
    rows = [f"| `{one_line(name)}` | {weight:.4g} |" for name, weight in zip(
        report.parents, report.weights, strict=True)]  # fmt: skip
    lost = f"; {100 * report.error:.2g} % of the update's norm is lost" if report.error else ""
    return "\n".join([
        "---", "library_name: peft", f"base_model: {json.dumps(report.base)}", "tags:", "- merge",
        "- lora", "- fusinglib", "---", "# Fused LoRA adapter", "",
        f"The weighted sum of the updates of {len(rows)} adapters, of rank {report.rank}{lost}.",
        "", "| adapter | weight |", "|---|---|", *rows, "",
    ])  # fmt: skip
