"""A run's folder: its files, and whether a new run may use it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from zerograd.journal import Reader, Step
from zerograd.machine.files import require_unlocked, write_text

JOURNAL = "journal.zgj"
METRICS = "metrics.jsonl"
RESULT = "result.json"

BASELINE = "untouched.json"
"""The file of the untrained model's answers; removed when the run has ended."""

FILES = (
    *(JOURNAL, "model/", "tensorboard/", "settings.json", "task.yaml", METRICS, "predictions.jsonl", RESULT),
    "report.html",
)
"""The files of a finished run."""


def existing_parent(folder: Path) -> Path:
    """The nearest existing folder above a folder, or the folder itself.

    Raises ValueError if the folder cannot be made there.
    """
    parent = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if not parent.is_dir():
        raise ValueError(f"out is {folder}, and {parent} is a file; name a folder")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"out is {folder}, and {parent} cannot be written; name a folder that can")
    return parent


def free_disk_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(existing_parent(folder)).free


def require_disk(folder: Path, needed: int) -> None:
    """Raises ValueError if the folder's disk has fewer free bytes than needed."""
    free = free_disk_bytes(folder)
    if free < needed:
        raise ValueError(
            f"out is {folder}; its disk has {free >> 20:,} MB free, and a run writes {needed >> 20:,} MB; name another folder"
        )


def require_free(folder: Path) -> None:
    """Raises ValueError if the folder's run is being written, or was interrupted after a step."""
    path = folder / JOURNAL
    if not path.exists():
        return
    require_unlocked(path)
    if not (folder / RESULT).exists():
        with path.open("rb") as file:
            if any(isinstance(record, Step) for record in Reader(file, path.stat().st_size)):
                mend = f"continue it with --resume {folder}, or name another folder"
                raise ValueError(f"out is {folder}, whose run was interrupted; {mend}")


def clear(folder: Path) -> None:
    """Remove a finished run's journal, result and metrics, to make way for a new run."""
    (folder / JOURNAL).unlink(missing_ok=True)
    (folder / RESULT).unlink(missing_ok=True)
    write_text(folder / METRICS, "")
