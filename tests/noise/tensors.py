"""Addresses, and weights in every storage, to draw noise for."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from zerograd.noise import DENSE, LEFT, ROUNDING, Address, split

FAMILIES = ("rademacher", "gaussian")
STORAGES = ("float32", "split", "bfloat16")
AT = Address(0xDEADBEEF12345678, 3, 0, 17)
words = st.integers(0, 2**32 - 1)
addresses = st.builds(Address, st.integers(0, 2**64 - 1), words, words, words, st.sampled_from((DENSE, LEFT, ROUNDING)))
SPECIAL = (0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.1754944e-38, 1e30, -3e-39, 2.0**-127, 1.0000001, 255.99998)


def weights(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """float32 weights with zeros of both signs, denormal and large numbers among them."""
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(shape, generator=generator)
    special = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.2, special, exact)


def stored(exact: torch.Tensor, storage: str) -> tuple[torch.Tensor, torch.Tensor | None, Address | None]:
    """(weight, remainder, rounding) as the back ends take them."""
    if storage == "split":
        return *split(exact), None
    if storage == "bfloat16":
        return exact.bfloat16(), None, AT._replace(domain=ROUNDING)
    return exact.clone(), None, None


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Equal bit patterns; zeros of different signs differ."""
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(bits(a), bits(b)))


finite = st.integers(0, 2**32 - 1).filter(lambda b: (b >> 23) & 0xFF != 0xFF)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)
