"""MeZO on a part of the layers at a time; see `directions.blocks` for what a block is."""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import Dense
from zerograd.directions.blocks import InTurn, RandomShare
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, SharedSettings
from zerograd.settings.ranges import require_share


@dataclass(frozen=True)
class BlockWiseSettings(SharedSettings):
    def build(self) -> Method:
        return Method(Dense(self.distribution, activity=InTurn()), self.query())


class BlockWise(ZerothOrder):
    """MeZO one block of layers after the other: step t perturbs and updates block t mod b alone (ZO-LLM's block-wise,
    with noise of each block's own).
    """

    Settings = BlockWiseSettings
    default_lr = 0.1


@dataclass(frozen=True)
class RandomLayersSettings(SharedSettings):
    """share: of the blocks, above 0 and at most 1, at least one block; LeZO's is .25."""

    share: float = 0.25

    def build(self) -> Method:
        require_share(self.share, "share", "the blocks")
        return Method(Dense(self.distribution, activity=RandomShare(self.share)), self.query())


class RandomLayers(ZerothOrder):
    """MeZO on a random share of the layers at every step (LeZO, Wang et al. 2024, arXiv 2410.09823)."""

    Settings = RandomLayersSettings
    default_lr = 0.03
