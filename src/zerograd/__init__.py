"""zerograd: zeroth-order optimisation with evaluations alone.

opt = zerograd.optim.MeZO(model); loss = opt.step(objective, batch)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerograd import noise, optim

from zerograd.version import __version__

__all__ = ["__version__", "load", "noise", "optim"]


def load(path: str, base: str = "", device: str = "cpu") -> Any:
    """A tuned model from its shipped file, its journal, or the folder of its run: an object with `model` and `tokenizer`.

    base: the model that the run began from, where it is now; where it was then, when empty.
    Raises FileNotFoundError, ValueError for another base or a damaged file, or ModuleNotFoundError without the extra `text`.
    """
    from zerograd.runs import replayed as journals

    return journals.replayed(journals.read(journals.find(path)), base, device=device)


def __getattr__(name: str) -> Any:
    """Load a part when it is first asked for, so that the command line can prepare the environment before torch."""
    if name in ("noise", "optim"):
        return import_module(f"zerograd.{name}")
    raise AttributeError(f"module 'zerograd' has no attribute {name!r}")
