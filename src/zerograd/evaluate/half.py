"""Products in bfloat16 on a CPU that has no instructions for them (AVX-512 or AMX).

torch multiplies there without vectors. Cast to float32, multiplied, and rounded once, a product is four to five times as fast
(docs/numerics.md) and no less exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

IS_SLOW = not torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether this CPU has no products in bfloat16."""

VALUES = 1 << 19
"""Values of a weight that are cast at a time."""


def is_slow(x: torch.Tensor) -> bool:
    """Whether a product with x is better done in float32. Gradients are taken of the product as it is written."""
    return IS_SLOW and x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + bias, as `torch.nn.functional.linear`."""
    if not is_slow(x) or weight.dtype != x.dtype or weight.ndim != 2:
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1]).float()
    y = x.new_empty((len(flat), len(weight)))
    step = max(1, VALUES // max(1, weight.shape[1]))
    for first in range(0, len(weight), step):
        some = slice(first, first + step)
        y[:, some] = F.linear(flat, weight[some].float(), None if bias is None else bias[some].float())
    return y.view(*x.shape[:-1], len(weight))


class FastProducts(TorchFunctionMode):
    """The linear layers of whatever runs inside the `with` block go through `linear`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (linear if func is F.linear else func)(*args, **(kwargs or {}))


class FastLayers:
    """The linear layers of a model go through `linear` while this is on, without a mode that every operation would pass.

    on: whether they do; in the `with` block it begins on. Where torch multiplies fast, nothing is changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.on = True
        wanted = IS_SLOW and _get_current_function_mode() is None  # type: ignore[no-untyped-call]  # a mode has ways of its own
        self._layers = [m for m in model.modules() if type(m) is nn.Linear and "forward" not in vars(m)] if wanted else []

    def __enter__(self) -> Self:
        for layer in self._layers:
            layer.forward = functools.partial(self._of, layer)  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        for layer in self._layers:
            del layer.forward

    def _of(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        plain = self.on and type(layer.weight) is nn.Parameter
        return (linear if plain else F.linear)(x, layer.weight, layer.bias)


def fast_products() -> AbstractContextManager[Any]:
    """`FastProducts` where they are faster, around passes of the plain model."""
    return FastProducts() if IS_SLOW else nullcontext()
