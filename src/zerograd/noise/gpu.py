"""The Triton back end: the kernels of `noise.compiled` for CUDA, with the same bits.

A program draws a tile of noise where it uses it; no tensor of noise is stored. Multiplication and addition are not
fused. Triton's interpreter (TRITON_INTERPRET=1) runs them without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from zerograd.noise.address import Address, check, stream
from zerograd.noise.gaussian import quantiles
from zerograd.noise.reference import perturber_by

ROWS, COLUMNS = 8, 256

_RADEMACHER, _GAUSSIAN = tl.constexpr(0), tl.constexpr(1)
_KINDS = {"rademacher": 0, "gaussian": 1}
_FLOAT32, _BFLOAT16, _SPLIT, _ROUNDED = (tl.constexpr(i) for i in range(4))
_M0, _M1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
_W0, _W1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)
_tables: dict[torch.device, torch.Tensor] = {}


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    m0, m1 = tl.full((), _M0, tl.uint32), tl.full((), _M1, tl.uint32)
    w0, w1 = tl.full((), _W0, tl.uint32), tl.full((), _W1, tl.uint32)
    for _ in tl.static_range(10):
        h0, l0, h1, l1 = tl.umulhi(c0, m0), c0 * m0, tl.umulhi(c2, m1), c2 * m1
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = k0 + w0, k1 + w1
    return c0, c1, c2, c3


@triton.jit
def _calls(keys, rows, first, R: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """The words of stage-two calls first .. first + C of some rows: uint32 (R, C, 4). keys: where a stream's four words
    are.
    """
    k0, k1 = tl.load(keys).to(tl.uint32), tl.load(keys + 1).to(tl.uint32)
    k2, k3 = tl.load(keys + 2).to(tl.uint32), tl.load(keys + 3).to(tl.uint32)
    zero = tl.zeros((R, C), tl.uint32)
    c0 = (first + tl.arange(0, C)).to(tl.uint32)[None, :] + zero
    c1 = rows.to(tl.uint32)[:, None] + zero
    c0, c1, c2, c3 = _philox(c0, c1, zero + k2, zero + k3, k0, k1)
    pairs = tl.join(tl.join(c0, c1), tl.join(c2, c3))  # (R, C, low bit of the word's number, high bit)
    return tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), (R, C, 4))


@triton.jit
def _draw(KIND: tl.constexpr, keys, rows, first, table, R: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """z of some rows at columns first .. first + C: float32 (R, C). first: a multiple of 128."""
    if KIND == _RADEMACHER:
        words = _calls(keys, rows, first // 128, R, C // 128)
        bits = (words[:, :, :, None] >> tl.arange(0, 32).to(tl.uint32)[None, None, None, :]) & 1
        return tl.where(tl.reshape(bits, (R, C)) == 1, -1.0, 1.0)
    words = tl.reshape(_calls(keys, rows, first // 4, R, C // 4), (R, C // 64, 16, 4))
    words = tl.reshape(tl.permute(words, (0, 1, 3, 2)), (R, C))
    index = (words & 255) + ((words >> 8) & 255) + ((words >> 16) & 255) + (words >> 24)
    return tl.load(table + index.to(tl.int32))


@triton.jit
def _load(weight, remainder, at, mask, FORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Stored weights as float32. weight: int32 (float32 bits) or int16 (bfloat16 bits)."""
    high = tl.load(weight + at, mask=mask, other=0).to(tl.int32)
    if FORM == _FLOAT32:
        return high.to(tl.float32, bitcast=True)
    if FORM == _SPLIT:
        return ((high << 16) + tl.load(remainder + at, mask=mask, other=0).to(tl.int32)).to(tl.float32, bitcast=True)
    return (high << 16).to(tl.float32, bitcast=True)


@triton.jit
def _store(value, weight, remainder, at, mask, rounding, rows, first, FORM: tl.constexpr, R: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 values into the storage: exact, rounded to nearest, split in halves, or rounded stochastically."""
    bits = value.to(tl.uint32, bitcast=True)
    if FORM == _FLOAT32:
        tl.store(weight + at, bits.to(tl.int32, bitcast=True), mask=mask)
    elif FORM == _BFLOAT16:
        up = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        up = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, tl.full((R, C), 0x7FC0, tl.uint32), up)
        tl.store(weight + at, up.to(tl.int16), mask=mask)
    elif FORM == _SPLIT:
        top = (bits + 0x8000) >> 16
        tl.store(weight + at, top.to(tl.int16), mask=mask)
        tl.store(remainder + at, (bits - (top << 16)).to(tl.int16), mask=mask)
    else:
        words = _calls(rounding, rows, first // 8, R, C // 8)
        halves = words[:, :, :, None] >> (16 * tl.arange(0, 2)).to(tl.uint32)[None, None, None, :]
        noise = tl.reshape(halves & 0xFFFF, (R, C))
        tl.store(weight + at, ((bits + noise) >> 16).to(tl.int16), mask=mask)


@triton.jit
def _fill(out, keys, ids, count, columns, first, table, KIND: tl.constexpr, R: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * R + tl.arange(0, R)
    direction = tl.program_id(1)
    start = first // 128 * 128 + tl.program_id(2) * C
    rows = tl.load(ids + i, mask=i < count, other=0)
    z = _draw(KIND, keys + 4 * direction, rows, start, table, R, C)
    j = start - first + tl.arange(0, C)
    mask = (i < count)[:, None] & ((j >= 0) & (j < columns))[None, :]
    at = (direction.to(tl.int64) * count + i)[:, None] * columns + j[None, :]
    tl.store(out + at, z, mask=mask)


@triton.jit
def _perturb(  # type: ignore[no-untyped-def]
    out0, out1, c0, c1, weight, remainder, ids, keys, count, columns, stride, out_stride, first, table,
    KIND: tl.constexpr, FORM: tl.constexpr, OUT: tl.constexpr, TWO: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * R + tl.arange(0, R)
    start = first // 128 * 128 + tl.program_id(1) * C
    rows = tl.load(ids + i, mask=i < count, other=0)
    z = _draw(KIND, keys, rows, start, table, R, C)
    j = start - first + tl.arange(0, C)
    mask = (i < count)[:, None] & ((j >= 0) & (j < columns))[None, :]
    exact = _load(weight, remainder, i.to(tl.int64)[:, None] * stride + j[None, :], mask, FORM)
    to = i.to(tl.int64)[:, None] * out_stride + j[None, :]
    _store(exact + z * c0, out0, out0, to, mask, keys, rows, start, OUT, R, C)
    if TWO:
        _store(exact + z * c1, out1, out1, to, mask, keys, rows, start, OUT, R, C)


@triton.jit
def _update(  # type: ignore[no-untyped-def]
    weight, remainder, keys, multipliers, directions, decay, rounding, count, columns, stride, table,
    KIND: tl.constexpr, FORM: tl.constexpr, DECAY: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    i, start = tl.program_id(0) * R + tl.arange(0, R), tl.program_id(1) * C
    j = start + tl.arange(0, C)
    mask = (i < count)[:, None] & (j < columns)[None, :]
    at = i.to(tl.int64)[:, None] * stride + j[None, :]
    exact = _load(weight, remainder, at, mask, FORM)
    if DECAY:
        exact = exact * decay
    for d in range(directions):
        exact = exact - _draw(KIND, keys + 4 * d, i, start, table, R, C) * tl.load(multipliers + d)
    _store(exact, weight, remainder, at, mask, rounding, i, start, FORM, R, C)


@triton.jit
def _update_low_rank(  # type: ignore[no-untyped-def]
    weight, remainder, left, right, factors, decay, rounding, first_row, count, columns, stride,
    FORM: tl.constexpr, DECAY: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    i, start = tl.program_id(0) * R + tl.arange(0, R), tl.program_id(1) * C
    j = start + tl.arange(0, C)
    mask = (i < count)[:, None] & (j < columns)[None, :]
    at = i.to(tl.int64)[:, None] * stride + j[None, :]
    exact = _load(weight, remainder, at, mask, FORM)
    if DECAY:
        exact = exact * decay
    for q in range(factors):
        a = tl.load(left + q * count + i, mask=i < count, other=0.0)
        b = tl.load(right + q * columns + j, mask=j < columns, other=0.0)
        exact = exact - a[:, None] * b[None, :]
    _store(exact, weight, remainder, at, mask, rounding, first_row + i, start, FORM, R, C)


def fill(out: torch.Tensor, family: str, address: Address, directions: Sequence[int], rows: torch.Tensor, first: int) -> None:
    """See `reference.fill`."""
    for direction in (min(directions), max(directions)):
        check(address._replace(direction=direction))
    keys = _keys([address._replace(direction=d) for d in directions], out)
    count, columns = out.shape[1:]
    grid = (
        triton.cdiv(count, ROWS),
        len(directions),
        triton.cdiv(columns + first % 128, COLUMNS),
    )  # of the first there may be 2^31
    _fill[grid](
        out, keys, rows.to(out.device), count, columns, first, _table(out), KIND=_KINDS[family], R=ROWS, C=COLUMNS, **_OPTIONS
    )


def perturb(
    outs: Sequence[torch.Tensor],
    coefficients: Sequence[float],
    weight: torch.Tensor,
    remainder: torch.Tensor | None,
    family: str,
    address: Address,
    rows: torch.Tensor,
    first: int,
) -> None:
    """See `reference.perturb`."""
    keys, ids = _keys([address], weight), rows.to(weight.device)
    stored, low, form = _stored(weight, remainder, None)
    to = [_bits(out) for out in outs]
    rounded = torch.tensor(list(coefficients), dtype=torch.float32).tolist()
    grid = (triton.cdiv(weight.shape[0], ROWS), triton.cdiv(weight.shape[1] + first % 128, COLUMNS))
    for k in range(0, len(to), 2):
        two = k + 1 < len(to)
        _perturb[grid](
            to[k],
            to[k + two],
            rounded[k],
            rounded[k + two],
            stored,
            low,
            ids,
            keys,
            *weight.shape,
            weight.stride(0),
            outs[k].stride(0),
            first,
            _table(weight),
            KIND=_KINDS[family],
            FORM=form,
            OUT=0 if outs[k].dtype == torch.float32 else 1,
            TWO=two,
            R=ROWS,
            C=COLUMNS,
            **_OPTIONS,
        )


perturber = perturber_by(perturb)


def update(
    weight: torch.Tensor,
    remainder: torch.Tensor | None,
    family: str,
    addresses: Sequence[Address],
    multipliers: Sequence[float],
    decay: float,
    rounding: Address | None,
) -> None:
    """See `reference.update`."""
    rounded = torch.tensor(list(multipliers), dtype=torch.float32)
    used = rounded.nonzero()[:, 0].tolist()
    if not used and decay == 1:
        return
    keys = _keys([addresses[d] for d in used] or [Address(0, 0, 0, 0)], weight)
    stored, low, form = _stored(weight, remainder, rounding)
    _update[_grid(weight)](
        stored,
        low,
        keys,
        rounded[rounded != 0].to(weight.device),
        len(used),
        decay,
        _keys([rounding or Address(0, 0, 0, 0)], weight),
        *weight.shape,
        weight.stride(0),
        _table(weight),
        KIND=_KINDS[family],
        FORM=form,
        DECAY=decay != 1,
        R=ROWS,
        C=COLUMNS,
        **_OPTIONS,
    )


def update_low_rank(
    weight: torch.Tensor,
    remainder: torch.Tensor | None,
    left: torch.Tensor,
    right: torch.Tensor,
    decay: float,
    rounding: Address | None,
    first_row: int,
) -> None:
    """See `reference.update_low_rank`."""
    used = left.ne(0).any(1)
    left, right = left[used].contiguous(), right[used].contiguous()
    if not len(left) and decay == 1:
        return
    stored, low, form = _stored(weight, remainder, rounding)
    _update_low_rank[_grid(weight)](
        stored,
        low,
        left,
        right,
        len(left),
        decay,
        _keys([rounding or Address(0, 0, 0, 0)], weight),
        first_row,
        *weight.shape,
        weight.stride(0),
        FORM=form,
        DECAY=decay != 1,
        R=ROWS,
        C=COLUMNS,
        **_OPTIONS,
    )


def supports(tensor: torch.Tensor) -> bool:
    """Whether the kernels take this tensor: on CUDA, float32 or bfloat16."""
    return tensor.device.type == "cuda" and tensor.dtype in (torch.float32, torch.bfloat16)


_OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}


def _grid(weight: torch.Tensor) -> tuple[int, int]:
    return triton.cdiv(weight.shape[0], ROWS), triton.cdiv(weight.shape[1], COLUMNS)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def _stored(
    weight: torch.Tensor, remainder: torch.Tensor | None, rounding: Address | None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(weight, remainder, format) as kernels take them."""
    bits = _bits(weight)
    if weight.dtype == torch.float32:
        return bits, bits, 0
    if remainder is not None:
        return bits, remainder, 2
    return bits, bits, 1 if rounding is None else 3


def _keys(addresses: Sequence[Address], like: torch.Tensor) -> torch.Tensor:
    """The streams of addresses: int64 (addresses, 4)."""
    return torch.tensor([stream(address) for address in addresses], dtype=torch.int64).to(like.device)


def _table(like: torch.Tensor) -> torch.Tensor:
    if like.device not in _tables:
        _tables[like.device] = quantiles().to(like.device)
    return _tables[like.device]
