"""A layer whose losses and gradients are written in float64 numpy too, and optimisers of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from zerograd import optim

LR, EPS = 0.05, 0.75
"""eps is large: losses are float32, and what they are off by is divided by it. The rules hold at any."""

Array = npt.NDArray[np.float64]


class Layer(nn.Module):
    """A matrix, a vector and a stack of two matrices, and a loss an example that is linear or quadratic in them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.kind = kind
        self.weight = nn.Parameter(torch.randn(4, 6, generator=generator))
        self.bias = nn.Parameter(torch.randn(4, generator=generator))
        self.experts = nn.Parameter(torch.randn(2, 4, 3, generator=generator))

    def losses(self, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """batch: x (examples, 6), y (examples, 4), u (examples, 2, 3)."""
        x, y, u = batch
        out = F.linear(x, self.weight, self.bias) + torch.einsum("eoi,bei->bo", self.experts, u)
        return (out * y).sum(1) if self.kind == "linear" else (out - y).square().sum(1) / 2

    def losses_in_float64(self, w: Array, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Array:
        """The same of a flat w."""
        x, y, u = (t.double().numpy() for t in batch)
        weight, bias, experts = w[:24].reshape(4, 6), w[24:28], w[28:].reshape(2, 4, 3)
        out = x @ weight.T + bias + u[:, 0] @ experts[0].T + u[:, 1] @ experts[1].T
        return (out * y).sum(1) if self.kind == "linear" else ((out - y) ** 2).sum(1) / 2

    def gradients_in_float64(self, w: Array, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Array:
        """Of each example's loss: (examples, weights)."""
        x, y, u = (t.double().numpy() for t in batch)
        weight, bias, experts = w[:24].reshape(4, 6), w[24:28], w[28:].reshape(2, 4, 3)
        of_out = y if self.kind == "linear" else x @ weight.T + bias + u[:, 0] @ experts[0].T + u[:, 1] @ experts[1].T - y
        of_experts = of_out[:, None, :, None] * u[:, :, None, :]  # (examples, 2, 4, 3)
        parts = of_out[:, :, None] * x[:, None, :], of_out, of_experts
        return np.concatenate([part.reshape(len(x), -1) for part in parts], 1)


def data(examples: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x, y, u = (torch.randn(examples, *rest, generator=generator) for rest in ((6,), (4,), (2, 3)))
    return x / 4, y / 2, u / 4


def flat(opt: Any) -> Array:
    """The weights that are being optimised, tensor after tensor."""
    return np.concatenate([space.exact().detach().double().numpy().ravel() for space in opt.spaces])


SIGMAS = 4.5
"""Standard errors that a mean may be off by; seeds are fixed, so no test is flaky."""

METHODS = [name for name in optim.METHODS if (method := optim.method_of(name)).perturbs and not method.takes_backward]
"""Those of evaluations alone."""


def made(name: str, params: Any, **settings: Any) -> Any:
    common = {"lr": LR, "relative": False, "seed": 6, "self_check": False} | (
        {"eps": EPS} if optim.method_of(name).perturbs else {}
    )
    return optim.METHODS[name](params, **(common | settings))


def off(samples: Any, expected: float) -> float:
    """Standard errors between the mean of samples and what it should be."""
    values = np.asarray(samples, dtype=float)
    return abs(float(values.mean()) - expected) / (float(values.std(ddof=1)) / math.sqrt(len(values)))


class Tower(nn.Module):
    """Layers of one shape, and a norm, whose two vectors are one block."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.norm(x)

    def losses(self, x: torch.Tensor) -> torch.Tensor:
        return (self(x) - torch.linspace(0, 2, 8)).square().sum(1)

    def reading(self, block: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """A loss of one block alone."""
        if block == "norm":
            return lambda x: (x * self.norm.weight + self.norm.bias).sum(1)
        return lambda x: self.get_submodule(block)(x).sum(1)
