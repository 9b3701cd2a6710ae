"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_yaml(path: Path, kind: str, otherwise: str) -> dict[str, Any]:
    """The fields of a YAML file. kind: what it is, as messages call it. otherwise: where one comes from.

    Raises FileNotFoundError or ValueError in one line.
    """
    import yaml

    if not path.exists():
        raise FileNotFoundError(f"{kind} {path} is not there; {otherwise}")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{kind} {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{kind} {path} holds a {type(fields).__name__}; it must be fields and values")
    return fields


def write_text(path: Path, text: str) -> None:
    """Write a file; a reader sees the old one or the whole new one, never a part. Raises OSError, which names the file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")
        partial.replace(path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of what is at the path once it is whole. Raises OSError when it cannot be filled."""
    from safetensors import SafetensorError

    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    except SafetensorError as error:  # what a full disk is to safetensors
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
