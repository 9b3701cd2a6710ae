"""Directions in a part of the layers: one block a step in turn, a random share of them, or the first ones alone.

A block is a layer: the tensors whose names agree up to the first number in them, or those of one module where there is
none.
"""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from zerograd import noise
from zerograd.noise import CHANCE, Address
from zerograd.spaces import Space

DRAWN_STEPS = 1024
"""Steps whose random blocks are cached: a replay's pass over a tensor asks for those of as many."""


class Blocks(ABC):
    """Base of the three. block_of: the number of each space's block, by the space's id."""

    def __init__(self) -> None:
        self.block_of: dict[int, int] = {}

    def init(self, spaces: Sequence[Space]) -> None:
        """Number the blocks in the order of their first tensors."""
        numbers: dict[str, int] = {}
        for space in spaces:
            found = re.match(r"(?:group \d+\.)?+.*?\d+(?=\.|$)", space.name)
            name = found[0] if found else space.name.rpartition(".")[0] or space.name
            self.block_of[space.id] = numbers.setdefault(name, len(numbers))

    @property
    def count(self) -> int:
        return 1 + max(self.block_of.values())

    @abstractmethod
    def is_active(self, space: Space, seed: int, step: int) -> bool:
        """Whether a step perturbs and updates a space."""


class InTurn(Blocks):
    """Step t has directions in block t mod count."""

    def is_active(self, space: Space, seed: int, step: int) -> bool:
        return self.block_of[space.id] == step % self.count


class RandomShare(Blocks):
    """A step has directions in a random share of the blocks, at least one."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def is_active(self, space: Space, seed: int, step: int) -> bool:
        return self.block_of[space.id] in _chosen(seed, step, self.count, max(1, round(self.share * self.count)))


class Shallow(Blocks):
    """Every step has directions in the first blocks alone. deep: share of the blocks, at the end, without directions:
    at least one block, and not all.
    """

    def __init__(self, deep: float) -> None:
        super().__init__()
        self.deep = deep

    def init(self, spaces: Sequence[Space]) -> None:
        super().init(spaces)
        if self.count == 1:
            raise ValueError("what is trained is one block of layers, which cannot be shared out; train more, or use AdamW or MeZO")

    def is_active(self, space: Space, seed: int, step: int) -> bool:
        return self.block_of[space.id] < self.count - min(self.count - 1, max(1, round(self.deep * self.count)))


@functools.lru_cache(DRAWN_STEPS)
def _chosen(seed: int, step: int, count: int, some: int) -> frozenset[int]:
    """The blocks of a step, `some` of `count`: the ones with the smallest random words."""
    words = sorted((noise.stream(Address(seed, step, 0, block, CHANCE))[0], block) for block in range(count))
    return frozenset(block for _, block in words[:some])
