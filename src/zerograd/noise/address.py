"""The address of a random number, and the two Philox stages that turn an address into bits.

    stage one   counter (step, direction, tensor, domain), key seed      ->  four words k0 k1 k2 k3
    stage two   counter (column block, row, k2, k3),       key (k0, k1)  ->  128 bits

Philox is a bijection of its counter for each key, so within one seed two different addresses never share
a stage-two (counter, key). The layout is frozen: the same address always gives the same number (`LAYOUT`).
"""

from __future__ import annotations

from typing import NamedTuple

LAYOUT = 1
"""Version of the address and bit layout. Any change of the generator's numbers must change it."""

DENSE, LEFT, RIGHT, ROUNDING, ORDER, COMMON, CHANCE, SAMPLE = range(8)
"""Domains: a dense direction; the left (rows) and right (columns) factors of a low-rank direction; stochastic
rounding; the order of the data; a matrix common to all examples' directions; other random choices of a step; the tokens
of a sampled answer."""

RADEMACHER_BLOCK = 128
"""Columns per stage-two call in a Rademacher row: one bit each, low bit of the first word first."""

GAUSSIAN_BLOCK = 64
"""Columns per sixteen stage-two calls in a Gaussian row: column `64 g + 16 w + q` is word w of call 16 g + q."""

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


class Address(NamedTuple):
    """The address of one direction in one tensor; row and column complete it.

    seed: 0 <= seed < 2**64. step, direction, tensor: 0 <= value < 2**32. domain: one of this module's domains.
    """

    seed: int
    step: int
    direction: int
    tensor: int
    domain: int = DENSE


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 on Python integers (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def check(address: Address) -> None:
    """Raise ValueError if a part of the address is outside its range."""
    seed, *parts = address
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed} is outside 0 .. 2**64 - 1; choose a smaller one")
    for name, value in zip(("step", "direction", "tensor", "domain"), parts, strict=True):
        if not 0 <= value < 1 << 32:
            raise ValueError(f"{name} {value} is outside 0 .. 2**32 - 1")


def stream(address: Address) -> tuple[int, int, int, int]:
    """Stage one: the four words that select this direction of this tensor. Raises ValueError as `check` does."""
    check(address)
    seed, step, direction, tensor, domain = map(int, address)
    return philox((step, direction, tensor, domain), (seed & _MASK, seed >> 32))
