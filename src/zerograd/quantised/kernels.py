"""Unpacking by Numba: a row of blocks is decoded once, and written for each of several gains, rounded once.

The values have the bits of `formats.Format.unpacked`: a code times its scale is exact in float32, so that one sum rounds.
"""

from __future__ import annotations

import numpy as np
import torch

from zerograd.noise.compiled import jit
from zerograd.quantised import simd
from zerograd.quantised.formats import Format

HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""Every float16 as float32, by its bits."""


@jit
def _half(raw, at, half):  # type: ignore[no-untyped-def]
    return half[np.uint16(raw[at]) | (np.uint16(raw[at + 1]) << 8)]


@jit
def _q4_0(raw, at, half, w, to):  # type: ignore[no-untyped-def]
    d = _half(raw, at, half)
    for part in range(2):
        simd.run_q4_0(raw, at + 2, 4 * part, 0, 0, d, d, w, to + 16 * part)


@jit
def _q4_1(raw, at, half, w, to):  # type: ignore[no-untyped-def]
    d, m = _half(raw, at, half), _half(raw, at + 2, half)
    for part in range(2):
        simd.run_q4_1(raw, at + 4, 4 * part, 0, 0, d, m, w, to + 16 * part)


@jit
def _q5_0(raw, at, half, w, to):  # type: ignore[no-untyped-def]
    d = _half(raw, at, half)
    for part in range(2):
        simd.run_q5_0(raw, at + 6, 4 * part, at + 2, 16 * part, d, d, w, to + 16 * part)


@jit
def _q5_1(raw, at, half, w, to):  # type: ignore[no-untyped-def]
    d, m = _half(raw, at, half), _half(raw, at + 2, half)
    for part in range(2):
        simd.run_q5_1(raw, at + 8, 4 * part, at + 4, 16 * part, d, m, w, to + 16 * part)


@jit
def _q8_0(raw, at, half, w, to):  # type: ignore[no-untyped-def]
    d = _half(raw, at, half)
    simd.run_q8_0(raw, at + 2, 0, 0, 0, d, d, w, to)


@jit
def _q2_k(raw, at, half, w, to):  # type: ignore[no-untyped-def]
    d, m = _half(raw, at + 80, half), _half(raw, at + 82, half)
    for part in range(16):
        scale = raw[at + part]
        low, shift = at + 16 + 32 * (part // 8) + 16 * (part % 2), 2 * ((part % 8) // 2)
        simd.run_q2_k(raw, low, shift, 0, 0, d * np.float32(scale & 15), -(m * np.float32(scale >> 4)), w, to + 16 * part)


@jit
def _q3_k(raw, at, half, w, to):  # type: ignore[no-untyped-def]
    d = _half(raw, at + 108, half)
    for part in range(16):
        scale = (raw[at + 96 + part % 8] >> (4 * (part // 8))) & 15
        scale |= ((raw[at + 104 + part % 4] >> (2 * (part // 4))) & 3) << 4
        low, shift = at + 32 + 32 * (part // 8) + 16 * (part % 2), 2 * ((part % 8) // 2)
        dl = d * np.float32(np.int64(scale) - 32)
        simd.run_q3_k(raw, low, shift, at + 16 * (part % 2), part // 2, dl, dl, w, to + 16 * part)


@jit
def _six_bits(raw, at, part):  # type: ignore[no-untyped-def]
    """The scale and the minimum of one of eight parts, from 12 bytes."""
    i = part % 4
    if part < 4:
        return np.float32(raw[at + i] & 63), np.float32(raw[at + 4 + i] & 63)
    third = raw[at + 8 + i]
    return np.float32((third & 15) | ((raw[at + i] >> 2) & 48)), np.float32((third >> 4) | ((raw[at + 4 + i] >> 2) & 48))


@jit
def _q4_k(raw, at, half, w, to):  # type: ignore[no-untyped-def]
    d, m = _half(raw, at, half), _half(raw, at + 2, half)
    for part in range(8):
        scale, minimum = _six_bits(raw, at + 4, part)
        low = at + 16 + 32 * (part // 2)
        simd.run_q4_k(raw, low, 4 * (part % 2), 0, 0, d * scale, -(m * minimum), w, to + 32 * part)


@jit
def _q5_k(raw, at, half, w, to):  # type: ignore[no-untyped-def]
    d, m = _half(raw, at, half), _half(raw, at + 2, half)
    for part in range(8):
        scale, minimum = _six_bits(raw, at + 4, part)
        low = at + 48 + 32 * (part // 2)
        simd.run_q5_k(raw, low, 4 * (part % 2), at + 16, part, d * scale, -(m * minimum), w, to + 32 * part)


@jit
def _q6_k(raw, at, half, w, to):  # type: ignore[no-untyped-def]
    d = _half(raw, at + 208, half)
    for part in range(16):
        dl = d * np.float32(np.int8(raw[at + 192 + part]))
        quarter = (part % 8) // 2
        low = at + 64 * (part // 8) + 32 * (quarter % 2) + 16 * (part % 2)
        high = at + 128 + 32 * (part // 8) + 16 * (part % 2)
        simd.run_q6_k(raw, low, 4 * (quarter // 2), high, 2 * quarter, dl, dl, w, to + 16 * part)


@jit
def _decode_row(kind, raw, at, columns, half, w):  # type: ignore[no-untyped-def]
    """The weights of the row of blocks at a byte. kind: the format's number in GGUF. w: float32 (columns,)."""
    if kind == 2:
        for b in range(columns // 32):
            _q4_0(raw, at + 18 * b, half, w, 32 * b)
    elif kind == 3:
        for b in range(columns // 32):
            _q4_1(raw, at + 20 * b, half, w, 32 * b)
    elif kind == 6:
        for b in range(columns // 32):
            _q5_0(raw, at + 22 * b, half, w, 32 * b)
    elif kind == 7:
        for b in range(columns // 32):
            _q5_1(raw, at + 24 * b, half, w, 32 * b)
    elif kind == 8:
        for b in range(columns // 32):
            _q8_0(raw, at + 34 * b, half, w, 32 * b)
    elif kind == 10:
        for b in range(columns // 256):
            _q2_k(raw, at + 84 * b, half, w, 256 * b)
    elif kind == 11:
        for b in range(columns // 256):
            _q3_k(raw, at + 110 * b, half, w, 256 * b)
    elif kind == 12:
        for b in range(columns // 256):
            _q4_k(raw, at + 144 * b, half, w, 256 * b)
    elif kind == 13:
        for b in range(columns // 256):
            _q5_k(raw, at + 176 * b, half, w, 256 * b)
    else:
        for b in range(columns // 256):
            _q6_k(raw, at + 210 * b, half, w, 256 * b)


@jit
def _decode(kind, raw, width, rows, columns, half, each, gains, out, rounded):  # type: ignore[no-untyped-def]
    """out[k, r] <- row r times (1 + gains[k, r, its block]), for each k.

    raw: uint8 (rows * width,). each: weights of a block. gains: float32 (k * rows * blocks,), or empty for k = 1 and none. out:
    (k * rows * columns,), float32, or uint16 for the bits of bfloat16. rounded: whether it holds the nearest bfloat16.
    """
    w, plain, factor = np.empty(columns, np.float32), len(gains) == 0, np.float32(1)
    copies, blocks = len(out) // (rows * columns), columns // each
    for r in range(rows):
        _decode_row(kind, raw, r * width, columns, half, w)
        for k in range(copies):
            row = k * rows + r
            for j in range(0, columns, 32):
                if not plain:
                    factor = np.float32(1) + gains[row * blocks + j // each]
                if rounded:
                    simd.write_rounded(w, j, factor, out, row * columns + j)
                else:
                    simd.write_exact(w, j, factor, out, row * columns + j)


_NO_GAINS = np.zeros(0, np.float32)


def unpack(outs: torch.Tensor, blocks: torch.Tensor, format: Format, gains: torch.Tensor | None, to_bfloat16: bool) -> None:
    """`matrix.unpack_into` by the kernel."""
    _, rows, columns = outs.shape
    out = (outs.view(torch.uint16) if outs.dtype == torch.bfloat16 else outs).numpy().reshape(-1)
    factors = _NO_GAINS if gains is None else gains.contiguous().numpy().reshape(-1)
    raw = blocks.numpy().reshape(-1)
    _decode(format.type, raw, blocks.shape[1], rows, columns, HALF, format.weights, factors, out, to_bfloat16)
