"""The rows of one file: JSONL, JSON, CSV, TSV or Parquet, gzipped or not.

Null, NaN and an empty cell are the same in every format: None, or an empty text.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zerograd.text.data.values import NUMBER, is_nan

Row = dict[str, Any]

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}

SNIFFED_ROWS = 50
"""Rows of a table that a separator must divide into the same number of columns."""

BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}

WESTERN_SHARE = 0.3
"""The most letters beyond ASCII, of all letters, in a text that is taken for Windows-1252."""

WESTERN_SIGNS = (
    "\u2018\u2019\u201c\u201d\u201e\u2013\u2014\u2026\u2022\u20ac\u00a3\u00a7\u00a9"
    "\u00ae\u00b0\u00b4\u00b7\u00ab\u00bb\u00bf\u00a1\u00ba\u00aa\u00bd\u00bc\u00be\u00b2\u00b3\u2122\u00a0"
)
"""What stands beside letters in Western texts."""

RARE_LETTERS = "\u00fe\u00ff"
"""Letters whose bytes, 0xfe and 0xff, are more often no letters."""


def ending(path: Path) -> str:
    """The format of a file by its name, in lower case, without `.gz`."""
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def rows(path: Path, notes: list[str] | None = None) -> list[Row]:
    """The rows of a file. notes: takes a line about a guess, such as a separator or an encoding.

    Raises ValueError naming the file, the line and the mend, or FileNotFoundError.
    """
    kind = ending(path)
    if kind not in FORMATS:
        raise ValueError(f"data {path}: the ending is {path.suffix!r}; it must be one of {', '.join(FORMATS)}")
    if not path.exists():
        raise FileNotFoundError(f"data {path} is not there")
    said: list[str] = []
    if kind == ".parquet":
        found = _parquet(path)
    elif kind == ".jsonl":
        found = list(_jsonl(path))
    elif kind == ".json":
        found = _json(path)
    else:
        found = list(_table(path, "\t" if kind == ".tsv" else ",", said))
    if not found:
        raise ValueError(f"data {path} has no rows; add some")
    if notes is not None:
        notes += said
    return [plain_row(row, f"data {path}: row {number}") for number, row in enumerate(found, 1)]


def _bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix.lower() != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"data {path} is not a whole gzip file ({error}); unpack it, or fetch it again") from None


def _text(path: Path, western: bool = False, notes: list[str] | None = None) -> str:
    """The text of a file. western: whether bytes that are not UTF-8 may be Windows-1252."""
    raw = _bytes(path)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        guessed = _windows_1252(raw) if western else None
        if guessed is None or notes is None:
            name = encoding.upper().removesuffix("-SIG")
            raise ValueError(
                f"data {path}: line {line} is not {name} (byte {raw[error.start]:#04x}); save the file as UTF-8"
            ) from None
        there = guessed.split("\n")[line - 1].strip()
        notes.append(f"{path.name} is not UTF-8 and was read as Windows-1252; line {line} is {there[:60]!r}")
        return guessed


def _windows_1252(raw: bytes) -> str | None:
    """A text in Windows-1252, or None where the bytes do not look like one."""
    try:
        text = raw.decode("cp1252")
    except UnicodeDecodeError:
        return None
    others = [character for character in text if character > "\x7f"]
    letters = sum(character.isalpha() for character in text)
    beyond = sum(character.isalpha() for character in others)
    known = all((character.isalpha() and character not in RARE_LETTERS) or character in WESTERN_SIGNS for character in others)
    return text if known and "\0" not in text and beyond <= WESTERN_SHARE * letters else None


def _parse(text: str, where: str) -> Any:
    """JSON, whose NaN is null. Raises ValueError for a number or a depth that Python does not read."""
    try:
        return json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name))
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read: {str(error).partition(';')[0]}") from None


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            where = f"data {path}: line {number}"
            try:
                row = _parse(line, where)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON ({error.msg}, column {error.colno})") from None
            yield _object(row, where)


def _json(path: Path) -> list[Row]:
    try:
        whole = _parse(_text(path), f"data {path}")
    except json.JSONDecodeError as error:
        raise ValueError(
            f"data {path}: line {error.lineno} is not JSON ({error.msg}); a file with one object per line must end in .jsonl"
        ) from None
    if not isinstance(whole, list):
        raise ValueError(f"data {path} is a {type(whole).__name__}; it must be a list of objects")
    return [_object(row, f"data {path}: item {number}") for number, row in enumerate(whole, 1)]


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a {type(row).__name__}; it must be an object of columns")
    return row


def _parquet(path: Path) -> list[Row]:
    from pyarrow import ArrowException, BufferReader, parquet

    try:
        found: list[Row] = parquet.read_table(BufferReader(_bytes(path))).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"data {path} is not Parquet: {error}") from None
    return found


# Tables of text.


def _table(path: Path, usual: str, notes: list[str]) -> Iterator[Row]:
    """The rows of a CSV file. usual: the separator that its ending promises."""
    text = _text(path, western=True, notes=notes)
    first, _, rest = text.partition("\n")
    skipped = 0
    named = re.fullmatch(r'"?sep=(.)"?', first.rstrip("\r"), re.IGNORECASE)  # a line of spreadsheets
    if named:
        separator, text, skipped = named[1], rest, 1
    else:
        separator = _separator(text, usual)
        if separator != usual:
            notes.append(f"{path.name} is separated by {SEPARATORS[separator]}, and was read so")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    table = []
    try:
        names = [name.strip() for name in next(reader, [])]
        for values in reader:
            if not any(values):
                continue
            while len(values) > len(names) and not values[-1].strip():
                values.pop()
            if len(values) != len(names):
                line = reader.line_num + skipped
                problem = f"data {path}: line {line} has {len(values)} columns, the header has {len(names)}"
                raise ValueError(f"{problem}; put quotes around texts that contain {separator!r}")
            table.append(values)
    except csv.Error as error:
        raise ValueError(f"data {path}: line {reader.line_num + skipped} is not CSV ({error})") from None
    used = [i for i, name in enumerate(names) if name or any(values[i].strip() for values in table)]
    titles = {i: names[i] or f"column {i + 1}" for i in used}
    twice = next((name for name in titles.values() if list(titles.values()).count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"data {path}: two columns are named {twice!r}; rename one")
    empty = {i for i in used if _is_numeric([values[i] for values in table])}
    for values in table:
        yield {titles[i]: "" if i in empty and values[i].strip().lower() == "nan" else values[i] for i in used}


def _is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers and "nan", so that the latter is no word."""
    given = {cell.strip().lower() for cell in cells} - {"", "nan"}
    return bool(given) and all(NUMBER.fullmatch(cell) for cell in given)


def _separator(text: str, usual: str) -> str:
    """The usual separator where it divides the first rows evenly, else one that does."""
    even = [separator for separator in (usual, *SEPARATORS) if _divides(text, separator)]
    return even[0] if even else usual


def _divides(text: str, separator: str) -> bool:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        width = len(next(reader, []))
        rows = [values for _, values in zip(range(SNIFFED_ROWS), reader, strict=False) if any(values)]
    except csv.Error:
        return False
    return width > 1 and all(len(values) == width for values in rows)


# What all formats have in common.


def plain_row(row: Row, where: str) -> Row:
    """A row without NaN. Raises ValueError for a text that is no Unicode."""
    for name, value in row.items():
        if isinstance(value, str) and not _is_unicode(value):
            raise ValueError(f"{where}: {name} has half of a character (a lone surrogate); write it whole")
    return {str(name): _without_nan(value) for name, value in row.items()}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    return None if is_nan(value) else value
