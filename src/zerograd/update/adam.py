"""Adam's rule: of a zeroth-order estimate, or of a gradient."""

from __future__ import annotations

import torch

from zerograd.settings.ranges import require_moments
from zerograd.spaces import Space
from zerograd.update.rule import Elementwise, Kept, power
from zerograd.update.step import GroupStep
from zerograd.update.target import Chunk


class AdamRule(Elementwise):
    """m and v, float32, two numbers a weight."""

    def __init__(self, betas: tuple[float, float], zeta: float) -> None:
        require_moments(betas, zeta)
        self.betas = betas
        self.zeta = zeta

    def init(self, space: Space) -> dict[str, torch.Tensor]:
        return {"first": space.zeros(), "second": space.zeros()}

    def change(self, chunk: Chunk, kept: Kept, step: GroupStep) -> torch.Tensor:
        (b1, b2), g = self.betas, chunk.estimate()
        v = kept["second"].mul_(b2).add_((g * g).mul_(1 - b2))
        m = kept["first"].mul_(b1).add_(g.mul_(1 - b1))
        c1, c2 = (1 / (1 - power(beta, step.count)) for beta in self.betas)
        return (m * c1).div_((v * c2).sqrt_().add_(self.zeta))
