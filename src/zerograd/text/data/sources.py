"""Rows of data: JSONL, JSON, CSV, TSV and Parquet files, folders of them, and data sets of the hub."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
"""What the files of a folder, or the splits of a hub's data set, are called."""


@dataclass(frozen=True)
class Source:
    """Where rows come from. name: a file, a folder, or a hub id, with its configuration after a colon.

    weight: how often an epoch sees each of its training rows; half of them where it is 0.5.
    """

    name: str
    weight: float = 1.0
    _read: dict[str, dict[str, list[Row]]] = field(default_factory=dict, compare=False, repr=False)

    def read(self, splits: Mapping[str, str] | None = None) -> dict[str, list[Row]]:
        """Its rows by split, read once; see `read`."""
        key = repr(splits)
        if key not in self._read:
            self._read[key] = read(self.name, dict(splits or {}))
        return self._read[key]

    @staticmethod
    def parse(given: str) -> Source:
        """From `NAME` or `NAME=WEIGHT`. Raises ValueError for a weight that is not a number above 0."""
        name, separator, weight = given.rpartition("=")
        if not separator or Path(given).exists():
            return Source(given)
        try:
            number = float(weight)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise ValueError(f"data {given!r}: the weight is {weight!r}; give a number above 0, as in reviews.csv=0.5")
        return Source(name, number)


def read(name: str, splits: Mapping[str, str] | None = None) -> dict[str, list[Row]]:
    """Rows by split, "train", "dev" and "test" as far as the source has them; a file is all "train".

    splits: what the source may call each of them; the usual names where it does not.
    Raises ValueError or FileNotFoundError with the mend.
    """
    path = Path(name)
    if path.is_file():
        return {"train": rows(path)}
    if path.is_dir():
        found = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in FORMATS}
        chosen = _choose(found, splits, name)
        return {split: rows(found[stem]) for split, stem in chosen.items()}
    if path.suffix in FORMATS or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"data {name!r} is not there: give a file ({', '.join(FORMATS)}), a folder of them, or a hub id")
    return _from_hub(name, splits)


def split(name: str, wanted: str, splits: Mapping[str, str] | None = None) -> list[Row]:
    """The rows of one of a source's splits; all of one that has no splits. Raises ValueError or FileNotFoundError with the mend."""
    found = read(name, splits)
    if wanted not in found and len(found) > 1:
        raise ValueError(f"data {name!r} has {' and '.join(found)}, and no {wanted}; name the file")
    return found.get(wanted) or next(iter(found.values()))


def rows(path: Path) -> list[Row]:
    """The rows of a file. Raises ValueError naming the file, the line and the mend."""
    if path.suffix not in FORMATS:
        raise ValueError(f"data {path}: the ending is {path.suffix!r}; it must be one of {', '.join(FORMATS)}")
    if not path.exists():
        raise FileNotFoundError(f"data {path} is not there")
    if path.suffix == ".parquet":
        found = _parquet(path)
    elif path.suffix == ".jsonl":
        found = list(_jsonl(path))
    elif path.suffix == ".json":
        found = _json(path)
    else:
        found = list(_csv(path, "\t" if path.suffix == ".tsv" else ","))
    if not found:
        raise ValueError(f"data {path} has no rows; give it some")
    return found


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"data {path}: line {line} is not UTF-8 (byte {raw[error.start]:#04x}); save the file as UTF-8") from None


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"data {path}: line {number} is not JSON ({error.msg}, column {error.colno})") from None
            yield _object(row, f"data {path}: line {number}")


def _json(path: Path) -> list[Row]:
    try:
        whole = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"data {path}: line {error.lineno} is not JSON ({error.msg}); a file of objects a line ends in .jsonl"
        ) from None
    if not isinstance(whole, list):
        raise ValueError(f"data {path} holds a {type(whole).__name__}; it must be a list of objects")
    return [_object(row, f"data {path}: item {number}") for number, row in enumerate(whole, 1)]


def _csv(path: Path, separator: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=separator, strict=True)
    try:
        names = next(reader, [])
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"data {path}: column {twice[0]!r} is there twice; rename one")
        for values in reader:
            if not any(values):
                continue
            if len(values) != len(names):
                say = f"data {path}: line {reader.line_num} has {len(values)} columns, the header has {len(names)}"
                raise ValueError(f"{say}; put quotes around texts that hold {separator!r}")
            yield dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"data {path}: line {reader.line_num} is not CSV ({error})") from None


def _parquet(path: Path) -> list[Row]:
    from pyarrow import ArrowException, parquet

    try:
        found: list[Row] = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise ValueError(f"data {path} is not Parquet: {error}") from None
    return found


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a {type(row).__name__}; it must be an object of columns")
    return row


def _choose(there: Any, splits: Mapping[str, str] | None, name: str) -> dict[str, str]:
    """Which of the names that are there is each split."""
    if splits and all(own in there for own in splits.values()):
        return dict(splits)
    chosen = {split: next((own for own in names if own in there), "") for split, names in SPLITS.items()}
    if not chosen["train"]:
        if len(there) != 1:
            raise ValueError(f"data {name!r} has no train split; it has {', '.join(there) or 'none'}")
        chosen["train"] = next(iter(there))
    return {split: own for split, own in chosen.items() if own}


def _from_hub(name: str, splits: Mapping[str, str] | None) -> dict[str, list[Row]]:
    import datasets

    datasets.disable_progress_bars()
    identity, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(identity, configuration or None)
    except Exception as error:  # whatever the hub or the network says
        raise ValueError(f"data {name!r} is no file here, and the hub does not give it: {str(error).splitlines()[0]}") from None
    return {split: found[own].to_list() for split, own in _choose(found, splits, name).items()}
