"""Weights to blocks: the formats that round to nearest by a rule of each block's own, as llama.cpp's reference does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zerograd.quantised.formats import Format

CHUNK = 1 << 18
"""Weights that are packed at a time."""


def packed(weights: Tensor, format: Format) -> Tensor:
    """Weights as blocks: uint8 (rows, bytes of a row). weights: (rows, columns), finite.

    Raises ValueError for a format that nothing here quantises to, and for rows that blocks do not fill.
    """
    if format.name not in _ENCODERS:
        raise ValueError(f"nothing here quantises to {format.name}; choose one of {', '.join(_ENCODERS)}, or F16")
    rows, columns = weights.shape
    out = torch.empty(rows, format.row_bytes(columns), dtype=torch.uint8)
    each = max(1, CHUNK // columns)
    for first in range(0, rows, each):
        blocks = weights[first : first + each].float().reshape(-1, format.weights)
        out[first : first + each] = _ENCODERS[format.name](blocks).view(-1, out.shape[1])
    return out


def _inverse(d: Tensor) -> Tensor:
    """1 / d, and 0 where d is 0."""
    return torch.where(d == 0, 0.0, 1 / d)


def _bytes(half: Tensor) -> Tensor:
    return half.to(torch.float16).view(torch.uint8)


def _nibbles(codes: Tensor) -> Tensor:
    low, high = codes.to(torch.uint8).chunk(2, 1)
    return (low & 15) | ((high & 15) << 4)


def _fifth_bits(codes: Tensor) -> Tensor:
    """Bit 4 of 32 codes in 4 bytes, the first code's lowest."""
    bits = (codes.to(torch.int16) >> 4).view(len(codes), 4, 8) << torch.arange(8, dtype=torch.int16)
    return bits.sum(2).to(torch.uint8)


def _by_largest(levels: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """d such that the weight of largest magnitude has the lowest code, and codes of 0 .. 2 levels - 1."""

    def encode(blocks: Tensor) -> tuple[Tensor, Tensor]:
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        d = largest / -levels
        codes = torch.trunc(blocks * _inverse(d) + (levels + 0.5)).clamp(0, 2 * levels - 1)
        return d, codes

    return encode


def _by_range(levels: int) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """d and m such that codes of 0 .. levels - 1 span the block."""

    def encode(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = blocks.amin(1, keepdim=True)
        d = (blocks.amax(1, keepdim=True) - low) / (levels - 1)
        codes = torch.trunc((blocks - low) * _inverse(d) + 0.5).clamp(0, levels - 1)
        return d, low, codes

    return encode


def _q4_0(blocks: Tensor) -> Tensor:
    d, codes = _by_largest(8)(blocks)
    return torch.cat([_bytes(d), _nibbles(codes)], 1)


def _q4_1(blocks: Tensor) -> Tensor:
    d, m, codes = _by_range(16)(blocks)
    return torch.cat([_bytes(d), _bytes(m), _nibbles(codes)], 1)


def _q5_0(blocks: Tensor) -> Tensor:
    d, codes = _by_largest(16)(blocks)
    return torch.cat([_bytes(d), _fifth_bits(codes), _nibbles(codes)], 1)


def _q5_1(blocks: Tensor) -> Tensor:
    d, m, codes = _by_range(32)(blocks)
    return torch.cat([_bytes(d), _bytes(m), _fifth_bits(codes), _nibbles(codes)], 1)


def _q8_0(blocks: Tensor) -> Tensor:
    d = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * _inverse(d)
    away = torch.trunc(scaled.abs() * 2) - torch.trunc(scaled.abs())  # to nearest, halves away from zero
    codes = torch.sign(scaled) * away
    return torch.cat([_bytes(d), codes.to(torch.int8).view(torch.uint8)], 1)


_ENCODERS: dict[str, Callable[[Tensor], Tensor]] = {"Q8_0": _q8_0, "Q5_1": _q5_1, "Q5_0": _q5_0, "Q4_1": _q4_1, "Q4_0": _q4_0}

WRITABLE = tuple(_ENCODERS)
"""Names of formats that weights can be rounded to."""
