"""Read the files of an own task: every cell as it is written, every bad row by its number."""

import codecs
import csv
import gzip
import io
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from fusinglib.errors import InputError

MOST = 2**30
"""The most bytes that a compressed file may unpack to."""

CODES = "latin-1, cp1252, utf-16, gb18030..."
"""Encodings to try, for messages."""


@dataclass(frozen=True)
class Reading:
    """How an own task's files are read.

    `separator` stands between cells ("": a comma, and a tab in .tsv files). `encoding` is that of
    text files. Unless `quotes` is false, a cell may be enclosed in quotation marks. With
    `skip_bad_rows` rows that cannot be used are dropped and counted rather than refused.
    """

    separator: str = ""
    encoding: str = "utf-8"
    quotes: bool = True
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        """Raise `InputError` for a separator or an encoding that cannot be one."""
        for name in ("separator", "encoding"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} is {getattr(self, name)!r}: expected text")
        for name in ("quotes", "skip_bad_rows"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}: expected true or false")
        if len(self.separator) > 1 or self.separator in ("\n", "\r", '"'):
            raise InputError(f"separator is {self.separator!r}: expected one character")
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise InputError(f"encoding is {self.encoding!r}: expected one of {CODES}") from error


@dataclass
class Table:
    """Rows of a split: `columns` (lists by name), the `label_names` that label ids stand for in the
    data, and `skipped`, the bad rows that are not among them."""

    columns: dict[str, list]
    place: Callable[[int], str]
    label_names: tuple[str, ...] = ()
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


class Source(NamedTuple):
    """An unpacked file: its content, the end of its name, and what to read of it."""

    path: Path
    data: bytes
    suffix: str
    reading: Reading
    wanted: list[str]

    @property
    def text(self) -> str:
        """The content as text, without a byte order mark."""
        encoding = self.reading.encoding
        try:
            return self.data.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            line, byte = self.data[: error.start].count(b"\n") + 1, self.data[error.start]
            raise InputError(
                f"{self.path}: line {line} is not {encoding} (byte 0x{byte:02x}): name the file's "
                f"encoding ({CODES}), or save it as UTF-8"
            ) from error


class File(NamedTuple):
    """What is in a file: its column names, its rows (a mapping each, or what is wrong with it), and
    the names of label ids, by column, if the file has them."""

    names: list[str]
    rows: Iterable[dict[str, Any] | str]
    label_names: dict[str, list[str]] = {}


def contents(files: Iterable[str]) -> tuple[str, ...]:
    """The hash of every file, "" for one that cannot be read."""
    return tuple(_hash(Path(file)) for file in files)


def _hash(path: Path) -> str:
    try:
        return xxhash.xxh3_128_hexdigest(path.read_bytes())
    except OSError:
        return ""


def read(files: Iterable[str], columns: Iterable[str], label: str, reading: Reading) -> Table:
    """The rows of all these files with the wanted columns, `label` among them.

    Raises `InputError` for a file that cannot be read, that lacks a column, or that has a bad row
    (unless `reading` skips those), with the row's number: the first row, after any header, is 1.
    """
    wanted = list(dict.fromkeys(columns))
    found: dict[str, list] = {name: [] for name in wanted}
    places: list[tuple[Path, int]] = []
    skipped, label_names = [], ()
    for path in map(Path, files):
        source = _opened(path, reading, wanted)
        file = READERS[source.suffix](source)
        _check_names(path, wanted, file.names, reading)
        label_names = label_names or tuple(file.label_names.get(label, ()))
        for number, row in enumerate(file.rows, 1):
            if isinstance(row, str):
                problem = f"row {number} of {path.name} {row}"
                if not reading.skip_bad_rows:
                    raise InputError(f"{problem}: correct it, or set skip_bad_rows: true ({path})")
                skipped.append(problem)
                continue
            for name in wanted:
                found[name].append(row.get(name))
            places.append((path, number))
    if not places:
        listed = ", ".join(dict.fromkeys(map(str, files)))
        raise InputError(f"{listed} has no rows: name a file that has some")
    return Table(found, lambda i: f"row {places[i][1]} of {places[i][0].name}",
                 label_names, skipped)  # fmt: skip


def _check_names(path: Path, wanted: list[str], names: list[str], reading: Reading) -> None:
    for name in wanted:
        if name in names:
            if names.count(name) > 1:
                raise InputError(f"{path} has {names.count(name)} columns {name!r}: rename one")
            continue
        hint = ""
        for sign in ";\t|,":
            if len(names) == 1 and sign in names[0] and sign != reading.separator:
                hint = f': if the cells are separated by {sign!r}, set separator: "{_shown(sign)}"'
        raise InputError(f"{path} has no column {name!r}; it has {', '.join(names)}{hint}")


def _shown(sign: str) -> str:
    return "\\t" if sign == "\t" else sign


def _opened(path: Path, reading: Reading, wanted: list[str]) -> Source:
    """A file's content, unpacked if need be."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: name its files, for example {path.name}/*.csv")
    if not path.exists():
        raise InputError(f"there is no file {path}: check its name")
    name, data = path.name.lower(), b""
    try:
        if Path(name).suffix not in (".gz", ".zip", *READERS):
            known = " ".join(READERS)
            raise InputError(f"{path}: expected a name that ends in {known}, or these with .gz")
        if name.endswith(".gz"):
            name = name.removesuffix(".gz")
            with gzip.open(path) as stream:
                data = stream.read(MOST + 1)
        elif name.endswith(".zip"):
            name, data = _unzipped(path)
        else:
            data = path.read_bytes()
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({said}): check or download it again") from error
    if len(data) > MOST and path.suffix.lower() in (".gz", ".zip"):
        raise InputError(f"{path} unpacks to more than {MOST:,} bytes: unpack it, and name that")
    suffix = Path(name).suffix
    if suffix not in READERS:
        raise InputError(
            f"{path} contains {name}: expected a name that ends in {' '.join(READERS)}"
        )
    if not data.strip():
        raise InputError(f"{path} is empty: name a file with rows")
    return Source(path, data, suffix, reading, wanted)


def _unzipped(path: Path) -> tuple[str, bytes]:
    """The name and content of the only file in a zip file."""
    with zipfile.ZipFile(path) as archive:
        hidden = ("__MACOSX/", ".")
        inside = [
            one
            for one in archive.infolist()
            if not one.is_dir() and not one.filename.startswith(hidden)
        ]
        if len(inside) != 1:
            listed = ", ".join(one.filename for one in inside) or "nothing"
            raise InputError(f"{path} contains {listed}: expected one file; unpack it instead")
        if inside[0].flag_bits & 1:
            raise InputError(f"{path} needs a password: unpack it, and name the file in it")
        with archive.open(inside[0]) as stream:
            return inside[0].filename.lower(), stream.read(MOST + 1)


def _delimited(source: Source) -> File:
    """CSV (RFC 4180) or TSV, with a header."""
    path, reading = source.path, source.reading
    separator = reading.separator or ("\t" if source.suffix == ".tsv" else ",")
    csv.field_size_limit(sys.maxsize)  # the default refuses long texts
    quoting = csv.QUOTE_MINIMAL if reading.quotes else csv.QUOTE_NONE
    lines = csv.reader(
        io.StringIO(source.text, newline=""), delimiter=separator, quoting=quoting, strict=True
    )
    try:
        names = next(lines)
    except csv.Error as error:
        raise InputError(f"the header of {path} cannot be read ({error}): correct it") from error
    return File(names, _cells(path, lines, names))


def _cells(path: Path, lines: Iterator[list[str]], names: list[str]) -> Iterator[dict | str]:
    number = 0
    while True:
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise InputError(
                    f"{path}: a quotation mark that opens in row {number + 1} is never closed: "
                    "close it, or set quotes: false if quotation marks are text there"
                ) from error
            number += 1
            yield f"cannot be read ({error}; if quotation marks are text, set quotes: false)"
            continue
        if not cells:  # an empty line
            continue
        number += 1
        if len(cells) != len(names):
            yield f"has {len(cells)} of {len(names)} cells"
        else:
            yield dict(zip(names, cells, strict=True))


def _json(source: Source) -> File:
    """JSON: a list of objects, an object a line, or an object of columns."""
    path, text, suffix = source.path, source.text, source.suffix
    lines = [line for line in text.split("\n") if line.strip()]
    if suffix == ".json" and not _is_object(lines[0]):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not valid JSON ({error}): save it again") from error
        rows = _by_column(path, value) if isinstance(value, dict) else value
        if not isinstance(rows, list):
            raise InputError(f"{path} contains no rows: expected a list of objects")
        made = [row if isinstance(row, dict) else "is not a JSON object" for row in rows]
    elif len(lines) == 1 and suffix == ".json":
        made = [json.loads(lines[0])]
        if all(isinstance(value, (list, dict)) for value in made[0].values()):
            made = _by_column(path, made[0])
    else:
        made = [_object(line) for line in lines]
    names = dict.fromkeys(name for row in made if isinstance(row, dict) for name in row)
    return File(list(names), made)


def _is_object(line: str) -> bool:
    return isinstance(_object(line), dict)


def _object(line: str) -> dict | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not valid JSON ({error})"
    return value if isinstance(value, dict) else "is not a JSON object"


def _by_column(path: Path, columns: dict) -> list[dict]:
    """The rows of an object of columns: lists, or objects by row, as pandas writes them."""
    rows = next((list(values) for values in columns.values() if isinstance(values, dict)), [])
    lists = {
        name: _in_order(values, rows) if isinstance(values, dict) else values
        for name, values in columns.items()
    }
    if not all(isinstance(values, list) for values in lists.values()):
        raise InputError(
            f"{path} is one object whose values are no columns: expected a list of objects, an "
            "object a line, or a list for each column"
        )
    if len({len(values) for values in lists.values()}) != 1:
        raise InputError(f"the columns of {path} have different lengths: save it again")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _in_order(values: dict, rows: list) -> list:
    """The values of a column in the order of `rows`; nothing if these are not its rows."""
    return [values[row] for row in rows] if values.keys() == set(rows) else []


def _parquet(source: Source) -> File:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(source.data))
        schema = file.schema_arrow
        names = [name for name in source.wanted if name in schema.names]
        rows = file.read(names).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).splitlines()[0]
        raise InputError(
            f"{source.path} is not a valid Parquet file ({said}): save it again"
        ) from error
    about = (schema.metadata or {}).get(b"huggingface", b"{}")  # as `datasets` writes it
    features = json.loads(about).get("info", {}).get("features", {})
    named = {name: one["names"] for name, one in features.items() if "names" in one}
    return File(schema.names, rows, named)


READERS = {
    ".csv": _delimited,
    ".tsv": _delimited,
    ".json": _json,
    ".jsonl": _json,
    ".ndjson": _json,
    ".parquet": _parquet,
}
"""How a file is read, by the end of its name."""
