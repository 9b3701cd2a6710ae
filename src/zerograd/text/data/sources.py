"""Rows of data: JSONL, JSON, CSV, TSV and Parquet files, folders of such files, and data sets of the hub."""

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
"""The names of a folder's files, or of a hub data set's splits, that each split may have."""


@dataclass(frozen=True)
class Source:
    """A source of rows.

    name: a file, a folder, or a hub id with its configuration after a colon. weight: how often an epoch uses each
    training row; with 0.5, half of the rows.
    """

    name: str
    weight: float = 1.0
    _read: dict[str, dict[str, list[Row]]] = field(default_factory=dict, compare=False, repr=False)

    def read(self, splits: Mapping[str, str] | None = None) -> dict[str, list[Row]]:
        """The rows by split, read once; see the function `read`."""
        key = repr(splits)
        if key not in self._read:
            self._read[key] = read(self.name, dict(splits or {}))
        return self._read[key]

    @staticmethod
    def parse(given: str) -> Source:
        """The source of `NAME` or `NAME=WEIGHT`. Raises ValueError for a weight that is not a number above 0."""
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
    """Rows by split: "train", and "dev" and "test" if the source has them; all rows of a file are "train".

    splits: the source's name of each split; the usual names where the source lacks these.
    Raises ValueError or FileNotFoundError.
    """
    path = Path(name)
    if path.is_file():
        return {"train": rows(path)}
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in FORMATS}
        stems = _choose(files, splits, name)
        return {split: rows(files[stem]) for split, stem in stems.items()}
    if path.suffix in FORMATS or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"data {name!r} is not there: give a file ({', '.join(FORMATS)}), a folder of such files, or a hub id"
        )
    return _from_hub(name, splits)


def split(name: str, wanted: str, splits: Mapping[str, str] | None = None) -> list[Row]:
    """The rows of one split of a source; all rows of a source without splits. Raises ValueError or FileNotFoundError."""
    by_split = read(name, splits)
    if wanted not in by_split and len(by_split) > 1:
        raise ValueError(f"data {name!r} has {' and '.join(by_split)}, and no {wanted}; name the file")
    return by_split.get(wanted) or next(iter(by_split.values()))


def rows(path: Path) -> list[Row]:
    """The rows of a file. Raises ValueError naming the file, the line and the mend."""
    if path.suffix not in FORMATS:
        raise ValueError(f"data {path}: the ending is {path.suffix!r}; it must be one of {', '.join(FORMATS)}")
    if not path.exists():
        raise FileNotFoundError(f"data {path} is not there")
    if path.suffix == ".parquet":
        rows_read = _parquet(path)
    elif path.suffix == ".jsonl":
        rows_read = list(_jsonl(path))
    elif path.suffix == ".json":
        rows_read = _json(path)
    else:
        rows_read = list(_csv(path, "\t" if path.suffix == ".tsv" else ","))
    if not rows_read:
        raise ValueError(f"data {path} has no rows; add some")
    return rows_read


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
            f"data {path}: line {error.lineno} is not JSON ({error.msg}); a file with one object per line must end in .jsonl"
        ) from None
    if not isinstance(whole, list):
        raise ValueError(f"data {path} is a {type(whole).__name__}; it must be a list of objects")
    return [_object(row, f"data {path}: item {number}") for number, row in enumerate(whole, 1)]


def _csv(path: Path, separator: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=separator, strict=True)
    try:
        names = next(reader, [])
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"data {path}: two columns are named {twice[0]!r}; rename one")
        for values in reader:
            if not any(values):
                continue
            if len(values) != len(names):
                problem = f"data {path}: line {reader.line_num} has {len(values)} columns, the header has {len(names)}"
                raise ValueError(f"{problem}; put quotes around texts that contain {separator!r}")
            yield dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise ValueError(f"data {path}: line {reader.line_num} is not CSV ({error})") from None


def _parquet(path: Path) -> list[Row]:
    from pyarrow import ArrowException, parquet

    try:
        rows_read: list[Row] = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise ValueError(f"data {path} is not Parquet: {error}") from None
    return rows_read


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a {type(row).__name__}; it must be an object of columns")
    return row


def _choose(available: Any, splits: Mapping[str, str] | None, name: str) -> dict[str, str]:
    """The source's name of each split."""
    if splits and all(own_name in available for own_name in splits.values()):
        return dict(splits)
    names_by_split = {split: next((own_name for own_name in names if own_name in available), "") for split, names in SPLITS.items()}
    if not names_by_split["train"]:
        if len(available) != 1:
            raise ValueError(f"data {name!r} has no train split; it has {', '.join(available) or 'none'}")
        names_by_split["train"] = next(iter(available))
    return {split: own_name for split, own_name in names_by_split.items() if own_name}


def _from_hub(name: str, splits: Mapping[str, str] | None) -> dict[str, list[Row]]:
    import datasets

    datasets.disable_progress_bars()
    identity, _, configuration = name.partition(":")
    try:
        splits_of_hub = datasets.load_dataset(identity, configuration or None)
    except Exception as error:  # of the hub or the network
        raise ValueError(
            f"data {name!r} is not a file here, and the hub does not provide it: {str(error).splitlines()[0]}"
        ) from None
    return {split: splits_of_hub[own].to_list() for split, own in _choose(splits_of_hub, splits, name).items()}
