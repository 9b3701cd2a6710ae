"""The perturbed forward's own kernels: what a direction of an example's own adds to an activation, in one pass over it.

Noise is drawn where it is used; an activation is read and written once and stays in its dtype, float32 or bfloat16,
with sums in float32. Each row of tokens is computed alone, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
import torch

from zerograd.evaluate.simd import COLUMNS, adds_of_four, adds_of_one, dots_of_four, dots_of_one, get, put, scaled
from zerograd.noise import Address
from zerograd.noise.compiled import FORMATS, KINDS, SCRATCH, TABLE, draw, jit, load, over_rows, place, select, storage

NOTHING = np.float32(-0.0)
"""What leaves every number as it is when it is added, zeros of either sign included."""


@jit
def _vector(kind, key, row, first, count, table, words, z, out):  # type: ignore[no-untyped-def]
    """z of a row's columns first .. first + count, of any number, into out[0 .. count]."""
    for j in range(0, count, 2048):
        some = min(2048, count - j)
        out[j : j + some] = draw(kind, key, row, first + j, some, table, words, z)


@jit
def _inner(x, at, stride, rows, b, count, scale, sums):  # type: ignore[no-untyped-def]
    """sums[i] <- scale (x_i . b) for up to four rows."""
    whole = count // COLUMNS * COLUMNS
    if rows == 4:
        dots_of_four(x, at, stride, b, whole, sums)
    else:
        for i in range(rows):
            dots_of_one(x, at + i * stride, 0, b, whole, sums[i:])
    for i in range(rows):
        for k in range(whole, count):
            sums[i] += get(x, at + i * stride + k) * b[k]
        sums[i] *= scale


@jit
def _outer(out, at, base, first, stride, rows, scales, a, shift, count):  # type: ignore[no-untyped-def]
    """out_i <- base_i + scales[i] a + shift for up to four rows."""
    whole = count // COLUMNS * COLUMNS
    if rows == 4:
        adds_of_four(out, at, base, first, stride, scales, a, shift, whole)
    else:
        for i in range(rows):
            adds_of_one(out, at + i * stride, base, first + i * stride, 0, scales[i:], a, shift, whole)
    for i in range(rows):
        for k in range(whole, count):
            put(out, at + i * stride + k, get(base, first + i * stride + k) + scales[i] * a[k] + shift[k])


@jit
def _add_ranks(y, y_width, x, x_width, t, some, scale, b, a, shift, unshifted, held, sums):  # type: ignore[no-untyped-def]
    """y_i <- y_i + scale sum_j (x_i . b_j) a_j + shift for up to four tokens from t on, in float32, rounded once."""
    at, rank = t * y_width, b.shape[0]
    for j in range(rank):
        _inner(x, t * x_width, x_width, some, b[j], x_width, scale, sums)
        if rank == 1:
            _outer(y, at, y, at, y_width, some, sums, a[j], shift, y_width)
        elif j == 0:
            _outer(held, 0, y, at, y_width, some, sums, a[j], shift, y_width)
        elif j < rank - 1:
            _outer(held, 0, held, 0, y_width, some, sums, a[j], unshifted, y_width)
        else:
            _outer(y, at, held, 0, y_width, some, sums, a[j], unshifted, y_width)


@jit
def _add_products_rows(  # type: ignore[no-untyped-def]
    y, y_width, x, x_width, each, directions, scales, shifts, each_shift, kind, address, into, onto, rows, table, start, stop
):
    words, key, z = np.empty(64, np.uint32), np.empty(4, np.uint64), np.empty(SCRATCH, np.float32)
    rank, unshifted, sums = rows.shape[0], np.full(y_width, NOTHING), np.empty(4, np.float32)
    b, a, held = np.empty((rank, x_width), np.float32), np.empty((rank, y_width), np.float32), np.empty(4 * y_width, np.uint32)
    seed, tensor = address
    t, drawn = start, -1
    while t < stop:
        group = t // each
        if directions[group] != drawn:
            drawn = directions[group]
            for j in range(rank):
                select(seed, into[1], drawn, tensor, into[0], key, words)
                _vector(kind, key, rows[j], into[2], x_width, table, words, z, b[j])
                select(seed, onto[1], drawn, tensor, onto[0], key, words)
                _vector(kind, key, rows[j], onto[2], y_width, table, words, z, a[j])
        some = min(4, stop - t, (group + 1) * each - t)
        shift = unshifted
        if shifts.shape[0] > 0:
            of = t // each_shift
            some, shift = min(some, (of + 1) * each_shift - t), shifts[of]
        _add_ranks(y, y_width, x, x_width, t, some, scales[group], b, a, shift, unshifted, held, sums)
        t += some


@jit
def _add_held_rows(  # type: ignore[no-untyped-def]
    y, y_width, x, x_width, each, places, scales, shifts, each_shift, b, a, start, stop
):
    unshifted, sums, held = np.full(y_width, NOTHING), np.empty(4, np.float32), np.empty(4 * y_width, np.uint32)
    t = start
    while t < stop:
        group = t // each
        some = min(4, stop - t, (group + 1) * each - t)
        shift = unshifted
        if shifts.shape[0] > 0:
            of = t // each_shift
            some, shift = min(some, (of + 1) * each_shift - t), shifts[of]
        place = places[group]
        _add_ranks(y, y_width, x, x_width, t, some, scales[group], b[place], a[place], shift, unshifted, held, sums)
        t += some


@jit
def _scale_rows(out, x, width, each, factors, shifts, start, stop):  # type: ignore[no-untyped-def]
    ones, unshifted, whole = np.ones(width, np.float32), np.full(width, NOTHING), width // COLUMNS * COLUMNS
    for t in range(start, stop):
        factor = factors[t // each] if factors.shape[0] > 0 else ones
        shift = shifts[t // each] if shifts.shape[0] > 0 else unshifted
        scaled(out, x, t * width, factor, shift, whole)
        for k in range(whole, width):
            put(out, t * width + k, get(x, t * width + k) * factor[k] + shift[k])


@jit
def _vectors(out, weight, remainder, form, kind, address, order, directions, signs, amplitude, table):  # type: ignore[no-untyped-def]
    words, key, z = np.empty(64, np.uint32), np.empty(4, np.uint64), np.empty(SCRATCH, np.float32)
    seed, step, tensor, domain = address
    width, drawn, of = out.shape[1], np.zeros(out.shape[1], np.float32), -1
    exact = load(weight, remainder, form, 0, width, np.empty(width, np.float32))
    for v in order:
        if signs[v] != 0 and directions[v] != of:
            of = directions[v]
            select(seed, step, of, tensor, domain, key, words)
            _vector(kind, key, 0, 0, width, table, words, z, drawn)
        coefficient, made = signs[v] * amplitude, out[v]
        for k in range(width):
            made[k] = exact[k] + drawn[k] * coefficient


def vectors(
    weight: torch.Tensor,
    remainder: torch.Tensor | None,
    family: str,
    address: Address,
    order: torch.Tensor,
    directions: torch.Tensor,
    signs: torch.Tensor,
    amplitude: float,
) -> torch.Tensor:
    """A vector for each variant: weight + signs[v] * amplitude * z of directions[v], float32 (variants, n).

    weight, remainder: (1, n). order: int64, the variants so that equal directions are neighbours. directions: int64 and
    signs: float32, (variants,).
    """
    out = torch.empty(len(directions), weight.shape[1], dtype=torch.float32)
    low = np.empty(0, np.int16) if remainder is None else remainder.numpy()[0]
    stored = (storage(weight), low, FORMATS[weight.dtype])
    variants = (order.numpy(), directions.numpy(), signs.numpy(), np.float32(amplitude))
    _vectors(out.numpy(), *stored, KINDS[family], place(address), *variants, TABLE)
    return out


def add_products(
    y: torch.Tensor,
    x: torch.Tensor,
    directions: torch.Tensor,
    scales: torch.Tensor,
    family: str,
    address: Address,
    into: tuple[int, int, int],
    onto: tuple[int, int, int],
    rows: slice,
    shifts: torch.Tensor | None = None,
) -> None:
    """y[t] += scales[g] * sum_j (x[t] . b_j) a_j + shifts[h] for the tokens t of each group g, with a_j and b_j of its
    direction.

    y: (tokens, n) and x: (tokens, m), contiguous. directions: int64 and scales: float32, (groups,), of as many
    consecutive tokens each. into, onto: the domain and the step of b and of a, and the column where they begin. rows:
    the factors' rows in the address. shifts: float32 (other groups, n).
    """
    seed, _, tensor, _ = place(address)
    arguments = (storage(y), y.shape[1], storage(x), x.shape[1], len(y) // len(directions), directions.numpy(), scales.numpy())
    added = (np.empty((0, 0), np.float32), 1) if shifts is None else (shifts.contiguous().numpy(), len(y) // len(shifts))
    groups = (*added, KINDS[family], (seed, tensor), into, onto)
    over_rows(_add_products_rows, (*arguments, *groups, np.arange(rows.start, rows.stop), TABLE), len(y), y.numel() + x.numel())


def add_held_products(
    y: torch.Tensor,
    x: torch.Tensor,
    places: torch.Tensor,
    scales: torch.Tensor,
    b: torch.Tensor,
    a: torch.Tensor,
    shifts: torch.Tensor | None = None,
) -> None:
    """As `add_products`, with factors that were drawn before: b float32 (directions, rank, m) and a (directions, rank, n).

    places: int64 (groups,), where each group's direction stands in them. The bits are those of `add_products`.
    """
    arguments = (storage(y), y.shape[1], storage(x), x.shape[1], len(y) // len(places), places.numpy(), scales.numpy())
    added = (np.empty((0, 0), np.float32), 1) if shifts is None else (shifts.contiguous().numpy(), len(y) // len(shifts))
    over_rows(_add_held_rows, (*arguments, *added, b.numpy(), a.numpy()), len(y), y.numel() + x.numel())


def scale_rows(x: torch.Tensor, factors: torch.Tensor | None, shifts: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """out[t] <- x[t] * factors[g] + shifts[g] for the tokens t of each group g, in float32, rounded once. Returns out.

    x, out: (..., n), contiguous. factors, shifts: float32 (groups, n), of as many consecutive tokens each; None leaves
    it out.
    """
    width = x.shape[-1]
    flat, to = x.view(-1, width), out.view(-1, width)
    groups = next(len(values) for values in (factors, shifts) if values is not None)
    given = [np.empty((0, 0), np.float32) if values is None else values.contiguous().numpy() for values in (factors, shifts)]
    arguments = (storage(to), storage(flat), width, len(flat) // groups, *given)
    over_rows(_scale_rows, arguments, len(flat), x.numel())
    return out
