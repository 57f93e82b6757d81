"""Fuse finetuned models from safetensors files to a safetensors file, never holding a model in
memory.

Models are compared by their headers first; then all are read in parallel, chunk by chunk.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from fusinglib.errors import InputError
from fusinglib.fusion import compatibility, geometry, licences, measures, normal, recipes
from fusinglib.fusion.checkpoints import Checkpoint
from fusinglib.fusion.chosen import Chosen, choose, normalised, plain
from fusinglib.fusion.compatibility import Report
from fusinglib.fusion.methods import METHODS, means
from fusinglib.fusion.opening import open_checkpoint
from fusinglib.fusion.output import check_free, new_folder
from fusinglib.fusion.streaming import Buffer, Chunk, chunks, stream
from fusinglib.fusion.tensors import FLOATS, REMOTE, SIZES, TensorInfo, finite, narrowed, widest
from fusinglib.integrity import staged
from fusinglib.progress import Progress, amount

Model = str | Path

LARGEST = "50GB"
"""The largest weight file, if nothing else is asked for."""


def fuse(
    models: Sequence[Model],
    output: Model | None = None,
    *,
    method: str | Callable = "mean",
    weights: Sequence[float] | None = None,
    pretrained: Model | None = None,
    heads: bool = False,
    untie: bool = False,
    dry_run: bool = False,
    dtype: str = "",
    max_shard_size: str | int = LARGEST,
    allow_pickle: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Report:
    """Fuse models into the new folder `output`, and report what was done.

    Equivalent, for each tensor of the body: `method([model[name] for model in models])`; with the
    default, `sum(model[name] for model in models) / len(models)` ("Fusing finetuned models for
    better pretraining", section 2). Integer tensors must be equal and are copied. Encoders are
    written without a head, as AutoModel saves them; T5 and other language models are written whole.

    Arguments:
        models: folders, safetensors files, LoRA adapters, or Hub ids (`name@revision`), in the
            order of summation; each may be given only once.
        output: a folder that does not exist yet (a dry run needs none). It appears complete or not
            at all.
        method: a name in `methods.METHODS`, or a function with the signature described there.
        weights: one number per model (normalised by "weighted", "fisher" and "slerp"); by default
            equal, and 1 each for "task_arithmetic", "ties" and "dare".
        pretrained: the models' ancestor, which some methods need; if it is given, norms and cosines
            of the updates are reported, which reads everything once more.
        heads: also average heads, if all have the same labels.
        untie: where some models tie their output embeddings to the input embeddings and others
            store them separately, store them separately.
        dry_run: return the report and write nothing; weights are read only for `pretrained`, and
            of a model on the Hub that is not in the cache only the headers are.
        dtype: "float32", "float16", "bfloat16" or "float64" for all of the result; by default, for
            each tensor, the narrowest that holds all models' numbers. Computed in float32, or in
            float64 where a model is.
        max_shard_size: the largest weight file, in bytes or as "5GB".
        allow_pickle: load `.bin` files if there is nothing else (weights_only).
        progress: show progress.
        settings: settings of the method, such as `scale`, `density`, `seed`, `fisher`.

    Raises `InputError` that names what cannot be fused; nothing is left behind.
    """
    if not (output or dry_run):
        raise InputError("No output given: name a new folder for the fused model, or set dry_run.")
    folder = Path(output or "")
    if not dry_run:
        check_free(folder)
    shard = _bytes(max_shard_size)
    job, chosen = _planned(
        models, method, weights, pretrained, heads, untie, dtype, allow_pickle, dry_run, settings
    )
    if job.base and not job.report.problems:
        _add_updates(job)
    if dry_run:
        return job.report
    compatibility.refuse(job.report.problems)
    job.report.options = f" --max-shard-size {max_shard_size}" * (max_shard_size != LARGEST)
    job.report.options += " --allow-pickle" * allow_pickle
    names, count = job.report.averaged, len(models)
    settings = {name: chosen.settings_at(name) for name in names}
    chosen.known = measures.known(chosen.method, job.bodies, count, settings)
    _carry_out(job, [(folder, range(count), job.report)], chosen, shard, progress)
    return job.report


def preview(
    models: Sequence[Model],
    *,
    method: str | Callable = "mean",
    weights: Sequence[float] | None = None,
    pretrained: Model | None = None,
    **settings: Any,
) -> Report:
    """What `fuse` would report with these arguments, from headers alone: a dry run without the
    norms and cosines of updates."""
    job, _ = _planned(models, method, weights, pretrained, False, False, "", False, True, settings)
    return job.report


def _planned(
    models, method, weights, pretrained, heads, untie, dtype, allow_pickle, dry_run, settings
) -> tuple["Job", Chosen]:
    """The models, compared, and the method, checked (arguments are those of `fuse`)."""
    _check_list(models)
    chosen = choose(method, weights, len(models), settings)
    if chosen.method.with_base and not pretrained:
        raise InputError(f"The method {chosen.name} needs the pretrained model: pass pretrained.")
    if dtype and dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}: expected {', '.join(DTYPES)}.")
    opened = _open_all(models, allow_pickle, not dry_run)  # which may download them
    base = open_checkpoint(pretrained, allow_pickle, not dry_run) if pretrained else None
    job = _compare(opened, base, chosen, heads, dtype, untie)
    chosen.for_tensors(job.report.averaged)
    return job, chosen


def leave_one_out(
    models: Sequence[Model], output: Model, *, progress: bool = True, allow_pickle: bool = False
) -> list[Report]:
    """Write the mean of all models but one, for each of them, in one pass over the inputs.

    Equivalent, bit for bit: `fuse(models without model i, output / f"without-{i}")`, i from 0.
    Arguments and errors are those of `fuse`; either all folders appear below the new folder
    `output`, or none does.
    """
    count, output = len(models), Path(output)
    if count < 3:
        raise InputError(f"leave_one_out takes at least three models, not {count}.")
    members = [[j for j in range(count) if j != i] for i in range(count)]
    check_free(output)
    with staged(output, durable=False) as partial:
        partial.mkdir(parents=True)
        folders = [partial / f"without-{i}" for i in range(count)]
        options = {"progress": progress, "allow_pickle": allow_pickle}
        return fuse_subsets(models, members, folders, **options)


def fuse_subsets(
    models: Sequence[Model],
    subsets: Sequence[Sequence[int]],
    outputs: Sequence[Model],
    *,
    progress: bool = True,
    allow_pickle: bool = False,
) -> list[Report]:
    """Write several means in one pass over the inputs, one for each subset of model indices.

    Each equals, bit for bit, what `fuse` makes of these models in this order.
    """
    opened = _open_all(models, allow_pickle)
    chosen = choose("mean", None, len(opened), {})
    job = _compare(opened, None, chosen, False)
    compatibility.refuse(job.report.problems)
    wanted = []
    for folder, subset in zip(outputs, subsets, strict=True):
        part = _compare([opened[i] for i in subset], None, chosen.of(len(subset)), False).report
        if part.averaged != job.report.averaged:
            raise InputError("The models have different classes: fuse the subsets one at a time.")
        wanted.append((Path(folder), subset, part))
    _carry_out(job, wanted, chosen, _bytes(LARGEST), progress)
    return [report for _, _, report in wanted]


@dataclass
class Job:
    """The models and their bodies, the base's last if there is one, and what the result's tensors
    are like."""

    models: list[Checkpoint]
    base: Checkpoint | None
    bodies: list[dict[str, TensorInfo]]
    result: dict[str, TensorInfo]
    report: Report


# Checking the request.


def _check_list(models: Sequence[Model]) -> None:
    if isinstance(models, (str, Path)) or not models:
        raise InputError(f"models is {models!r}: expected a list of at least one model.")


def _open_all(models: Sequence[Model], allow_pickle: bool, weights=True) -> list[Checkpoint]:
    _check_list(models)
    opened = [open_checkpoint(model, allow_pickle, weights) for model in models]
    for i, model in enumerate(opened):
        if any(model.is_same(other) for other in opened[:i]):
            raise InputError(f"Model {models[i]} is listed twice: list each model once.")
    return opened


def _bytes(size: str | int) -> int:
    """A size such as "5GB" in bytes."""
    found = re.fullmatch(r"(\d+)\s*([KMG]?)B?", str(size).strip().upper())
    if not found or not int(found[1]):
        raise InputError(f"max_shard_size is {size!r}: expected a size such as '5GB' or '500MB'.")
    return int(found[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[found[2]]


DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Names of dtypes, and those of safetensors."""


def _result(bodies: list[dict[str, TensorInfo]], dtype: str) -> dict[str, TensorInfo]:
    """What the result's tensors are like: the first model's, in the dtype of the result."""
    made = {}
    for name, tensor in bodies[0].items():
        if tensor.is_float:
            all_of = [body[name].dtype for body in bodies if name in body]
            tensor = tensor._replace(dtype=DTYPES[dtype] if dtype else widest(all_of), update=None)
        made[name] = tensor
    return made


def _compare(
    models: list[Checkpoint],
    base,
    chosen: Chosen,
    heads: bool,
    dtype: str = "",
    untie: bool = False,
) -> Job:
    """Compare the headers of the models, and say whether they can be fused."""
    found = compatibility.compare(models, base, heads, untie)
    body = _result(found.bodies[: len(models)], dtype)
    read = sum(tensor.bytes for tensors in found.bodies for tensor in tensors.values())
    written = sum(tensor.bytes for tensor in body.values())
    names = compatibility.COPIED_FILES if models[0].config else []
    sentences, unequal = normal.equal_files([model.folder for model in models])
    report = Report(
        method=chosen.name,
        settings={key: plain(value) for key, value in chosen.settings.items()},
        parents=[model.name for model in models],
        weights=normalised(chosen),
        architecture=found.architecture,
        averaged=sorted(name for name in body if body[name].is_float),
        copied=sorted(name for name in body if not body[name].is_float),
        left_out=found.left_out,
        files=[name for name in names if (models[0].folder / name).is_file()] + sentences,
        problems=found.problems,
        notes=found.notes,
        bytes_read=read,
        bytes_written=written,
        memory=compatibility.memory(found.bodies),
        seconds=read / compatibility.READING + written / compatibility.WRITING,
        cost=chosen.method.cost,
        untied=found.untied,
        hub=[model.hub for model in [*models, *([base] if base else [])] if model.hub],
    )
    report.notes += [f"{name} differs between the models: it is left out" for name in unequal]
    report.licence, said = licences.common([*models, *([base] if base else [])])
    report.notes += [said] if said else []
    dtypes = sorted({t.dtype for one in found.bodies for t in one.values() if t.is_float})
    if len(dtypes) > 1:
        made = sorted({tensor.dtype for tensor in body.values() if tensor.is_float})
        report.notes.append(f"dtypes {', '.join(dtypes)}: the result is {', '.join(made)}")
    if chosen.name in METHODS and chosen.method is METHODS[chosen.name]:
        report.recipe = recipes.recipe(
            chosen.name, [model.place for model in models], base.place if base else "",
            chosen.weights, report.settings, dtype,
        ) | {name: True for name, on in (("heads", heads), ("untie", untie)) if on}  # fmt: skip
    return Job(models, base, found.bodies, body, report)


def _add_updates(job: Job) -> None:
    """How far the models are from the pretrained one, and in which directions."""
    if any(tensor.start == REMOTE for body in job.bodies for tensor in body.values()):
        job.report.notes.append(
            "norms and cosines of updates need the weights: download them first"
        )
        return
    found = geometry.of_bodies(job.report.parents, job.bodies[-1], job.bodies[:-1])
    job.report.updates = found.rows()
    job.report.notes += [f"{name}: {note}" for name, note in found.out_of_line().items()]


# Fusing.

Wanted = tuple[Path, Sequence[int], Report]
"""A folder to write, the indices of the models it fuses, and its report."""


def _carry_out(job: Job, wanted: list[Wanted], chosen: Chosen, shard: int, progress: bool) -> None:
    """Read all models once and write all folders, or none."""
    body, hashes = job.result, {}
    total = job.report.bytes_read + sum(report.bytes_written for _, _, report in wanted)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(contextlib.closing(Progress(total, _count))) if progress else None
        folders = [
            stack.enter_context(new_folder(path, report, body, shard)) for path, _, report in wanted
        ]

        def do(chunk: Chunk, buffer: Buffer) -> int:
            rows = _rows(chunk, buffer)
            results = _results(chunk, rows, [subset for _, subset, _ in wanted], job, chosen)
            with np.errstate(all="ignore"):  # non-finite values are refused by name
                for folder, result in zip(folders, results, strict=True):
                    folder.write(chunk, result)
            read = sum(SIZES[tensor.dtype] for tensor in chunk.tensors)
            written = len(wanted) * SIZES[body[chunk.name].dtype]
            return (chunk.stop - chunk.start) * (read + written)

        show = (lambda done: bar.update(done, "", last=done == total)) if bar else None
        widths = measures.aligned(chosen.name, chosen.settings, job.bodies[: len(job.models)])
        stream(chunks(sorted(body), job.bodies, widths), do, hashes, show)
        for folder, (_, subset, report) in zip(folders, wanted, strict=True):
            report.hashes = [_hash(hashes, i, job.bodies[i]) for i in subset]
            if job.base:
                ancestor = _hash(hashes, len(job.models), job.bodies[-1])
                report.ancestor = {"model": job.base.name, "xxh3_128": ancestor}
            folder.finish(job.models[subset[0]])


def _count(done: int, total: int) -> str:
    return f"{amount(done)} of {amount(total)} read and written"


def _rows(chunk: Chunk, buffer: Buffer) -> list[np.ndarray]:
    return buffer.numbers(chunk) if chunk.tensors[0].is_float else buffer.raw(chunk)


def _results(
    chunk: Chunk, rows: list, subsets: list[Sequence[int]], job: Job, chosen: Chosen
) -> Iterator[np.ndarray]:
    """The bytes of the fused chunk, for each subset of the models; several are means."""
    if chunk.tensors[0].dtype not in FLOATS:
        yield from (_equal(chunk, rows, subset, job) for subset in subsets)
    elif chosen.method == METHODS["mean"]:
        for subset, result in zip(subsets, means(rows, subsets), strict=True):
            yield _checked(chunk, rows, subset, job, chosen, result)
    else:
        (subset,) = subsets
        known = chosen.settings_at(chunk.name) | chosen.known(chunk)
        if chosen.wants_name:
            known["name"] = chunk.name
        base, weights = rows[-1] if job.base else None, chosen.weights_at(chunk.name)
        result = chosen.method.combine([rows[i] for i in subset], weights, base, **known)
        yield _checked(chunk, rows, subset, job, chosen, result)


def _checked(
    chunk: Chunk, rows: list, subset: Sequence[int], job: Job, chosen: Chosen, result
) -> np.ndarray:
    """The bytes of a result; non-finite values are refused with the name of their origin."""
    dtype = job.result[chunk.name].dtype
    if not isinstance(result, np.ndarray) or (result.shape, result.dtype) != (
        rows[0].shape,
        rows[0].dtype,
    ):
        raise InputError(
            f"The method {chosen.name} must return an array of {rows[0].dtype} of the shape of its "
            f"inputs, but for tensor {chunk.name} it returned {type(result).__name__}."
        )
    narrow = narrowed(result, dtype)
    if not finite(narrow, dtype) or (
        chosen.method != METHODS["mean"] and not np.isfinite(rows).all()
    ):
        _refuse_infinite(chunk, rows, subset, job)
    return narrow


def _refuse_infinite(chunk: Chunk, rows: list, subset: Sequence[int], job: Job) -> None:
    everyone = [*job.models, *([job.base] if job.base else [])]
    for i in [*subset, *([len(job.models)] if job.base else [])]:
        if not np.isfinite(rows[i]).all():
            raise InputError(
                f"Tensor {chunk.name} of model {everyone[i].source} contains NaN or infinity: "
                "leave this model out."
            )
    raise InputError(
        f"The result for tensor {chunk.name} is too large for its dtype: check the models."
    )


def _equal(chunk: Chunk, rows: list, subset: Sequence[int], job: Job) -> np.ndarray:
    first = subset[0]
    for other in subset[1:]:
        if not np.array_equal(rows[first], rows[other]):
            raise InputError(
                f"Integer tensor {chunk.name} differs between models {job.models[first].source} "
                f"and {job.models[other].source}: integers are not averaged, they must be equal."
            )
    return rows[first]


def _hash(hashes: dict, model: int, body: dict[str, TensorInfo]) -> str:
    """The hash by which a fused model names a parent: of the numbers of the parent's body.

    XXH3-128 over all tensors in the order of their names, each by its name, dtype, shape and the
    XXH3-128 hashes of its chunks of `streaming.CHUNK` numbers (as float32, if narrower). It does
    not depend on how the model is split into files. It identifies models; it does not protect
    against forgery.
    """
    total = xxhash.xxh3_128()
    for name in sorted(body):
        total.update(f"{name} {body[name].dtype} {list(body[name].shape)}".encode())
        total.update(hashes.get((model, name), b""))
    return total.hexdigest()
