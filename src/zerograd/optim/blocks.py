"""MeZO on a part of the layers at a time; see `directions.blocks` for what a block is."""

from __future__ import annotations

from dataclasses import dataclass

from zerograd.directions import Dense
from zerograd.directions.blocks import InTurn, RandomShare
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.optim.ranges import require_share
from zerograd.queries.shared import shared


@dataclass(frozen=True)
class BlockWiseSettings(MethodSettings):
    """directions, sides, distribution: as in `mezo`."""

    directions: int = 1
    sides: int = 2
    distribution: str = "rademacher"

    def build(self) -> Method:
        return Method(Dense(self.distribution, activity=InTurn()), shared(self.directions, self.sides))


class BlockWise(ZerothOrder):
    """MeZO one block of layers after the other: step t perturbs and updates block t mod b alone (ZO-LLM's block-wise,
    with noise of each block's own).
    """

    Settings = BlockWiseSettings
    default_lr = 0.1


@dataclass(frozen=True)
class RandomLayersSettings(MethodSettings):
    """share: of the blocks, above 0 and at most 1, at least one block; LeZO's is .25. directions, sides, distribution:
    as in `mezo`.
    """

    share: float = 0.25
    directions: int = 1
    sides: int = 2
    distribution: str = "rademacher"

    def build(self) -> Method:
        require_share(self.share, "share", "the blocks")
        return Method(Dense(self.distribution, activity=RandomShare(self.share)), shared(self.directions, self.sides))


class RandomLayers(ZerothOrder):
    """MeZO on a random share of the layers at every step (LeZO, Wang et al. 2024, arXiv 2410.09823)."""

    Settings = RandomLayersSettings
    default_lr = 0.03
