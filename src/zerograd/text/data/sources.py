"""Rows by name: files, folders as hubs and `datasets` write them, and data sets of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zerograd.text.data import files
from zerograd.text.data.files import FORMATS, Row
from zerograd.text.data.folders import SPLITS, files_by_split


@dataclass(frozen=True)
class Source:
    """A source of rows.

    name: a file, a folder, or a hub id with its configuration after a colon. weight: how often an epoch uses each
    training row; with 0.5, half of the rows. notes: lines about what was guessed as it was read.
    """

    name: str
    weight: float = 1.0
    notes: list[str] = field(default_factory=list, compare=False, repr=False)
    _read: dict[str, dict[str, list[Row]]] = field(default_factory=dict, compare=False, repr=False)

    def read(self, splits: Mapping[str, str] | None = None) -> dict[str, list[Row]]:
        """The rows by split, read once; see the function `read`."""
        key = repr(splits)
        if key not in self._read:
            self.notes.clear()
            self._read[key] = read(self.name, dict(splits or {}), self.notes)
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


def read(name: str, splits: Mapping[str, str] | None = None, notes: list[str] | None = None) -> dict[str, list[Row]]:
    """Rows by split: "train", and "dev" and "test" if the source has them; all rows of a file are "train".

    splits: the source's name of each split; the usual names where the source lacks these. notes: takes lines about guesses.
    Raises ValueError or FileNotFoundError.
    """
    path = Path(name)
    if path.is_file():
        return {"train": files.rows(path, notes)}
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _saved(path, splits)
        by_split = files_by_split(path, splits)
        return {split: [row for file in parts for row in files.rows(file, notes)] for split, parts in by_split.items()}
    if path.suffix in FORMATS or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"data {name!r} is not there: give a file ({', '.join(FORMATS)}), a folder of such files, or a hub id"
        )
    return _from_hub(name, splits)


def split(name: str, wanted: str, splits: Mapping[str, str] | None = None, notes: list[str] | None = None) -> list[Row]:
    """The rows of one split of a source; all rows of a source without splits. Raises ValueError or FileNotFoundError."""
    by_split = read(name, splits, notes)
    if wanted not in by_split and len(by_split) > 1:
        raise ValueError(f"data {name!r} has {' and '.join(by_split)}, and no {wanted}; name the file")
    return by_split.get(wanted) or next(iter(by_split.values()))


def _saved(folder: Path, splits: Mapping[str, str] | None) -> dict[str, list[Row]]:
    """The rows of what the datasets library has saved to disk: one data set, or one of each split."""
    import datasets

    datasets.disable_progress_bars()
    try:
        saved = datasets.load_from_disk(str(folder))
        by_name = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        chosen = _choose(by_name, splits, str(folder))
        return {split: _columns(by_name[own]) for split, own in chosen.items()}
    except ValueError:
        raise
    except Exception as error:  # of the library, which raises what it likes
        raise ValueError(f"data {folder}: the saved data set cannot be read ({_first_line(error)}); save it again") from None


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
        raise ValueError(f"data {name!r} is not a file here, and the hub does not provide it: {_first_line(error)}") from None
    return {split: _columns(splits_of_hub[own]) for split, own in _choose(splits_of_hub, splits, name).items()}


def _columns(table: Any) -> list[Row]:
    """The rows of a data set of the datasets library, without NaN."""
    return [files.plain_row(row, f"row {number}") for number, row in enumerate(table.to_list(), 1)]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
