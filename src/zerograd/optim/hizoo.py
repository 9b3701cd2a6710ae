r"""HiZOO: directions preconditioned by a diagonal estimate of the Hessian (Zhao et al., ICLR 2025, arXiv 2402.15173)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zerograd.directions import Dense, Source
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries.shared import ThreePoints
from zerograd.settings.ranges import require_beta
from zerograd.spaces import Space
from zerograd.update import Chunk, Elementwise, GroupStep, Kept


class Curvature(Elementwise):
    """H, float32, one number a weight. It modulates the directions too, by 1 / sqrt(H)."""

    def __init__(self, smoothing: float) -> None:
        require_beta(smoothing, "smoothing")
        self.smoothing = smoothing
        self.hessian: dict[int, torch.Tensor] = {}

    def init(self, space: Space) -> dict[str, torch.Tensor]:
        self.hessian[space.id] = space.zeros().fill_(1)
        return {"hessian": self.hessian[space.id]}

    def change(self, chunk: Chunk, kept: Kept, step: GroupStep) -> torch.Tensor:
        (c, curvature), z, h = step.coefficients, chunk.raw_z(0), kept["hessian"]
        h.copy_(h * (1 - self.smoothing) + (h * (z * z)).mul_(curvature * self.smoothing))
        return z.mul_(c).div_(h.sqrt())

    def applies(self, space: Space) -> bool:
        return True

    def values(self, source: Source, space: Space, rows: torch.Tensor, columns: slice) -> torch.Tensor:
        h = self.hessian[space.id][rows, columns]
        return torch.ones_like(h).div_(h.sqrt())


@dataclass(frozen=True)
class Settings(MethodSettings):
    """smoothing: a, 0 <= a < 1; the published code's is 1e-8, with which H stays 1 for thousands of steps.
    distribution: "gaussian", as in the paper, or "rademacher".
    """

    smoothing: float = 1e-8
    distribution: str = "gaussian"

    def build(self) -> Method:
        curvature = Curvature(self.smoothing)
        return Method(Dense(self.distribution, modulation=curvature), ThreePoints(), curvature)


class HiZOO(ZerothOrder):
    r"""Zeroth-order SGD preconditioned by a diagonal Hessian estimate, in three evaluations.

    .. math::
        D = s \odot z / \sqrt H, \qquad
        H \leftarrow (1 - a) H + a \frac{|L(w + \epsilon D) + L(w - \epsilon D) - 2 L(w)|}{2 \epsilon^2} H \odot z^2, \qquad
        w \leftarrow (1 - \gamma \lambda) w - \gamma\, c\, s \odot z / \sqrt H

    H begins as 1, in units of each tensor's scale.
    """

    Settings = Settings
    default_lr = 0.01
