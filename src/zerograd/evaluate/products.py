"""Products of the batch with a perturbed matrix.

Low-rank directions add (x b) a^T to the plain product. Dense ones walk the weight in chunks: a worker perturbs a chunk
once for all signs of a direction, and multiplies with it. Products are computed in the dtype of the activations.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from zerograd import noise
from zerograd.directions.directions import MODULATED
from zerograd.evaluate import half
from zerograd.evaluate.trace import MatrixPart, Trace
from zerograd.machine import workers
from zerograd.noise import LEFT, RIGHT
from zerograd.noise.reference import PerturbRows
from zerograd.queries import Variant
from zerograd.spaces import Space

BUFFER = 12 << 20
"""Bytes of the chunk buffers of all workers together. Larger chunks make faster products, smaller ones stay in cache.
"""

DEVICE_BUFFER = 256 << 20
"""The same on an accelerator, where one thread asks for all chunks."""

IDLE = 1.15
"""The time a product may take, as a multiple of its time with all workers busy, for the sake of larger chunks."""

CAST = 1 << 20
"""Values of a weight that are cast to another dtype at a time."""


def of_space(space: Space) -> MatrixPart:
    """The only matrix of a space."""
    return MatrixPart(space, 0, space.view[1])


def of_stack(space: Space, e: int) -> MatrixPart:
    """Matrix `e` of a space's stack."""
    return MatrixPart(space, e * space.view[1], (e + 1) * space.view[1])


def plain(x: torch.Tensor, weight: torch.Tensor, transposed: bool) -> torch.Tensor:
    """A product with the unperturbed weight, in the dtype of x; a weight of another dtype is cast a chunk at a time."""
    flat = x.reshape(-1, x.shape[-1])  # torch folds a strided activation only for weights that require grad
    if weight.dtype == x.dtype or transposed:
        weight = weight.to(x.dtype)
        y = half.linear(flat, weight.t() if transposed else weight)
        return y.view(*x.shape[:-1], y.shape[1])
    y = flat.new_empty((len(flat), weight.shape[0]))
    step = max(1, CAST // weight.shape[1])
    for first in range(0, weight.shape[0], step):
        y[:, first : first + step] = half.linear(flat, weight[first : first + step].to(x.dtype))
    return y.view(*x.shape[:-1], y.shape[1])


def low_rank(
    trace: Trace,
    x: torch.Tensor,
    part: MatrixPart,
    repeat: int | torch.Tensor,
    transposed: bool,
    shifts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, bool]:
    """A product with factored perturbations: the plain product, plus (x b) a^T example by example.

    shifts: float32 (groups, n), to be added to the product. Returns the product, and whether shifts have been added.
    """
    y = plain(x, part.weight(), transposed)
    directions, plan, space = trace.directions, trace.plan, part.space
    seen = slice(None) if isinstance(repeat, int) else repeat
    coefficients = (plan.example_coefficients * trace.amplitude(space))[seen]
    if not len(coefficients) or not x.numel():
        return y, False
    e, rank = part.first // space.view[1], directions.family.rank_in(space)
    within = slice(e * rank, (e + 1) * rank)
    if directions.family.is_modulated(space):
        return _modulated(trace, x, part, coefficients, seen, transposed, y), False
    steps = directions.family.factor_steps(directions.step)
    if part.ids is None and steps is not None and noise.is_fast(x, y):
        rows, columns = (LEFT, steps[0], part.first - e * space.view[1]), (RIGHT, steps[1], 0)
        into, onto = (rows, columns) if transposed else (columns, rows)
        from zerograd.evaluate import kernels

        flat, address = x.reshape(-1, x.shape[-1]).contiguous(), directions.address(space)
        noise_of = (directions.family.distribution, address, into, onto, within)
        kernels.add_products(y.view(-1, y.shape[-1]), flat, plan.example_directions[seen], coefficients, *noise_of, shifts)
        return y, True
    index = plan.example_places[seen]
    a, b = (factor.to(x.dtype) for factor in factors_of(trace, part))  # (directions, rank, rows), (directions, rank, columns)
    b, a = (a, b) if transposed else (b, a)
    u = torch.bmm(x.reshape(len(index), -1, x.shape[-1]), b[index].transpose(1, 2))  # (groups, tokens, rank)
    u *= coefficients.to(x.dtype)[:, None, None]
    y.view(len(index), -1, y.shape[-1]).baddbmm_(u, a[index])
    return y, False


def factors_of(trace: Trace, part: MatrixPart) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of the plan's directions in a part of a space: float32 (directions, rank, rows), (directions, rank, columns)."""
    directions, space = trace.directions, part.space
    e, rank = part.first // space.view[1], directions.family.rank_in(space)
    a, b = directions.factors(space, trace.plan.directions)
    a = a[..., part.first - e * space.view[1] : part.stop - e * space.view[1]] if part.ids is None else a[..., part.ids]
    within = slice(e * rank, (e + 1) * rank)
    return a[:, within], b[:, within]


def _modulated(
    trace: Trace,
    x: torch.Tensor,
    part: MatrixPart,
    coefficients: torch.Tensor,
    seen: slice | torch.Tensor,
    transposed: bool,
    y: torch.Tensor,
) -> torch.Tensor:
    """y plus factored perturbations under a modulation F: sum_j a_j * (F (b_j * x)) example by example, rows of F in
    chunks.
    """
    directions, plan, space = trace.directions, trace.plan, part.space
    index = plan.example_places[seen]
    a, b = (factor[index].to(x.dtype) for factor in factors_of(trace, part))  # (groups, rank, rows), (groups, rank, columns)
    rank = a.shape[1]
    flat = x.reshape(len(index), -1, x.shape[-1])
    grouped, scale = y.view(len(index), -1, y.shape[-1]), coefficients.to(x.dtype)[:, None, None]
    where = torch.arange(part.first, part.stop, device=x.device) if part.ids is None else part.ids
    step = max(1, MODULATED // space.view[2])
    for first in range(0, len(where), step):
        some = slice(first, min(first + step, len(where)))
        factors = directions.modulation(space, where[some])
        assert factors is not None
        factors = factors.to(x.dtype)
        for j in range(rank):
            left, right = a[:, j, None, some], b[:, j, None]
            if transposed:
                grouped += torch.matmul(flat[..., some] * left, factors) * (right * scale)
            else:
                grouped[..., some] += torch.matmul(flat * right, factors.t()) * (left * scale)
    return y


def dense(
    trace: Trace,
    x: torch.Tensor,
    part: MatrixPart,
    repeat: int | torch.Tensor,
    transposed: bool,
    shifts: torch.Tensor | None = None,
    chunked: Callable[..., Chunks] | None = None,
) -> torch.Tensor:
    """A product with dense perturbations, in chunks of the result's columns; one draw of noise for all signs of a
    direction.

    shifts: in the dtype of x, (variants, n) or (1, n), to be added to the product. chunked: makes the chunks, `Chunks` by default.
    """
    flat = x.reshape(-1, x.shape[-1])
    width = part.space.view[2] if transposed else part.rows
    y = flat.new_empty((len(flat), width))
    dtype = torch.float32 if half.is_slow(x) else x.dtype  # of the products; chunks are rounded to the dtype of x before
    branches: dict[int, list[Branch]] = {}
    for i, variant in enumerate(trace.plan.variants()):
        rows = _tokens(trace, variant, repeat, len(flat) // max(1, x.shape[0]))
        to = y[rows] if isinstance(rows, slice) and dtype == y.dtype else None
        shift = None if shifts is None else shifts[i if len(shifts) > 1 else 0]
        branches.setdefault(variant.direction, []).append(Branch(variant, rows, flat[rows].to(dtype), to, shift))
    row_bytes, threads = x.shape[-1] * x.itemsize * max(map(len, branches.values())), workers.count(x.device)
    step = _step(width, row_bytes, len(branches), threads, BUFFER if x.device.type == "cpu" else DEVICE_BUFFER)
    variants = {direction: [branch.variant for branch in some] for direction, some in branches.items()}
    chunks = (chunked or Chunks)(trace, part, transposed, x.dtype, variants, step)

    def work(item: tuple[int, int]) -> None:
        direction, begin = item
        end = min(begin + step, width)
        for branch, chunk in zip(branches[direction], chunks.perturbed(direction, begin, end), strict=True):
            shift = None if branch.shift is None else branch.shift[begin:end].to(branch.x.dtype)
            factor = (chunk if transposed else chunk.t()).to(branch.x.dtype)
            to = None if branch.to is None else branch.to.narrow(1, begin, end - begin)
            product = torch.mm(branch.x, factor, out=to) if shift is None else torch.addmm(shift, branch.x, factor, out=to)
            if to is None:
                y[branch.rows, begin:end] = product

    workers.each(work, itertools.product(branches, range(0, width, step)), threads)
    return y.view(*x.shape[:-1], width)


class Branch(NamedTuple):
    """A variant of a product.

    rows: its rows of the flattened batch. x: these rows' activations, in the dtype of the products. to: where their products
    go, when rows are a slice of that dtype. shift: what is added to their products.
    """

    variant: Variant
    rows: slice | torch.Tensor
    x: torch.Tensor
    to: torch.Tensor | None
    shift: torch.Tensor | None


class Chunks:
    """The perturbed chunks of a matrix: rows of it, or columns for a transposed product, in buffers of the worker that
    asks.

    variants: those of each direction. step: rows or columns of a chunk, at most.
    """

    def __init__(
        self,
        trace: Trace,
        part: MatrixPart,
        transposed: bool,
        dtype: torch.dtype,
        variants: Mapping[int, Sequence[Variant]],
        step: int,
    ) -> None:
        self.trace, self.part, self.transposed, self.dtype, self.variants = trace, part, transposed, dtype, variants
        self.size = step * (part.rows if transposed else part.space.view[2])
        self.whole = {} if transposed or part.ids is not None else {d: self._perturber(d, slice(None)) for d in variants}
        self.amplitude = trace.amplitude(part.space)
        self.of_worker = threading.local()

    def perturbed(self, direction: int, begin: int, end: int) -> list[torch.Tensor]:
        """A chunk for each variant of a direction, begin .. end of the matrix's rows, or of its columns when it is
        transposed.

        They are good until the worker asks again. A chunk of coefficient 0 is the weight itself where it has the wanted
        dtype.
        """
        part, variants = self.part, self.variants[direction]
        if part.ids is not None:
            ids, columns = (part.ids, slice(begin, end)) if self.transposed else (part.ids[begin:end], slice(None))
            return [self.trace.perturbed(part.space, variant, ids, self.dtype)[:, columns] for variant in variants]
        columns = slice(begin, end) if self.transposed else slice(None)
        start, stop = (0, part.rows) if self.transposed else (begin, end)
        weight = part.weight()[start:stop, columns]
        chunks, outs, coefficients = [], [], []
        for variant, buffer in zip(variants, self._buffers(len(variants)), strict=False):
            if variant.coefficient == 0 and weight.dtype == self.dtype:
                chunks.append(weight)
                continue
            chunks.append(buffer[: weight.numel()].view(weight.shape))
            outs.append(chunks[-1])
            coefficients.append(variant.coefficient * self.amplitude)
        if outs:
            perturb = self._perturber(direction, columns) if self.transposed else self.whole[direction]
            perturb(outs, coefficients, start, stop)
        return chunks

    def _buffers(self, count: int) -> list[torch.Tensor]:
        buffers: list[torch.Tensor] = self.of_worker.__dict__.setdefault("buffers", [])
        while len(buffers) < count:
            buffers.append(torch.empty(self.size, dtype=self.dtype, device=self.part.space.device))
        return buffers

    def _perturber(self, direction: int, columns: slice) -> PerturbRows:
        return self.trace.directions.perturber(self.part.space, direction, slice(self.part.first, self.part.stop), columns)


def _step(width: int, row_bytes: int, directions: int, threads: int, buffer: int) -> int:
    """Rows of a chunk: as many as a worker's buffers allow, fewer where some workers would wait for the others."""
    most = max(1, buffer // (max(1, row_bytes) * threads))
    blocks = max(1, -(-width // most))
    while -(-directions * blocks // threads) * threads > IDLE * directions * blocks:
        blocks += 1
    return max(1, min(width, -(-width // (blocks * 16)) * 16))


def _tokens(trace: Trace, variant: Variant, repeat: int | torch.Tensor, each: int) -> slice | torch.Tensor:
    """The rows of the flattened batch that see a variant; a leading row has `each` of them."""
    if trace.whole:
        return slice(None)
    at = trace.at(variant, repeat)
    if isinstance(at, slice):
        return slice(at.start * each, at.stop * each)
    return at if each == 1 else (at[:, None] * each + torch.arange(each, device=at.device)).flatten()
