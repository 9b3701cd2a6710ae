"""Hybrid ZO-FO: MeZO in the shallow layers, Adam in the deep ones (Zhang et al. 2024, arXiv 2402.11592; ElasticZO
2025).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zerograd.directions import Dense
from zerograd.directions.blocks import Shallow
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Gradient, Method, MethodSettings
from zerograd.queries.shared import shared
from zerograd.spaces import Space
from zerograd.update import AdamRule, Chunk, GroupStep, Kept


class DeepAdam(AdamRule):
    """Adam's moments of the deep layers alone. ratio: of their learning rate to the shallow layers'."""

    def __init__(self, shallow: Shallow, ratio: float, betas: tuple[float, float], zeta: float) -> None:
        super().__init__(betas, zeta)
        if not ratio >= 0:
            raise ValueError(f"ratio is {ratio}; it must be at least 0")
        self.shallow = shallow
        self.ratio = ratio

    def init(self, space: Space) -> dict[str, torch.Tensor]:
        return {} if self.shallow.is_active(space, 0, 0) else super().init(space)

    def change(self, chunk: Chunk, kept: Kept, step: GroupStep) -> torch.Tensor:
        return super().change(chunk, kept, step).mul_(self.ratio)


@dataclass(frozen=True)
class Settings(MethodSettings):
    """deep: share of the layers, the last ones, that follow the gradient: above 0 and below 1; at least one does, and
    not all. ratio: the deep layers' learning rate over the shallow ones', at least 0. betas, zeta, checkpointing: as in
    AdamW. distribution: as in MeZO.
    """

    deep: float = 0.5
    ratio: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    zeta: float = 1e-8
    distribution: str = "rademacher"
    checkpointing: bool = False

    def build(self) -> Method:
        if not 0 < self.deep < 1:
            raise ValueError(f"deep is {self.deep}; it is a share of the layers, above 0 and below 1")
        shallow = Shallow(self.deep)
        rule = DeepAdam(shallow, self.ratio, self.betas, self.zeta)
        gradient = Gradient(inactive_only=True, checkpointing=self.checkpointing)
        return Method(Dense(self.distribution, activity=shallow), shared(), rule, gradient)


class Hybrid(ZerothOrder):
    """MeZO below, Adam above. lr is the shallow layers', as in `MeZO`.

    Raises ValueError where a single block of layers is trained; see `directions.blocks` for what a block is.
    """

    Settings = Settings
    default_lr = 0.01
