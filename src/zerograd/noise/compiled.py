"""The Numba back end: noise is drawn and used in one pass, a block of columns at a time, no temporary of a tensor's size.

The functions have the signatures of `noise.reference` and give the same bits. Kernels release the GIL; each runs on
`torch.get_num_threads()` threads over disjoint rows, so the result does not depend on their number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from zerograd.noise.address import Address, check, stream
from zerograd.noise.gaussian import quantiles

_KINDS = {"rademacher": 0, "gaussian": 1}
_TABLE = quantiles().numpy()
_FLOAT32, _BFLOAT16 = 0, 1
_FORMATS = {torch.float32: _FLOAT32, torch.bfloat16: _BFLOAT16}
_pools: dict[int, ThreadPoolExecutor] = {}


@intrinsic
def _bits(typing_context: Any, value: Any) -> Any:
    """The bit pattern of a float32 as a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def _float(typing_context: Any, value: Any) -> Any:
    """The float32 with the bit pattern of a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


_jit = njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)


@_jit
def _philox(c0, c1, c2, c3, k0, k1, out, at, stride):  # type: ignore[no-untyped-def]
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c0
        p1 = np.uint64(0xCD9E8D57) * c2
        c0, c2 = (p1 >> shift) ^ c1 ^ k0, (p0 >> shift) ^ c3 ^ k1
        c1, c3 = p1 & mask, p0 & mask
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    out[at] = c0
    out[at + stride] = c1
    out[at + 2 * stride] = c2
    out[at + 3 * stride] = c3


@_jit
def _sixteen(first, row, key, out):  # type: ignore[no-untyped-def]
    """Sixteen consecutive stage-two calls; word w of call q lands at out[16 w + q]."""
    for q in range(16):
        _philox(np.uint64(first + q), row, key[2], key[3], key[0], key[1], out, q, 16)


@_jit
def _draw(kind, key, row, first, count, table, words, out):  # type: ignore[no-untyped-def]
    """z at (row, first .. first + count) into out[0 .. count]; out has room for one block more on either side."""
    row = np.uint64(row)
    if kind == 0:
        block = first // 128
        skip = first - block * 128
        done = -skip
        while done < count:
            _philox(np.uint64(block), row, key[2], key[3], key[0], key[1], words, 0, 1)
            for w in range(4):
                word = np.uint32(words[w])
                base = done + 32 * w
                if base >= 0 and base + 32 <= count:
                    for j in range(32):
                        sign = (word >> np.uint32(j)) << np.uint32(31)
                        out[base + j] = _float(np.uint32(sign | np.uint32(0x3F800000)))
                else:
                    for j in range(32):
                        if 0 <= base + j < count:
                            sign = (word >> np.uint32(j)) << np.uint32(31)
                            out[base + j] = _float(np.uint32(sign | np.uint32(0x3F800000)))
            block += 1
            done += 128
    else:
        group = first // 64
        done = group * 64 - first
        while done < count:
            _sixteen(group * 16, row, key, words)
            if done >= 0 and done + 64 <= count:
                for j in range(64):
                    w = words[j]
                    out[done + j] = table[(w & 255) + ((w >> 8) & 255) + ((w >> 16) & 255) + (w >> 24)]
            else:
                for j in range(64):
                    if 0 <= done + j < count:
                        w = words[j]
                        out[done + j] = table[(w & 255) + ((w >> 8) & 255) + ((w >> 16) & 255) + (w >> 24)]
            group += 1
            done += 64


@_jit
def _load(weight, remainder, form, i, j, count, out):  # type: ignore[no-untyped-def]
    """Stored weights (i, j .. j + count) as float32. weight: uint32 (float32 bits) or uint16 (bfloat16 bits)."""
    high = weight[i, j : j + count]
    if form == 0:
        for k in range(count):
            out[k] = _float(np.uint32(high[k]))
    elif remainder.shape[0] == 0:
        for k in range(count):
            out[k] = _float(np.uint32(high[k]) << np.uint32(16))
    else:
        low = remainder[i, j : j + count]
        for k in range(count):
            out[k] = _float(np.uint32((np.uint32(high[k]) << np.uint32(16)) + np.uint32(np.int32(low[k]))))


@_jit
def _round(value, out, form, i, j, count):  # type: ignore[no-untyped-def]
    """float32 values to out[i, j .. j + count], nearest even when out is bfloat16."""
    to = out[i, j : j + count]
    if form == 0:
        for k in range(count):
            to[k] = _bits(value[k])
    else:
        for k in range(count):
            b = _bits(value[k])
            b = np.uint32(b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1)))
            to[k] = np.uint16(b >> np.uint32(16))


@_jit
def _store(value, weight, remainder, form, rounding, words, row, i, j, count):  # type: ignore[no-untyped-def]
    """float32 values into the storage: exact, split in halves, or rounded stochastically. j is a multiple of 8."""
    high = weight[i, j : j + count]
    if form == 0:
        for k in range(count):
            high[k] = _bits(value[k])
    elif remainder.shape[0] != 0:
        low = remainder[i, j : j + count]
        for k in range(count):
            b = _bits(value[k])
            top = np.uint32(b + np.uint32(0x8000)) >> np.uint32(16)
            high[k] = np.uint16(top)
            low[k] = np.int16(np.uint32(b - np.uint32(top << np.uint32(16))))
    else:
        for k in range(0, count, 8):
            block = np.uint64((j + k) // 8)
            _philox(block, np.uint64(row), rounding[2], rounding[3], rounding[0], rounding[1], words, 0, 1)
            for n in range(min(8, count - k)):
                noise = np.uint32((words[n // 2] >> np.uint64(16 * (n % 2))) & np.uint64(0xFFFF))
                high[k + n] = np.uint16(np.uint32(_bits(value[k + n]) + noise) >> np.uint32(16))


@_jit
def _subtract_eight(exact, s, right):  # type: ignore[no-untyped-def]
    """Eight products in order, with the running value in a register. right: eight blocks of 128 columns."""
    s0, s1, s2, s3, s4, s5, s6, s7 = s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
    for k in range(128):
        value = exact[k] - s0 * right[k]
        value = value - s1 * right[128 + k]
        value = value - s2 * right[256 + k]
        value = value - s3 * right[384 + k]
        value = value - s4 * right[512 + k]
        value = value - s5 * right[640 + k]
        value = value - s6 * right[768 + k]
        exact[k] = value - s7 * right[896 + k]


@_jit
def _fill_rows(out, kind, address, directions, rows, first, table, start, stop):  # type: ignore[no-untyped-def]
    words, key = np.empty(64, np.uint64), np.empty(4, np.uint64)
    seed_low, seed_high, step, tensor, domain = address
    for i in range(start, stop):
        d, m = i // rows.shape[0], i % rows.shape[0]
        _philox(step, np.uint64(directions[d]), tensor, domain, seed_low, seed_high, key, 0, 1)
        _draw(kind, key, rows[m], first, out.shape[2], table, words, out[d, m])


@_jit
def _perturb_rows(out, out_form, coefficients, weight, remainder, form, kind, key, rows, first, table, start, stop):  # type: ignore[no-untyped-def]
    words = np.empty(64, np.uint64)
    z, exact, value = np.empty(2048, np.float32), np.empty(2048, np.float32), np.empty(2048, np.float32)
    for i in range(start, stop):
        for j in range(0, weight.shape[1], 2048):
            count = min(2048, weight.shape[1] - j)
            _draw(kind, key, rows[i], first + j, count, table, words, z)
            _load(weight, remainder, form, i, j, count, exact)
            for c in range(coefficients.shape[0]):
                coefficient = coefficients[c]
                for k in range(count):
                    value[k] = exact[k] + z[k] * coefficient
                _round(value, out[c], out_form, i, j, count)


@_jit
def _update_rows(weight, remainder, form, kind, keys, multipliers, decay, rounding, table, start, stop):  # type: ignore[no-untyped-def]
    words = np.empty(64, np.uint64)
    z, exact = np.empty(2048, np.float32), np.empty(2048, np.float32)
    for i in range(start, stop):
        for j in range(0, weight.shape[1], 2048):
            count = min(2048, weight.shape[1] - j)
            _load(weight, remainder, form, i, j, count, exact)
            if decay != 1:
                for k in range(count):
                    exact[k] = exact[k] * decay
            for d in range(keys.shape[0]):
                multiplier = multipliers[d]
                if multiplier != 0:
                    _draw(kind, keys[d], i, j, count, table, words, z)
                    for k in range(count):
                        exact[k] = exact[k] - z[k] * multiplier
            _store(exact, weight, remainder, form, rounding, words, i, i, j, count)


@_jit
def _update_low_rank_rows(weight, remainder, form, left, right, decay, rounding, first_row, start, stop):  # type: ignore[no-untyped-def]
    words = np.empty(64, np.uint64)
    exact = np.zeros(128, np.float32)
    packed = np.zeros(right.shape[0] * 128, np.float32)  # one block of columns of every right factor
    grouped = left.shape[1] - left.shape[1] % 8
    for j in range(0, weight.shape[1], 128):
        count = min(128, weight.shape[1] - j)
        for q in range(right.shape[0]):
            for k in range(count):
                packed[q * 128 + k] = right[q, j + k]
        for i in range(start, stop):
            _load(weight, remainder, form, i, j, count, exact)
            if decay != 1:
                for k in range(count):
                    exact[k] = exact[k] * decay
            for q in range(0, grouped, 8):
                _subtract_eight(exact, left[i, q : q + 8], packed[q * 128 : (q + 8) * 128])
            for q in range(grouped, left.shape[1]):
                scale, one = left[i, q], packed[q * 128 : (q + 1) * 128]
                for k in range(128):
                    exact[k] = exact[k] - scale * one[k]
            _store(exact, weight, remainder, form, rounding, words, first_row + i, i, j, count)


def fill(out: torch.Tensor, family: str, address: Address, directions: Sequence[int], rows: torch.Tensor, first: int) -> None:
    """See `reference.fill`."""
    for direction in (min(directions), max(directions)):
        check(address._replace(direction=direction))
    seed, step, _, tensor, domain = map(int, address)
    where = tuple(np.uint64(part) for part in (seed & 0xFFFFFFFF, seed >> 32, step, tensor, domain))
    arguments = (out.numpy(), _KINDS[family], where, np.array(directions, np.int64), rows.numpy(), first, _TABLE)
    _over_rows(_fill_rows, arguments, out.shape[0] * out.shape[1], out.numel())


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
    out = tuple(_storage(o) for o in outs)
    c = np.array(coefficients, np.float32)
    form, out_form = _FORMATS[weight.dtype], _FORMATS[outs[0].dtype]
    arguments = (out, out_form, c, _storage(weight), _remainder(remainder), form)
    noise = (_KINDS[family], _key(address), rows.numpy(), first, _TABLE)
    _over_rows(_perturb_rows, (*arguments, *noise), weight.shape[0], weight.numel())


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
    keys = np.array([stream(a) for a in addresses], np.uint64).reshape(-1, 4)
    storage = (_storage(weight), _remainder(remainder), _FORMATS[weight.dtype])
    rest = (_KINDS[family], keys, np.array(multipliers, np.float32), np.float32(decay), _key(rounding), _TABLE)
    _over_rows(_update_rows, (*storage, *rest), weight.shape[0], weight.numel() * len(keys))


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
    factors = (left[used].T.contiguous().numpy(), right[used].contiguous().numpy())
    storage = (_storage(weight), _remainder(remainder), _FORMATS[weight.dtype])
    rest = (np.float32(decay), _key(rounding), first_row)
    _over_rows(_update_low_rank_rows, (*storage, *factors, *rest), weight.shape[0], weight.numel() * len(left))


def supports(weight: torch.Tensor) -> bool:
    """Whether the kernels take this tensor: on the CPU, float32 or bfloat16."""
    return weight.device.type == "cpu" and weight.dtype in _FORMATS


def _over_rows(kernel: Callable[..., None], arguments: tuple[Any, ...], rows: int, work: int) -> None:
    threads = min(torch.get_num_threads(), rows, max(1, work // 65536))
    if threads == 1:
        kernel(*arguments, 0, rows)
        return
    pool = _pools.get(threads) or _pools.setdefault(threads, ThreadPoolExecutor(threads, "zerograd-noise"))
    edges = [rows * t // threads for t in range(threads + 1)]
    parts = [pool.submit(kernel, *arguments, a, b) for a, b in itertools.pairwise(edges)]
    for part in parts:
        part.result()


def _key(address: Address | None) -> np.ndarray[Any, Any]:
    return np.array((0, 0, 0, 0) if address is None else stream(address), np.uint64)


def _storage(weight: torch.Tensor) -> np.ndarray[Any, Any]:
    if weight.dtype == torch.float32:
        return weight.view(torch.int32).numpy().view(np.uint32)
    return weight.view(torch.int16).numpy().view(np.uint16)


def _remainder(remainder: torch.Tensor | None) -> np.ndarray[Any, Any]:
    return np.empty((0, 0), np.int16) if remainder is None else remainder.numpy()
