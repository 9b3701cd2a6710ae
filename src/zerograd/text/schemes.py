"""Schemes: which parameters of a language model are trained."""

from __future__ import annotations

from typing import Any

from torch import nn

SCHEMES = {
    "full": "every parameter",
    "upper": "the upper half of the layers, or as many as --layers says",
    "norms": "scales and biases of the normalisation layers",
}


def select(model: Any, scheme: str, upper: int = 0) -> None:
    """Set requires_grad on what the scheme trains and clear it on the rest.

    upper: how many layers `upper` trains; 0 for half of them, rounded up.
    Raises ValueError for an unknown scheme, for more layers than there are, or when it trains nothing of this model.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; choose one of {', '.join(SCHEMES)}")
    model.requires_grad_(scheme == "full")
    if scheme == "upper":
        layers = getattr(model.get_decoder(), "layers", None)
        if isinstance(layers, nn.ModuleList):
            if upper > len(layers):
                raise ValueError(f"layers is {upper}; this {type(model).__name__} has {len(layers)}")
            for layer in layers[-(upper or -(-len(layers) // 2)) :]:
                layer.requires_grad_(True)
    if scheme == "norms":
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                module.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"scheme {scheme} trains nothing of this {type(model).__name__}; use full")
