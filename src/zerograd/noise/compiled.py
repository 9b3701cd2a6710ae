"""The Numba back end: draws and uses noise in one pass, a block of columns at a time, without a temporary of a tensor's
size.

The functions have the signatures of `noise.reference` and give the same bits. Kernels release the GIL; `workers` runs
each kernel over disjoint rows, so the result does not depend on the number of threads. A kernel takes a matrix as flat
storage and a stride.

Compiled kernels are cached in __pycache__, or in the user's cache if that is not writable. Numba checks only a kernel's
own file for changes: delete the cache after a change of `noise/vectors.py` or `evaluate/simd.py`, or of a function here
that `evaluate/kernels.py` uses.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit

from zerograd.machine import workers
from zerograd.noise.address import Address, check, stream
from zerograd.noise.gaussian import quantiles
from zerograd.noise.reference import PerturbRows
from zerograd.noise.vectors import bits, from_bits, signs, sixteen_calls, subtract_products, sums_of_bytes

KINDS = {"rademacher": 0, "gaussian": 1}
TABLE = quantiles().numpy()
SCRATCH = 2048 + 256
"""Scratch values for 2,048 columns of a row and the rest of their first and last block."""

_FLOAT32, _BFLOAT16 = 0, 1
FORMATS = {torch.float32: _FLOAT32, torch.bfloat16: _BFLOAT16}


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called, and keep the result on disk where a folder for it can be written to."""
    options = {"nogil": True, "error_model": "numpy", "boundscheck": False}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        _say_uncached()
        return njit(**options)(function)


@functools.cache
def _say_uncached() -> None:
    warnings.warn(
        "no folder for compiled kernels can be written to, so each process compiles them anew; set NUMBA_CACHE_DIR", stacklevel=3
    )


@jit
def draw(kind, key, row, first, count, table, words, out):  # type: ignore[no-untyped-def]
    """z of a row's columns first .. first + count: a slice of `out`.

    count: at most 2,048. words: uint32 (64,). out: float32 (SCRATCH,).
    """
    if kind == 0:
        block = first // 128
        skip = first - block * 128
        needed = (skip + count + 31) // 32
        for w in range(0, needed, 64):
            sixteen_calls(block + w // 4, row, key, words, False)
            for i in range(min(64, needed - w)):
                signs(words[i], out, 32 * (w + i))
    else:
        group = first // 64
        skip = first - group * 64
        for done in range(0, skip + count, 64):
            sixteen_calls(16 * group + done // 4, row, key, words, True)
            sums_of_bytes(words, table, out, done)
    return out[skip : skip + count]


@jit
def select(seed, step, direction, tensor, domain, key, words):  # type: ignore[no-untyped-def]
    """Stage one: the words of an address into key: uint64 (4,). words: uint32 (64,)."""
    key[0], key[1], key[2], key[3] = seed & np.uint64(0xFFFFFFFF), seed >> np.uint64(32), tensor, domain
    sixteen_calls(step, direction, key, words, False)
    for w in range(4):
        key[w] = words[w]


@jit
def _select_all(addresses, keys):  # type: ignore[no-untyped-def]
    words = np.empty(64, np.uint32)
    for i in range(keys.shape[0]):
        seed, step, direction, tensor, domain = addresses[i]
        select(seed, np.int64(step), np.int64(direction), np.int64(tensor), np.int64(domain), keys[i], words)


@jit
def load(weight, remainder, form, at, count, scratch):  # type: ignore[no-untyped-def]
    """`count` stored values from `at` on, as float32: in scratch, or in place for float32 storage.

    weight: uint32 (float32 bits) or uint16 (bfloat16 bits).
    """
    high = weight[at : at + count]
    if form == 0:
        return high.view(np.float32)
    out = scratch[:count]
    if remainder.shape[0] == 0:
        for k in range(count):
            out[k] = from_bits(np.uint32(high[k]) << np.uint32(16))
    else:
        low = remainder[at : at + count]
        for k in range(count):
            out[k] = from_bits(np.uint32((np.uint32(high[k]) << np.uint32(16)) + np.uint32(np.int32(low[k]))))
    return out


@jit
def nearest(value):  # type: ignore[no-untyped-def]
    """The bits of the nearest bfloat16, ties to even; a NaN stays one."""
    b = bits(value)
    up = np.uint32(b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1)))
    nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(0x7FC0) if nan else np.uint16(up >> np.uint32(16))


@jit
def _store(value, weight, remainder, form, rounding, words, row, column, at, count):  # type: ignore[no-untyped-def]
    """Store float32 values: split in halves, or rounded stochastically. float32 storage already has them.

    column: a multiple of 128.
    """
    high = weight[at : at + count]
    if form == 0:
        return
    if remainder.shape[0] != 0:
        low = remainder[at : at + count]
        for k in range(count):
            b = bits(value[k])
            top = np.uint32(b + np.uint32(0x8000)) >> np.uint32(16)
            high[k] = np.uint16(top)
            low[k] = np.int16(np.uint32(b - np.uint32(top << np.uint32(16))))
    else:
        sixteenths = words.view(np.uint16)
        for k in range(0, count, 128):
            sixteen_calls((column + k) // 8, row, rounding, words, False)
            for n in range(min(128, count - k)):
                high[k + n] = np.uint16(np.uint32(bits(value[k + n]) + np.uint32(sixteenths[n])) >> np.uint32(16))


@jit
def _fill_rows(out, kind, address, directions, rows, first, table, start, stop):  # type: ignore[no-untyped-def]
    words, key, scratch = np.empty(64, np.uint32), np.empty(4, np.uint64), np.empty(SCRATCH, np.float32)
    seed, step, tensor, domain = address
    for i in range(start, stop):
        d, m = i // rows.shape[0], i % rows.shape[0]
        select(seed, step, directions[d], tensor, domain, key, words)
        to = out[d, m]
        for j in range(0, to.shape[0], 2048):
            count = min(2048, to.shape[0] - j)
            to[j : j + count] = draw(kind, key, rows[m], first + j, count, table, words, scratch)


@jit
def _perturb_rows(  # type: ignore[no-untyped-def]
    outs,
    top,
    out_stride,
    out_form,
    coefficients,
    weight,
    remainder,
    stride,
    columns,
    form,
    kind,
    key,
    rows,
    first,
    table,
    start,
    stop,
):
    words, drawn, scratch = np.empty(64, np.uint32), np.empty(SCRATCH, np.float32), np.empty(2048, np.float32)
    for i in range(start, stop):
        for j in range(0, columns, 2048):
            count = min(2048, columns - j)
            z = draw(kind, key, rows[i], first + j, count, table, words, drawn)
            exact = load(weight, remainder, form, i * stride + j, count, scratch)
            for c in range(coefficients.shape[0]):
                coefficient, to = coefficients[c], outs[c][(i - top) * out_stride + j : (i - top) * out_stride + j + count]
                if out_form == 0:
                    value = to.view(np.float32)
                    for k in range(count):
                        value[k] = exact[k] + z[k] * coefficient
                else:
                    for k in range(count):
                        to[k] = nearest(exact[k] + z[k] * coefficient)


@jit
def _update_rows(  # type: ignore[no-untyped-def]
    weight, remainder, stride, columns, form, kind, keys, multipliers, decay, rounding, table, start, stop
):
    words, drawn, scratch = np.empty(64, np.uint32), np.empty(SCRATCH, np.float32), np.empty(2048, np.float32)
    for i in range(start, stop):
        for j in range(0, columns, 2048):
            count = min(2048, columns - j)
            at = i * stride + j
            exact = load(weight, remainder, form, at, count, scratch)
            if decay != 1:
                for k in range(count):
                    exact[k] = exact[k] * decay
            for d in range(keys.shape[0]):
                multiplier = multipliers[d]
                if multiplier != 0:
                    z = draw(kind, keys[d], i, j, count, table, words, drawn)
                    for k in range(count):
                        exact[k] = exact[k] - z[k] * multiplier
            _store(exact, weight, remainder, form, rounding, words, i, j, at, count)


@jit
def _update_low_rank_rows(  # type: ignore[no-untyped-def]
    weight, remainder, stride, columns, form, left, right, decay, rounding, first_row, start, stop
):
    words, scratch, rest = np.empty(64, np.uint32), np.empty(2048, np.float32), np.zeros(64, np.float32)
    products = right.reshape(-1)
    block = min(2048, max(128, 6144 // max(1, right.shape[0]) // 128 * 128))  # its columns of all right factors fit a core's L1
    for tile in range(start, stop, 16):
        for j in range(0, columns, block):
            count = min(block, columns - j)
            for i in range(tile, min(tile + 16, stop)):
                at = i * stride + j
                exact = load(weight, remainder, form, at, count, scratch)
                if decay != 1:
                    for k in range(count):
                        exact[k] = exact[k] * decay
                whole = count // 64 * 64
                for m in range(0, whole, 64):
                    subtract_products(exact, m, left[i], products, j + m, right.shape[1])
                if whole < count:
                    rest[: count - whole] = exact[whole:]
                    subtract_products(rest, 0, left[i], products, j + whole, right.shape[1])
                    exact[whole:] = rest[: count - whole]
                _store(exact, weight, remainder, form, rounding, words, first_row + i, j, at, count)


@jit
def _uniform_rows(out, key, rows, start, stop):  # type: ignore[no-untyped-def]
    words, columns = np.empty(64, np.uint32), out.shape[1]
    for i in range(start, stop):
        for first in range(0, columns, 64):
            sixteen_calls(first // 4, rows[i], key, words, False)
            for k in range(min(64, columns - first)):
                out[i, first + k] = (np.float64(words[k]) + 0.5) * 2.0**-32


def uniform(address: Address, rows: torch.Tensor, columns: int) -> torch.Tensor:
    """See `reference.uniform`."""
    out = torch.empty(len(rows), columns, dtype=torch.float64)
    over_rows(_uniform_rows, (out.numpy(), _key(address), rows.numpy()), len(rows), out.numel())
    return out


def fill(out: torch.Tensor, family: str, address: Address, directions: Sequence[int], rows: torch.Tensor, first: int) -> None:
    """See `reference.fill`."""
    for direction in (min(directions), max(directions)):
        check(address._replace(direction=direction))
    arguments = (out.numpy(), KINDS[family], place(address), np.array(directions, np.int64), rows.numpy(), first, TABLE)
    over_rows(_fill_rows, arguments, out.shape[0] * out.shape[1], out.numel())


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
    bits_of_outs = tuple(storage(out) for out in outs)
    into = (bits_of_outs, 0, outs[0].stride(0), FORMATS[outs[0].dtype], np.array(coefficients, np.float32))
    noise = (KINDS[family], _key(address), rows.numpy(), first, TABLE)
    over_rows(_perturb_rows, (*into, *_stored(weight, remainder), *noise), weight.shape[0], weight.numel())


def perturber(
    weight: torch.Tensor, remainder: torch.Tensor | None, family: str, address: Address, first_row: int, first: int
) -> PerturbRows:
    """See `reference.perturber_by`."""
    stored, rest = _stored(weight, remainder), (KINDS[family], _key(address))
    rows = np.arange(first_row, first_row + weight.shape[0])

    def perturb_rows(outs: Sequence[torch.Tensor], coefficients: Sequence[float], start: int, stop: int) -> None:
        bits_of_outs = tuple(storage(out) for out in outs)
        into = (bits_of_outs, start, outs[0].stride(0), FORMATS[outs[0].dtype], np.array(coefficients, np.float32))
        _perturb_rows(*into, *stored, *rest, rows, first, TABLE, start, stop)

    return perturb_rows


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
    for one in addresses:
        check(one)
    keys = np.empty((len(addresses), 4), np.uint64)
    _select_all(np.array(addresses, np.uint64).reshape(-1, 5), keys)
    rest = (KINDS[family], keys, np.array(multipliers, np.float32), np.float32(decay), _key(rounding), TABLE)
    over_rows(_update_rows, (*_stored(weight, remainder), *rest), weight.shape[0], weight.numel() * len(keys))


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
    padded = torch.nn.functional.pad(right[used], (0, -right.shape[1] % 64))
    factors = (left[used].T.contiguous().numpy(), padded.contiguous().numpy())
    rest = (np.float32(decay), _key(rounding), first_row)
    over_rows(_update_low_rank_rows, (*_stored(weight, remainder), *factors, *rest), weight.shape[0], weight.numel() * len(left))


def supports(tensor: torch.Tensor) -> bool:
    """Whether the kernels take this tensor: on the CPU, float32 or bfloat16."""
    return tensor.device.type == "cpu" and tensor.dtype in FORMATS


def over_rows(kernel: Callable[..., None], arguments: tuple[Any, ...], rows: int, work: int) -> None:
    """kernel(*arguments, start, stop) over all rows, on more workers for more work."""
    if not rows:
        return
    parts = min(torch.get_num_threads(), rows, max(1, work // 65536))
    edges = [rows * t // parts for t in range(parts + 1)]
    workers.each(lambda edge: kernel(*arguments, *edge), list(itertools.pairwise(edges)))


def place(address: Address) -> tuple[np.uint64, int, int, int]:
    """(seed, step, tensor, domain) of an address, the arguments of `select` beside the direction."""
    seed, step, _, tensor, domain = map(int, address)
    return np.uint64(seed), step, tensor, domain


def storage(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The bits of a matrix from its first value to its last, rows `stride(0)` apart: uint32 or uint16, one dimension."""
    flat = _flat(tensor)
    if tensor.dtype == torch.float32:
        return flat.view(torch.int32).numpy().view(np.uint32)
    return flat.view(torch.int16).numpy().view(np.uint16)


def _stored(weight: torch.Tensor, remainder: torch.Tensor | None) -> tuple[Any, ...]:
    """(weight, remainder, stride, columns, format) as kernels take them."""
    low = np.empty(0, np.int16) if remainder is None else _flat(remainder).numpy()
    return storage(weight), low, weight.stride(0), weight.shape[1], FORMATS[weight.dtype]


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    length = (tensor.shape[0] - 1) * tensor.stride(0) + tensor.shape[1] if tensor.numel() else 0
    return tensor.as_strided((length,), (1,))


def _key(address: Address | None) -> np.ndarray[Any, Any]:
    return np.array((0, 0, 0, 0) if address is None else stream(address), np.uint64)
