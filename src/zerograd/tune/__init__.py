"""A fine-tuning run: `tune(settings)` takes it from settings to a finished folder, in parts that can be used alone.

`settings` describes a run, `setup` builds it, `loop` trains, `state` is the loop's progress, `resume` continues an
interrupted run from its journal.
"""

from importlib import import_module
from typing import Any

_FACE = {"tune": "run", "rehearse": "dry_run", "TuneSettings": "settings"}


def __getattr__(name: str) -> Any:
    """Load a part on first use: most verbs of the command line need the settings alone."""
    if name in _FACE:
        return getattr(import_module(f"zerograd.tune.{_FACE[name]}"), name)
    raise AttributeError(f"module 'zerograd.tune' has no attribute {name!r}")
