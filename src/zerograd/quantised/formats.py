"""Formats of packed matrices: what the bytes of a block mean.

A row is cut into blocks. A weight of a block is d A + m B, where A and B are small integers that the block's codes alone decide,
and d and m are its scale and its minimum, both float16. A is a float, so that a code of 0 keeps the sign of its scale. Layouts are
those of GGUF (ggml's k-quants for the names in K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Parts = tuple[Tensor, Tensor | None]
"""A and B of blocks: float32 (blocks, weights); B is None where a format has no minimum."""


@dataclass(frozen=True)
class Format:
    """One format.

    name: as GGUF calls it. type: its number there. weights, bytes: of a block. scales: where d and, if there is one, m stand in a
    block, in bytes. codes: the smallest and the largest code. integers: A and B of blocks, uint8 (blocks, bytes).
    """

    name: str
    type: int
    weights: int
    bytes: int
    scales: tuple[int, ...]
    codes: tuple[int, int]
    integers: Callable[[Tensor], Parts]

    @property
    def bits(self) -> float:
        """Bits of a weight, scales included."""
        return 8 * self.bytes / self.weights

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row. Raises ValueError where blocks do not fill it."""
        if columns % self.weights:
            raise ValueError(f"a row of {columns} weights cannot be {self.name}, whose blocks have {self.weights}")
        return columns // self.weights * self.bytes

    def blocks(self, rows: Tensor) -> Tensor:
        """The blocks of rows: uint8 (rows, blocks, bytes), a view of (rows, bytes of a row)."""
        return rows.view(*rows.shape[:-1], -1, self.bytes)

    def parts(self, rows: Tensor) -> Parts:
        """A and B of rows, uint8 (rows, bytes of a row): float32 (rows, blocks, weights)."""
        blocks = self.blocks(rows)
        a, b = self.integers(blocks.flatten(0, -2))
        shape = (*blocks.shape[:-1], self.weights)
        return a.view(shape), None if b is None else b.view(shape)

    def scale(self, rows: Tensor, which: int) -> Tensor:
        """d (which 0) or m (1) of rows: float16 (rows, blocks)."""
        at = self.scales[which]
        return self.blocks(rows)[..., at : at + 2].contiguous().view(torch.float16)[..., 0]

    def unpacked(self, rows: Tensor) -> Tensor:
        """The weights of rows, uint8 (rows, bytes of a row): float32 (rows, columns)."""
        a, b = self.parts(rows)
        values = self.scale(rows, 0).float()[..., None] * a
        if b is not None:
            values = values + self.scale(rows, 1).float()[..., None] * b
        return values.flatten(-2)

    def scaled(self, rows: Tensor, factors: Tensor) -> Tensor:
        """Rows whose blocks' scales are multiplied, and rounded to float16: a copy. factors: float32 (rows, blocks).

        A block of factor 1 keeps its bytes, and a scale that is not finite its own.
        """
        made = rows.clone()
        blocks = self.blocks(made)
        changed = factors != 1
        for which, at in enumerate(self.scales):
            scale = self.scale(rows, which)
            new = (scale.float() * factors).to(torch.float16)[..., None].view(torch.uint8)
            blocks[..., at : at + 2] = torch.where((changed & scale.isfinite())[..., None], new, blocks[..., at : at + 2])
        return made


def _nibbles(packed: Tensor, run: int) -> Tensor:
    """Codes of 4 bits: of each `run` bytes the low halves, then the high halves. (blocks, bytes) -> int16 (blocks, 2 bytes)."""
    groups = packed.reshape(len(packed), -1, 1, run)
    return torch.cat([groups & 15, groups >> 4], 2).flatten(1).to(torch.int16)


def _bit_planes(packed: Tensor, bits: int, planes: int) -> Tensor:
    """Codes of a few bits, of each 32 bytes plane after plane: (blocks, bytes) -> int16 (blocks, planes bytes)."""
    groups = packed.reshape(len(packed), -1, 1, 32).to(torch.int16)
    shifts = (torch.arange(planes, device=packed.device) * bits).to(torch.int16)
    return ((groups >> shifts[:, None]) & ((1 << bits) - 1)).flatten(1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """32 bits of 4 bytes, the lowest first: (blocks, 4) -> int16 (blocks, 32), 0 or 1."""
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return ((packed[..., None] >> shifts) & 1).flatten(1).to(torch.int16)


def _q4_0(blocks: Tensor) -> Parts:
    return _nibbles(blocks[:, 2:], 16).float() - 8, None


def _q4_1(blocks: Tensor) -> Parts:
    a = _nibbles(blocks[:, 4:], 16).float()
    return a, torch.ones_like(a)


def _q5_0(blocks: Tensor) -> Parts:
    return (_nibbles(blocks[:, 6:], 16) + 16 * _fifth_bits(blocks[:, 2:6])).float() - 16, None


def _q5_1(blocks: Tensor) -> Parts:
    a = (_nibbles(blocks[:, 8:], 16) + 16 * _fifth_bits(blocks[:, 4:8])).float()
    return a, torch.ones_like(a)


def _q8_0(blocks: Tensor) -> Parts:
    return blocks[:, 2:].contiguous().view(torch.int8).float(), None


def _q2_k(blocks: Tensor) -> Parts:
    scales, codes = blocks[:, :16], _bit_planes(blocks[:, 16:80], 2, 4)
    return codes * _spread(scales & 15, 16), -_spread(scales >> 4, 16)


def _q3_k(blocks: Tensor) -> Parts:
    high, low, packed = _bit_planes(blocks[:, :32], 1, 8), _bit_planes(blocks[:, 32:96], 2, 4), blocks[:, 96:108]
    codes = low - 4 * (1 - high)
    scales = torch.cat([packed[:, :8] & 15, packed[:, :8] >> 4], 1).to(torch.int16)
    more = torch.cat([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], 1).to(torch.int16)
    return codes * _spread(scales + 16 * more - 32, 16), None


def _six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of 6 bits from 12 bytes: int16 (blocks, 8) each."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], 1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], 1)
    return scales.to(torch.int16), minima.to(torch.int16)


def _q4_k(blocks: Tensor) -> Parts:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    return _nibbles(blocks[:, 16:], 32) * _spread(scales, 32), -_spread(minima, 32)


def _q5_k(blocks: Tensor) -> Parts:
    scales, minima = _six_bit_pairs(blocks[:, 4:16])
    codes = _nibbles(blocks[:, 48:], 32) + 16 * _bit_planes(blocks[:, 16:48], 1, 8)
    return codes * _spread(scales, 32), -_spread(minima, 32)


def _q6_k(blocks: Tensor) -> Parts:
    codes = _nibbles(blocks[:, :128], 64) + 16 * _bit_planes(blocks[:, 128:192], 2, 4) - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).to(torch.int16)
    return codes * _spread(scales, 16), None


def _spread(values: Tensor, each: int) -> Tensor:
    """Values of parts of a block at each of their weights: float32 (blocks, parts each)."""
    return values.float().repeat_interleave(each, 1)


K = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Formats whose blocks of 256 weights have smaller scales of their own, which are integers: nothing here quantises to them."""

FORMATS = {
    format.name: format
    for format in (
        Format("Q4_0", 2, 32, 18, (0,), (0, 15), _q4_0),
        Format("Q4_1", 3, 32, 20, (0, 2), (0, 15), _q4_1),
        Format("Q5_0", 6, 32, 22, (0,), (0, 31), _q5_0),
        Format("Q5_1", 7, 32, 24, (0, 2), (0, 31), _q5_1),
        Format("Q8_0", 8, 32, 34, (0,), (-127, 127), _q8_0),
        Format("Q2_K", 10, 256, 84, (80, 82), (0, 3), _q2_k),
        Format("Q3_K", 11, 256, 110, (108,), (0, 7), _q3_k),
        Format("Q4_K", 12, 256, 144, (0, 2), (0, 15), _q4_k),
        Format("Q5_K", 13, 256, 176, (0, 2), (0, 31), _q5_k),
        Format("Q6_K", 14, 256, 210, (208,), (0, 63), _q6_k),
    )
}
"""The formats, by name."""
