"""Atomic writes of files and folders, and locks that let one process write at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from zerograd.errors import FileLocked


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old or the new content. Raises OSError naming the file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
        partial.replace(path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill in the block, which then replaces the path. Raises OSError if it cannot be filled."""
    from safetensors import SafetensorError

    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    except SafetensorError as error:  # safetensors' error for a full disk
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder and lock it against other processes for the length of the block. An empty folder is removed at the
    end.

    Raises FileLocked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with path.open("wb") as file:
        lock(file.fileno(), folder)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()


def require_unlocked(path: Path) -> None:
    """Raises FileLocked if another process has locked a file."""
    with path.open("rb") as file:
        lock(file.fileno(), path)


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files durable, if the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_all(handle: int, data: bytes) -> None:
    """Write all of the data to an open file. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def lock(handle: int, path: Path, *, wait: bool = False) -> None:
    """Lock an open file until this process closes it or ends; does nothing on a system without file locks.

    path: the name in the message. wait: whether to wait for another process.
    Raises FileLocked without waiting.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise FileLocked(f"{path} is being written by another process; wait for it, or stop it") from None
