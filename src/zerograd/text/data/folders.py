"""The files of a folder by split: none is left out without a word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zerograd.text.data.files import FORMATS, ending

SPLITS = {"train": ("train", "training"), "dev": ("dev", "validation", "valid", "val", "eval"), "test": ("test", "testing")}
"""The names of a folder's files, or of a hub data set's splits, that each split may have."""

SHARD = re.compile(r"(?P<base>.+?)-(?P<number>\d{5})-of-(?P<of>\d{5})")
"""A part of a split, as hubs name it."""

PART = re.compile(r"[-_. ]*(part|shard|chunk)?[-_. ]*\d+$", re.IGNORECASE)
"""The end of the name of one of several files that belong together."""

ABOUT = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "package.json",
    "metadata.json",
}
"""Files of a folder that describe its data."""

OTHER_FORMATS = (
    ".xlsx",
    ".xls",
    ".ods",
    ".txt",
    ".arrow",
    ".feather",
    ".pkl",
    ".pickle",
    ".zst",
    ".zip",
    ".xz",
    ".bz2",
    ".xml",
    ".db",
)
"""Endings of data that is not read."""


@dataclass(frozen=True)
class _File:
    """A data file. base: its name without ending and part. split: the one that it is named after, or ""."""

    path: Path
    base: str
    split: str
    number: int
    of: int


def files_by_split(folder: Path, own_names: Mapping[str, str] | None = None) -> dict[str, list[Path]]:
    """The files of each split of a folder, those of a split in order.

    own_names: the folder's name of each split; used where it has them all, and the usual names otherwise.
    Raises ValueError for a file that belongs to no split, for a split that is there twice, and for missing parts.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    unread = [path for path in found if ending(path) in OTHER_FORMATS and _usual_split(_base(path)[0])]
    if unread:
        raise ValueError(f"data {folder}: {unread[0].name} is not read; save it as one of {', '.join(FORMATS)}")
    data = [path for path in found if ending(path) in FORMATS and path.name not in ABOUT]
    if own_names:
        named = {
            split: [_file(path, folder, split) for path in data if name in (_base(path)[0], path.parent.name)]
            for split, name in own_names.items()
        }
        if all(named.values()):
            return {split: _in_order(folder, split, files) for split, files in named.items()}
    files = [_file(path, folder) for path in data]
    if not any(file.split for file in files) and len({(file.path.parent, PART.sub("", file.base)) for file in files}) == 1:
        return {"train": _in_order(folder, "train", files)}
    by_split = {split: [file for file in files if file.split == split] for split in SPLITS}
    if not by_split["train"]:
        raise ValueError(f"data {str(folder)!r} has no train split; it has {', '.join(_names(files)) or 'none'}")
    homeless = [file for file in files if not file.split]
    if homeless:
        name = homeless[0].path.relative_to(folder)
        raise ValueError(
            f"data {folder}: {name} belongs to no split; name the files with --data, --dev and --test, or move it away"
        )
    return {split: _in_order(folder, split, of_split) for split, of_split in by_split.items() if of_split}


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _base(path: Path) -> tuple[str, int, int]:
    """(name without endings and part, number of the part, number of parts or 0)."""
    stem = path.name[: path.name.lower().rindex(ending(path))] if ending(path) else path.stem
    part = SHARD.fullmatch(stem)
    return (part["base"], int(part["number"]), int(part["of"])) if part else (stem, 0, 0)


def _file(path: Path, folder: Path, split: str = "") -> _File:
    base, number, of = _base(path)
    inside = path.relative_to(folder).parts[:-1]
    split = split or _usual_split(base) or next((found for part in reversed(inside) if (found := _usual_split(part))), "")
    return _File(path, base, split, number, of)


def _usual_split(name: str) -> str:
    """The split that a name speaks of, alone or among other words; "" for none or for several."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    spoken = [split for split, names in SPLITS.items() if words & set(names)]
    return spoken[0] if len(spoken) == 1 else ""


def _in_order(folder: Path, split: str, files: list[_File]) -> list[Path]:
    """The files of one split, parts in order. Raises ValueError where they are not parts of one table."""
    names = [str(file.path.relative_to(folder)) for file in files]
    if len({(file.path.parent, PART.sub("", file.base)) for file in files}) > 1:
        raise ValueError(f"data {folder}: {_and(names)} are all for {split}; give --data the one that is meant, or name several")
    if len({ending(file.path) for file in files}) > 1 or len({(file.base, file.number, file.of) for file in files}) < len(files):
        raise ValueError(f"data {folder}: {_and(names)} may hold the same rows; give --data the one that is meant")
    of = {file.of for file in files}
    if len(of) > 1:
        raise ValueError(f"data {folder}: {_and(names)} are parts of different tables; give --data the ones that are meant")
    missing = sorted(set(range(max(of, default=0))) - {file.number for file in files})
    if missing:
        raise ValueError(f"data {folder}: part {missing[0]} of {max(of)} of {split} is missing; fetch it")
    return [file.path for file in sorted(files, key=lambda file: (file.number, _numbers(file.path.name), file.path.name))]


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _names(files: Iterable[_File]) -> list[str]:
    return list(dict.fromkeys(file.base for file in files))


def _and(names: list[str]) -> str:
    shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    return ", ".join(shown[:-1]) + f" and {shown[-1]}"
