r"""ZO-SGD with momentum (ZO-SGD-MMT in Zhang et al. 2024, arXiv 2402.11592; torch's convention)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, SharedSettings
from zerograd.settings.ranges import require_beta
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
class Settings(SharedSettings):
    """beta: 0 <= beta < 1; the paper's is 0.9."""

    beta: float = 0.9

    def build(self) -> Method:
        return Method(Dense(self.distribution), self.query(), MomentumRule(self.beta))


class Momentum(ZerothOrder):
    r"""Zeroth-order SGD with heavy-ball momentum; g is the estimate.

    .. math:: m \leftarrow \beta m + g, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \odot m
    """

    Settings = Settings
    default_lr = 1e-3
