"""The product with a packed matrix whose gain is trained, as each example sees it.

A chunk of the matrix is decoded once for all signs of a direction. A direction z of gains moves a weight W0, the matrix as it lies
in its file, by eps z W0; one of rank one, z = a b^T, adds eps a ((x b) W0^T) to a row's product, with b spread over its blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from zerograd.evaluate import half, products, rules
from zerograd.evaluate.operations import Operation
from zerograd.evaluate.products import Chunks
from zerograd.evaluate.trace import MatrixPart, Trace
from zerograd.machine import workers
from zerograd.quantised import matrix
from zerograd.quantised.formats import FORMATS, Format


def packed_linear(trace: Trace, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """x W^T + bias, where the gain of W, the bias or both are trained."""
    x, blocks, gain, bias, name, dtype = args
    format, space = FORMATS[name], trace.space(gain)
    if trace.name(gain) is not None and (space is None or trace.directions.family.is_modulated(space)):
        return NotImplemented

    def product(repeat: rules.Repeat, shifts: torch.Tensor | None) -> tuple[torch.Tensor, bool]:
        if space is None:
            return matrix.product(x, blocks, format, gain, None, dtype), False
        part = products.of_space(space)
        if trace.directions.family.rank_in(space):
            return _low_rank(trace, x, part, repeat, blocks, format, dtype), False
        chunked = functools.partial(GainedChunks, blocks, format, half.is_slow(x))
        return products.dense(trace, x, part, repeat, False, None, chunked), False

    return rules.biased(trace, x, str(trace.name(gain) or trace.name(bias)), len(blocks), bias, product)


class GainedChunks(Chunks):
    """Chunks of a packed matrix with perturbed gains.

    wide: whether they are wanted in float32, holding values of the dtype.
    """

    def __init__(self, blocks: torch.Tensor, format: Format, wide: bool, *given: Any) -> None:
        """given: as `Chunks` takes it."""
        super().__init__(*given)
        self.blocks, self.format = blocks, format
        self.held = torch.bfloat16 if self.dtype == torch.bfloat16 and not wide else torch.float32
        self.own, self.of_gains = matrix.Buffers(), matrix.Buffers()

    def perturbed(self, direction: int, begin: int, end: int) -> list[torch.Tensor]:
        variants, space = self.variants[direction], self.part.space
        rows, columns = end - begin, space.view[2] * self.format.weights
        gains = self.of_gains.get(len(variants), rows, space.view[2], torch.float32, space.device)
        coefficients = [variant.coefficient * self.amplitude for variant in variants]
        self.whole[direction](list(gains), coefficients, begin, end)
        outs = self.own.get(len(variants), rows, columns, self.held, space.device)
        matrix.unpack_into(outs, self.blocks[begin:end], self.format, gains, self.dtype == torch.bfloat16)
        return list(outs)


def _low_rank(
    trace: Trace,
    x: torch.Tensor,
    part: MatrixPart,
    repeat: rules.Repeat,
    blocks: torch.Tensor,
    format: Format,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The product with gains whose directions are factored: a chunk is decoded once, and met by x and by x times each factor."""
    plan, space = trace.plan, part.space
    seen = slice(None) if isinstance(repeat, int) else repeat
    coefficients = (plan.example_coefficients * trace.amplitude(space))[seen]
    wide = torch.float32 if half.is_slow(x) else x.dtype
    flat = x.reshape(-1, x.shape[-1]).to(wide)
    y = x.new_empty((len(flat), len(blocks)))
    if not len(coefficients) or not x.numel():
        return y.view(*x.shape[:-1], len(blocks))
    a, b = products.factors_of(trace, part)  # (directions, rank, rows), (directions, rank, blocks)
    index = plan.example_places[seen]
    a, b = a[index], b[index] * coefficients[:, None, None]  # of each group of tokens
    groups = flat.view(len(index), -1, x.shape[-1])
    moved = [  # x times a factor, spread over the weights of its blocks
        (groups * b[:, j, None].repeat_interleave(format.weights, 2).to(wide)).view(flat.shape) for j in range(b.shape[1])
    ]
    buffers, gain = matrix.Buffers(), space.weight()
    held = torch.bfloat16 if wide == torch.bfloat16 else torch.float32

    def work(some: slice) -> None:
        rows = some.stop - some.start
        pair = buffers.get(2, rows, x.shape[-1], held, x.device)
        gains = torch.stack([gain[some], torch.zeros_like(gain[some])])
        matrix.unpack_into(pair, blocks[some], format, gains, dtype == torch.bfloat16)
        gained, plain = pair.to(wide)
        made = torch.mm(flat, gained.t())
        for j, one in enumerate(moved):
            change = torch.mm(one, plain.t()).view(len(index), -1, rows)
            made.view(change.shape).addcmul_(change, a[:, j, None, some].to(wide))
        y[:, some] = made

    workers.each(work, matrix.chunks(len(blocks), x.shape[-1]), workers.count(x.device))
    return y.view(*x.shape[:-1], len(blocks))


def register() -> None:
    """Let the perturbed forward know the product."""
    rules.register("packed_linear", Operation("product", weight_ndim=2, rule="linear"), packed_linear)
