"""A fine-tuning run: `tune(settings)` takes it from settings to a finished folder, in parts that are used alone too.

`settings` say what a run is to be, `setup` makes it, `loop` trains it, `state` is how far the loop is, `resume` goes on from the
journal of a run that was cut off.
"""

from importlib import import_module
from typing import Any

_FACE = {"tune": "run", "rehearse": "dry_run", "TuneSettings": "settings"}


def __getattr__(name: str) -> Any:
    """Load a part when it is first asked for: the settings alone are read by every verb of the command line."""
    if name in _FACE:
        return getattr(import_module(f"zerograd.tune.{_FACE[name]}"), name)
    raise AttributeError(f"module 'zerograd.tune' has no attribute {name!r}")
