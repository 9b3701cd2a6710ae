"""Addax: gradients of the short examples, evaluations of the long ones (Li et al., ICLR 2025, arXiv 2410.06441)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zerograd.directions import Dense
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Gradient, Method, MethodSettings
from zerograd.queries.shared import CentralDifferences


@dataclass(frozen=True)
class WeightedSides(CentralDifferences):
    """Two sides whose coefficients are multiplied by a weight."""

    weight: float = 1.0

    def coefficients(self, differences: torch.Tensor, radius: float) -> torch.Tensor:
        return super().coefficients(differences, radius) * self.weight


@dataclass(frozen=True)
class Settings(MethodSettings):
    """alpha: weight of the evaluations, at least 0 and at most 1; the paper's is about 1e-3. share: of a batch, the
    first examples of it, whose gradient is taken: above 0 and below 1; `zerograd tune` puts the shortest first.
    distribution: as in MeZO. checkpointing: as in SGD.
    """

    alpha: float = 1e-3
    share: float = 0.25
    distribution: str = "rademacher"
    checkpointing: bool = False

    def build(self) -> Method:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}; it must be at least 0 and at most 1")
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; it is a share of a batch, above 0 and below 1")
        gradient = Gradient(share=self.share, weight=1 - self.alpha, checkpointing=self.checkpointing)
        return Method(Dense(self.distribution), WeightedSides(weight=self.alpha), gradient=gradient)


class Addax(ZerothOrder):
    r"""Gradients of the short examples, whose activations are few, and evaluations of the long ones.

    .. math:: w \leftarrow (1 - \gamma \lambda) w - \gamma \big(\alpha\, c\, D + (1 - \alpha)\, s^2 g\big)

    MeZO's learning rate is lr times alpha, and SGD's lr times s^2; relative=False has the paper's rule, with SGD's lr.
    """

    Settings = Settings
    default_lr = 0.25
