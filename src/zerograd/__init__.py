"""zerograd: zeroth-order optimisation with evaluations alone.

opt = zerograd.optim.MeZO(model); loss = opt.step(objective, batch)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerograd import errors, noise, optim, quantised, rewards, tune
    from zerograd.integrations.rewards import ESConfig, ESTrainer
    from zerograd.integrations.transformers import ZerothOrderConfig, ZerothOrderMixin
    from zerograd.runs.replayed import load

from zerograd.version import __version__

__all__ = [
    "ESConfig",
    "ESTrainer",
    "ZerothOrderConfig",
    "ZerothOrderMixin",
    "__version__",
    "errors",
    "load",
    "noise",
    "optim",
    "quantised",
    "rewards",
    "tune",
]

_PACKAGES = ("errors", "noise", "optim", "quantised", "rewards", "tune")

_OBJECTS = {
    "load": "zerograd.runs.replayed",
    "ESConfig": "zerograd.integrations.rewards",
    "ESTrainer": "zerograd.integrations.rewards",
    "ZerothOrderConfig": "zerograd.integrations.transformers",
    "ZerothOrderMixin": "zerograd.integrations.transformers",
}


def __getattr__(name: str) -> Any:
    """Load a part when it is first asked for, so that the command line can prepare the environment before torch."""
    if name in _PACKAGES:
        return import_module(f"zerograd.{name}")
    if name in _OBJECTS:
        return getattr(import_module(_OBJECTS[name]), name)
    raise AttributeError(f"module 'zerograd' has no attribute {name!r}")
