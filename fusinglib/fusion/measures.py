"""What some methods need besides the models: thresholds and angles of whole tensors, which take
extra passes over the inputs; random numbers; Fisher information."""

import hashlib
import inspect
from collections.abc import Callable, Sequence

import numpy as np

from fusinglib.errors import InputError
from fusinglib.fusion.checkpoints import locate
from fusinglib.fusion.methods import Method
from fusinglib.fusion.streaming import Buffer, Chunk, chunks, computed, stream
from fusinglib.fusion.tensors import FLOATS, Reader, TensorInfo, headers_of_file

Bodies = Sequence[dict[str, TensorInfo]]

FOUND = ("thresholds", "band", "angle", "cosine", "norms", "norm", "random", "name")


def settings_of(method: Method) -> dict:
    """The settings of a method and their defaults: its keyword arguments, except what is computed
    here."""
    parameters = list(inspect.signature(method.combine).parameters.values())[3:]
    return {
        one.name: one.default
        for one in parameters
        if one.name not in FOUND and one.kind != inspect.Parameter.VAR_KEYWORD
    }


def takes_any(method: Method) -> bool:
    """Whether a method takes any keyword argument (`**kwargs`)."""
    parameters = inspect.signature(method.combine).parameters.values()
    return any(one.kind == inspect.Parameter.VAR_KEYWORD for one in parameters)


def known(
    method: Method, bodies: Bodies, count: int, settings: dict[str, dict]
) -> Callable[[Chunk], dict]:
    """What a method needs for a chunk, as keyword arguments. The first `count` bodies are those of
    the models; the base's comes last, if there is one. `settings` are those of every tensor."""
    parts = [_known(need, bodies, count, settings) for need in method.needs.split()]
    return lambda chunk: {name: value for part in parts for name, value in part(chunk).items()}


def _known(need: str, bodies: Bodies, count: int, settings: dict[str, dict]) -> Callable:
    """One thing that a method needs (see `known`)."""
    names, common = list(settings), next(iter(settings.values()), {})
    match need:
        case "thresholds":
            found = thresholds(bodies, parts(bodies, settings, "density"))
        case "band":
            found = band(bodies, *(parts(bodies, settings, one) for one in ("density", "gamma")))
        case "angle":
            found = angle(bodies, names)
        case "cosine" | "norms" | "norm":
            found = of_updates(need, products(bodies, names), bodies[0])
        case "random":
            seed = common["seed"]
            return lambda chunk: {need: [random(seed, i, chunk) for i in range(count)]}
        case "fisher":
            return fisher_of_files(common["fisher"], bodies[:count])
        case "gram":
            return gram_of_files(common["gram"], bodies[:count])
    return lambda chunk: {need: found[chunk.name]}


Counts = dict[str, list[int]]
"""How many numbers of a tensor's update, by the tensor's name; one count for each model."""


def parts(bodies: Bodies, settings: dict[str, dict], fraction: str) -> Counts:
    """The fraction of every tensor's numbers that a setting says."""
    models = len(bodies) - 1
    return {
        name: [int(part * bodies[0][name].size) for part in np.broadcast_to(one[fraction], models)]
        for name, one in settings.items()
    }


def thresholds(bodies: Bodies, largest: Counts) -> dict[str, np.ndarray]:
    """For every tensor, the smallest magnitude among the `largest` (at least one) of each
    model's update.

    Exact: magnitudes are ranked by their bits, 16 at a time from the highest, which takes two
    passes (four for float64) and 512 kB per model.
    """
    found = {}

    def rank(name: str, buffer: Buffer) -> int:
        dtype = computed(*(body[name].dtype for body in bodies))
        digits = dtype.itemsize // 2
        unsigned = np.dtype(f"u{2 * digits}")
        models = range(len(bodies) - 1)
        left = [max(count, 1) for count in largest[name]]
        above = [0] * len(models)  # the bits found so far
        for digit in range(digits):
            shift = unsigned.type(16 * (digits - 1 - digit))
            counts = np.zeros((len(models), 2**16), np.int64)
            for chunk in chunks([name], bodies):
                *rows, base = buffer.numbers(chunk)
                for i in models:
                    with np.errstate(all="ignore"):  # fusing reports non-finite values
                        bits = np.abs(rows[i] - base).view(unsigned) >> shift
                    inside = bits[bits >> unsigned.type(16) == above[i]] if digit else bits
                    low = (inside & unsigned.type(0xFFFF)).astype(np.intp)
                    counts[i] += np.bincount(low, minlength=2**16)
            for i in models:
                larger = counts[i][::-1].cumsum()
                place = int(np.searchsorted(larger, left[i]))
                left[i] -= int(larger[place] - counts[i][::-1][place])
                above[i] = above[i] << 16 | (2**16 - 1 - place)
        found[name] = np.array(above, unsigned).view(dtype)
        return 0

    stream(iter([name for name in largest if bodies[0][name].size]), rank)
    return found


def band(bodies: Bodies, kept: Counts, dropped: Counts) -> dict[str, np.ndarray]:
    """For every tensor and model, the smallest magnitude that is kept, and the smallest of the
    `dropped` largest (infinite if they are none). Fewer are dropped where not enough would be left
    to keep, as in mergekit."""
    found, outliers, both = {}, {}, {}
    for name, counts in kept.items():
        size = bodies[0][name].size
        outliers[name] = [min(d, size - k) for k, d in zip(counts, dropped[name], strict=True)]
        both[name] = [k + d for k, d in zip(counts, outliers[name], strict=True)]
    low, high = thresholds(bodies, both), thresholds(bodies, outliers)
    for name, lows in low.items():
        some = np.array(outliers[name]) > 0
        found[name] = np.stack([lows, np.where(some, high[name], np.inf)], axis=1)
    return found


def products(bodies: Bodies, names: Sequence[str]) -> dict[str, np.ndarray]:
    """For every tensor the inner products between the models' updates, float64 (models, models)."""
    found = {}

    def measure(name: str, buffer: Buffer) -> int:
        total = np.zeros((len(bodies) - 1,) * 2)
        with np.errstate(all="ignore"):  # fusing reports non-finite values
            for chunk in chunks([name], bodies):
                *rows, base = (row.astype(np.float64) for row in buffer.numbers(chunk))
                updates = np.stack([row - base for row in rows])
                total += updates @ updates.T
        found[name] = total
        return 0

    stream(iter(names), measure)
    return found


def of_updates(need: str, inner: dict[str, np.ndarray], body: dict[str, TensorInfo]) -> dict:
    """From the `products`, for every tensor: the mean "cosine" between two updates (1 for a single
    one); the "norms" of all updates and of their mean's, over the whole model; the "norm" of the
    mean's, divided by the root of the tensor's size."""
    with np.errstate(all="ignore"):  # fusing reports non-finite values
        return _of_updates(need, inner, body)


def _of_updates(need: str, inner: dict[str, np.ndarray], body: dict[str, TensorInfo]) -> dict:
    if need == "norms":
        total = np.sum(list(inner.values()), axis=0)
        norms = np.sqrt([*np.diag(total), total.mean()])
        return dict.fromkeys(inner, norms)
    if need == "norm":
        return {
            name: float(np.sqrt(inner[name].mean() / max(body[name].size, 1))) for name in inner
        }
    return {name: _mean_cosine(one) for name, one in inner.items()}


def _mean_cosine(inner: np.ndarray) -> float:
    norms = np.sqrt(np.diag(inner))
    scale = np.outer(norms, norms)
    cosines = np.divide(inner, scale, out=np.zeros_like(inner), where=scale > 0)
    pairs = ~np.eye(len(inner), dtype=bool)
    return float(cosines[pairs].mean()) if len(inner) > 1 else 1.0


def angle(bodies: Bodies, names: Sequence[str]) -> dict[str, float]:
    """The angle between every tensor of two models, in radians; summed in float64."""
    found = {}

    def measure(name: str, buffer: Buffer) -> int:
        products = np.zeros((2, 2))
        with np.errstate(all="ignore"):  # fusing reports non-finite values
            for chunk in chunks([name], bodies[:2]):
                rows = np.stack(buffer.numbers(chunk)).astype(np.float64)
                products += rows @ rows.T
            norms = np.sqrt(products[0, 0] * products[1, 1])
            cosine = products[0, 1] / norms if norms else 1.0
        found[name] = float(np.arccos(np.clip(cosine, -1, 1)))
        return 0

    stream(iter(names), measure)
    return found


def random(seed: int, model: int, chunk: Chunk) -> np.ndarray:
    """Uniform numbers in [0, 1), float32, for a chunk; they do not depend on how a tensor is
    split."""
    key = hashlib.sha256(f"{seed} {model} {chunk.name}".encode()).digest()[:16]
    generator = np.random.Philox(key=np.frombuffer(key, np.uint64))
    generator.advance(chunk.start // 8)  # one step generates eight 32-bit numbers
    return np.random.Generator(generator).random(chunk.stop - chunk.start, dtype=np.float32)


def fisher_of_files(files: Sequence | None, bodies: Bodies) -> Callable[[Chunk], dict]:
    """The Fisher information of every model, from files that `fisher.estimate` wrote."""
    opened = _opened("fisher", files, len(bodies))
    for file, tensors in zip(files or (), opened, strict=True):
        for name, stored in bodies[0].items():
            theirs = tensors.get(name)
            if stored.is_float and (not theirs or theirs.shape != stored.shape):
                raise InputError(
                    f"{file} has no Fisher information on tensor {name} of that shape."
                )
    reader = Reader()

    def read(chunk: Chunk) -> dict:
        rows = []
        for file, tensors in zip(files or (), opened, strict=True):
            row = _numbers(reader, tensors[chunk.name], chunk.start, chunk.stop)
            if not (np.isfinite(row).all() and (row >= 0).all()):
                raise InputError(f"{file} has negative or non-finite values in {chunk.name}.")
            rows.append(row.astype(computed(chunk.tensors[0].dtype)))
        return {"fisher": rows}

    return read


def gram_of_files(files: Sequence | None, bodies: Bodies) -> Callable[[Chunk], dict]:
    """The Gram matrices of every model, float64, from files that `gram.estimate` wrote."""
    opened = _opened("gram", files, len(bodies))
    widths = aligned("regmean", {"gram": files}, bodies)
    for file, tensors in zip(files or (), opened, strict=True):
        if differing := sorted(tensors.keys() ^ opened[0].keys()):
            raise InputError(
                f"{file} and the first file differ in having a Gram matrix for tensor "
                f"{differing[0]}: estimate both on these models."
            )
        for name, width in widths.items():
            if name not in tensors or tensors[name].shape != (width, width):
                raise InputError(
                    f"{file} has no Gram matrix of shape {[width, width]} for tensor {name}: "
                    "estimate it on this model."
                )
    reader = Reader()

    def read(chunk: Chunk) -> dict:
        if chunk.name not in widths:
            return {"gram": ()}
        matrices = []
        for file, tensors in zip(files or (), opened, strict=True):
            matrix = _numbers(reader, tensors[chunk.name], 0, tensors[chunk.name].size)
            if not np.isfinite(matrix).all():
                raise InputError(f"{file} has non-finite values in {chunk.name}.")
            matrices.append(matrix.astype(np.float64).reshape(tensors[chunk.name].shape))
        return {"gram": matrices}

    return read


def aligned(method: str, settings: dict, bodies: Bodies) -> dict[str, int]:
    """The tensors that a method takes in whole rows, and the rows' widths."""
    if method != "regmean":
        return {}
    opened = _opened("gram", settings["gram"], len(bodies))
    shapes = {name: bodies[0][name].shape for name in opened[0] if name in bodies[0]}
    return {name: shape[1] for name, shape in shapes.items() if len(shape) == 2}


def _opened(setting: str, files: Sequence | None, count: int) -> list[dict[str, TensorInfo]]:
    """The tensors of a setting's files, of which there is one for each model."""
    if isinstance(files, str) or not files:
        method = {"fisher": "fisher", "gram": "regmean"}[setting]
        raise InputError(
            f"The method {method} needs the setting {setting}: a file for each model, in order."
        )
    if len(files) != count:
        raise InputError(f"{setting} has {len(files)} files: expected {count}.")
    opened = [headers_of_file(locate(str(file)).path) for file in files]
    for file, tensors in zip(files, opened, strict=True):
        for name, stored in tensors.items():
            if stored.dtype not in FLOATS:
                raise InputError(f"{file} has {name} as {stored.dtype}: expected floats.")
    return opened


def _numbers(reader: Reader, stored: TensorInfo, start: int, stop: int) -> np.ndarray:
    values = np.empty(stop - start, computed(stored.dtype))
    reader.numbers(stored, start, stop, values)
    return values
