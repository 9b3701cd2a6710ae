r"""Steps on a part of the layers.

    block-wise       step t perturbs and updates block t mod b alone (ZO-LLM's, with noise of each block's own)
    random layers    a step perturbs and updates a random share of them (LeZO, Wang et al. 2024, arXiv 2410.09823)

A block is a layer: the tensors whose names agree up to the first number in them, or those of one module where there is none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

from torch import nn

from zerograd import noise
from zerograd.directions.family import Family
from zerograd.noise import CHANCE, Address
from zerograd.optim.base import Common
from zerograd.optim.shared import Plain
from zerograd.spaces.weights import Slot
from zerograd.update.state import State

DRAWN = 1024
"""Steps whose lots are kept: a replay's pass over a tensor asks for those of as many."""


@dataclass(frozen=True)
class Blocks(Family):
    """share: of the blocks that a step touches, drawn by lot; 0 for one after the other."""

    share: float = 0.0
    blocks: dict[int, int] = field(default_factory=dict, compare=False)

    def begin(self, slots: Sequence[Slot]) -> None:
        numbers: dict[str, int] = {}
        for slot in slots:
            found = re.match(r"(?:group \d+\.)?+.*?\d+(?=\.|$)", slot.name)
            self.blocks[slot.id] = numbers.setdefault(
                found[0] if found else slot.name.rpartition(".")[0] or slot.name, len(numbers)
            )

    def touches(self, slot: Slot, seed: int, step: int) -> bool:
        count = 1 + max(self.blocks.values())
        if not self.share:
            return self.blocks[slot.id] == step % count
        return self.blocks[slot.id] in _drawn(seed, step, count, max(1, round(self.share * count)))


@functools.lru_cache(DRAWN)
def _drawn(seed: int, step: int, count: int, some: int) -> frozenset[int]:
    """The blocks of a step, `some` of `count`."""
    lots = sorted((noise.stream(Address(seed, step, 0, block, CHANCE))[0], block) for block in range(count))
    return frozenset(block for _, block in lots[:some])


class BlockWise(Plain):
    r"""MeZO one block of layers after the other, a block a step.

    Args:
        params, lr, eps, directions, sides, distribution and the rest: as in `MeZO`.
    """

    RATE = 0.1

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        return Blocks(chosen["distribution"]), State()


class RandomLayers(Plain):
    r"""MeZO on a random share of the layers at every step.

    Args:
        share: of the blocks, above 0 and at most 1, at least one block; LeZO's is .25.
        params, lr, eps, directions, sides, distribution and the rest: as in `MeZO`.
    """

    RATE = 0.03

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        share: float = 0.25,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution, "share": share}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        if not 0 < chosen["share"] <= 1:
            raise ValueError(f"share is {chosen['share']}; it must be above 0 and at most 1")
        return Blocks(chosen["distribution"], share=chosen["share"]), State()
