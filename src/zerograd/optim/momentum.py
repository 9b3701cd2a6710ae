r"""ZO-SGD with momentum (ZO-SGD-MMT in Zhang et al. 2024, arXiv 2402.11592; torch's convention)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.optim.ranges import require_beta
from zerograd.queries.shared import shared
from zerograd.spaces import Space
from zerograd.update import Chunk, Elementwise, GroupStep, Kept


class MomentumRule(Elementwise):
    """m, float32, one number a weight."""

    def __init__(self, beta: float) -> None:
        require_beta(beta)
        self.beta = beta

    def init(self, space: Space) -> dict[str, torch.Tensor]:
        return {"momentum": space.zeros()}

    def change(self, chunk: Chunk, kept: Kept, step: GroupStep) -> torch.Tensor:
        return kept["momentum"].mul_(self.beta).add_(chunk.estimate())


@dataclass(frozen=True)
class Settings(MethodSettings):
    """beta: 0 <= beta < 1; the paper's is 0.9. directions, sides, distribution: as in `mezo`."""

    beta: float = 0.9
    directions: int = 1
    sides: int = 2
    distribution: str = "rademacher"

    def build(self) -> Method:
        return Method(Dense(self.distribution), shared(self.directions, self.sides), MomentumRule(self.beta))


class Momentum(ZerothOrder):
    r"""Zeroth-order SGD with heavy-ball momentum; g is the estimate.

    .. math:: m \leftarrow \beta m + g, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \odot m
    """

    Settings = Settings
    default_lr = 1e-3
