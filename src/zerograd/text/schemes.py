"""Schemes: which parameters of a language model are trained."""

from __future__ import annotations

from typing import Any

from torch import nn

SCHEMES = {
    "full": "every parameter",
    "upper": "the last third of the layers",
    "norms": "scales and biases of the normalisation layers",
}


def select(model: Any, scheme: str) -> None:
    """Set requires_grad on what the scheme trains and clear it on the rest.

    Raises ValueError for an unknown scheme, or when it trains nothing of this model.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; choose one of {', '.join(SCHEMES)}")
    model.requires_grad_(scheme == "full")
    if scheme == "upper":
        layers = getattr(model.get_decoder(), "layers", None)
        if isinstance(layers, nn.ModuleList):
            for layer in layers[len(layers) - -(-len(layers) // 3) :]:
                layer.requires_grad_(True)
    if scheme == "norms":
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                module.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"scheme {scheme} trains nothing of this {type(model).__name__}; use full")
