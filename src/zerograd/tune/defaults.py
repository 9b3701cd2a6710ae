"""Default learning rates and smoothing radii, by method and by scheme."""

from __future__ import annotations

from zerograd.optim import METHODS, method_of
from zerograd.text.models.schemes import ADAPTERS

SCHEME_SCALES = {"qk": 3.0, "scales": 3.0}
"""Factors of the default eps, and of the default lr of methods without backward passes, relative to the scheme `upper`.
The loss has less curvature in queries and keys (benchmarks/kinds.py).
"""

EPS = 0.02
"""The default smoothing radius, relative to each tensor's rms, of a scheme with scale 1."""


def scheme_scale(scheme: str) -> float:
    """How much to scale lr and eps for a scheme; 1 by default."""
    return SCHEME_SCALES.get(scheme, 1.0)


def default_lr(method: str, scheme: str) -> float:
    """The default learning rate: the method's own, scaled for the scheme if the method takes no backward pass."""
    kind = METHODS[method]
    rate = kind.default_lr if kind.adapter_lr is None or scheme not in ADAPTERS else kind.adapter_lr
    return rate * (1 if method_of(method).takes_backward else scheme_scale(scheme))


def default_eps(method: str, scheme: str) -> float | None:
    """The default smoothing radius, relative to each tensor's rms; None for a method that perturbs nothing."""
    return EPS * scheme_scale(scheme) if method_of(method).perturbs else None


def scales_in_words() -> str:
    """`SCHEME_SCALES` as a text for the help of flags."""
    return ", ".join(f"{scale:g} times that with {scheme}" for scheme, scale in SCHEME_SCALES.items())
