"""The learning rate and smoothing radius that a run gets where its settings name none: by method and by scheme."""

from __future__ import annotations

from zerograd.optim import METHODS
from zerograd.text.models.schemes import ADAPTERS

SCHEME_SCALES = {"qk": 3.0}
"""How many times as far as with the scheme `upper` a perturbation goes, and a step without backward passes: eps and lr are the
usual ones times this. The loss is less curved in queries and keys (benchmarks/kinds.py)."""

EPS = 0.02
"""The smoothing radius, relative to each tensor's rms, of a scheme whose scale is 1."""


def scheme_scale(scheme: str) -> float:
    """How much to scale lr and eps for a scheme; 1 by default."""
    return SCHEME_SCALES.get(scheme, 1.0)


def default_lr(method: str, scheme: str) -> float:
    """The usual learning rate: the method's own, scaled for the scheme where the method takes no backward pass."""
    kind = METHODS[method]
    rate = kind.RATE if kind.ADAPTER_RATE is None or scheme not in ADAPTERS else kind.ADAPTER_RATE
    return rate * (1 if kind.takes_backward else scheme_scale(scheme))


def default_eps(method: str, scheme: str) -> float | None:
    """The usual smoothing radius, relative to each tensor's rms; None for a method that perturbs nothing."""
    return EPS * scheme_scale(scheme) if METHODS[method].perturbs else None


def scales_in_words() -> str:
    """The scales of `SCHEME_SCALES`, as the help of a flag says them."""
    return ", ".join(f"{scale:g} times that with {scheme}" for scheme, scale in SCHEME_SCALES.items())
