"""The perturbed forward's own kernels: what a direction of an example's own adds to an activation, in one pass over it.

Noise is drawn where it is used; an activation is read and written once and stays in its dtype, float32 or bfloat16, with
sums in float32. Each row of tokens is computed alone, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from zerograd.noise import Address
from zerograd.noise.compiled import FORMATS, KINDS, SCRATCH, TABLE, draw, jit, load, nearest, over_rows, place, select, storage


@njit(nogil=True, cache=True, error_model="numpy", boundscheck=False, fastmath={"reassoc", "contract", "nsz"})
def _dot(x, y, count):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for k in range(count):
        total += x[k] * y[k]
    return total


@jit
def _vector(kind, key, row, first, count, table, words, z, out):  # type: ignore[no-untyped-def]
    """z of a row's columns first .. first + count, of any number, into out[0 .. count]."""
    for j in range(0, count, 2048):
        some = min(2048, count - j)
        out[j : j + some] = draw(kind, key, row, first + j, some, table, words, z)


@jit
def _add_products_rows(  # type: ignore[no-untyped-def]
    y, y_form, y_width, x, x_form, x_width, each, directions, scales, shifts, kind, address, into, onto, rows, table, start, stop
):
    words, key, z = np.empty(64, np.uint32), np.empty(4, np.uint64), np.empty(SCRATCH, np.float32)
    b, a = np.empty((rows.shape[0], x_width), np.float32), np.empty((rows.shape[0], y_width), np.float32)
    x_scratch, y_scratch, none = np.empty(x_width, np.float32), np.empty(y_width, np.float32), np.empty(0, np.int16)
    seed, step, tensor = address
    tokens, drawn = each * directions.shape[0], -1
    for t in range(start, stop):
        group = t // each
        if directions[group] != drawn:
            drawn = directions[group]
            for j in range(rows.shape[0]):
                select(seed, step, drawn, tensor, into[0], key, words)
                _vector(kind, key, rows[j], into[1], x_width, table, words, z, b[j])
                select(seed, step, drawn, tensor, onto[0], key, words)
                _vector(kind, key, rows[j], onto[1], y_width, table, words, z, a[j])
        token = load(x, none, x_form, t * x_width, x_width, x_scratch)
        sums = load(y, none, y_form, t * y_width, y_width, y_scratch)
        for j in range(rows.shape[0]):
            scale, one = _dot(token, b[j], x_width) * scales[group], a[j]
            for k in range(y_width):
                sums[k] = sums[k] + scale * one[k]
        if shifts.shape[0] > 0:
            one = shifts[t // (tokens // shifts.shape[0])]
            for k in range(y_width):
                sums[k] = sums[k] + one[k]
        if y_form != 0:
            to = y[t * y_width : (t + 1) * y_width]
            for k in range(y_width):
                to[k] = nearest(sums[k])


@jit
def _scale_rows(out, out_form, x, x_form, width, each, factors, shifts, start, stop):  # type: ignore[no-untyped-def]
    scratch, made, none = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(0, np.int16)
    ones, zeros = np.ones(width, np.float32), np.full(width, np.float32(-0.0))  # x * 1 + -0 is x, the sign of zero included
    for t in range(start, stop):
        row = load(x, none, x_form, t * width, width, scratch)
        factor = factors[t // each] if factors.shape[0] > 0 else ones
        shift = shifts[t // each] if shifts.shape[0] > 0 else zeros
        to = out[t * width : (t + 1) * width]
        value = to.view(np.float32) if out_form == 0 else made
        for k in range(width):
            value[k] = row[k] * factor[k] + shift[k]
        if out_form != 0:
            for k in range(width):
                to[k] = nearest(made[k])


def add_products(
    y: torch.Tensor,
    x: torch.Tensor,
    directions: torch.Tensor,
    scales: torch.Tensor,
    family: str,
    address: Address,
    into: tuple[int, int],
    onto: tuple[int, int],
    rows: slice,
    shifts: torch.Tensor | None = None,
) -> None:
    """y[t] += scales[g] * sum_j (x[t] . b_j) a_j + shifts[h] for the tokens t of each group g, with a_j and b_j of its direction.

    y: (tokens, n) and x: (tokens, m), contiguous. directions: int64 and scales: float32, (groups,), of as many consecutive tokens
    each. into, onto: the domain of b and of a, and the column where they begin. rows: the factors' rows in the address.
    shifts: float32 (other groups, n).
    """
    seed, step, tensor, _ = place(address)
    arguments = (storage(y), FORMATS[y.dtype], y.shape[1], storage(x), FORMATS[x.dtype], x.shape[1], len(y) // len(directions))
    added = np.empty((0, 0), np.float32) if shifts is None else shifts.contiguous().numpy()
    groups = (directions.numpy(), scales.numpy(), added, KINDS[family], (seed, step, tensor), into, onto)
    over_rows(_add_products_rows, (*arguments, *groups, np.arange(rows.start, rows.stop), TABLE), len(y), y.numel() + x.numel())


def scale_rows(x: torch.Tensor, factors: torch.Tensor | None, shifts: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """out[t] <- x[t] * factors[g] + shifts[g] for the tokens t of each group g, in float32, rounded once. Returns out.

    x, out: (..., n), contiguous. factors, shifts: float32 (groups, n), of as many consecutive tokens each; None leaves it out.
    """
    width = x.shape[-1]
    flat, to = x.view(-1, width), out.view(-1, width)
    groups = next(len(values) for values in (factors, shifts) if values is not None)
    given = [np.empty((0, 0), np.float32) if values is None else values.contiguous().numpy() for values in (factors, shifts)]
    arguments = (storage(to), FORMATS[out.dtype], storage(flat), FORMATS[x.dtype], width, len(flat) // groups, *given)
    over_rows(_scale_rows, arguments, len(flat), x.numel())
    return out
