"""A user's own function or class, from a module or a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any


def load_user_object(name: str, what: str) -> Any:
    """A user's function or class by `module:name` or `file.py:name`. what: the object's name in messages.

    Raises ValueError if the object does not exist, or its module fails.
    """
    where, _, function = name.rpartition(":")
    try:
        if where.endswith(".py"):
            module = _from_file(Path(where), name)
        else:
            sys.path.insert(0, str(Path.cwd()))
            try:
                module = importlib.import_module(where)
            finally:
                sys.path.pop(0)
    except ImportError as error:
        raise ValueError(f"{what} {name!r}: {error}; give module:function, or file.py:function") from None
    except Exception as error:  # of anything that the file runs
        raise ValueError(f"{what} {name!r}: {where} fails: {type(error).__name__}: {error}") from None
    loaded = getattr(module, function, None)
    if not callable(loaded):
        raise ValueError(f"{what} {name!r}: {where} has no function {function}")
    return loaded


def _from_file(path: Path, name: str) -> Any:
    if not path.exists():
        raise ImportError(f"{path} is not there")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
