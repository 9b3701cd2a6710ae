"""Packed matrices: blocks of bytes that a product or a lookup unpacks a chunk at a time, and the modules that hold them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from zerograd import noise
from zerograd.evaluate import half
from zerograd.machine import workers
from zerograd.quantised.formats import FORMATS, Format

CHUNK = 1 << 19
"""Weights that are unpacked at a time: 2 MB in float32. Chunks depend on the matrix alone, so that a product has the same bits
whatever rows are beside it in the batch.
"""

ALL = slice(None)


class Gain(nn.Parameter):
    """A trained factor of each block: the weight is (1 + gain) (d A + m B). float32 (rows, blocks), zero at first.

    unit: of a direction in it; eps and lr are relative to each block's own scale. multiplies: weights that a value stands for.
    read_as: the dtype that they are rounded to.
    """

    unit = 1.0
    multiplies = 1
    read_as = torch.float32

    @classmethod
    def of(cls, blocks: Tensor, format: Format, dtype: torch.dtype) -> Gain:
        """The gain of a matrix as it lies in its file. dtype: that its weights are rounded to."""
        made = cls(torch.zeros(len(blocks), blocks.shape[1] // format.bytes, device=blocks.device))
        made.multiplies, made.read_as = format.weights, dtype
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Gain:
        made = cast(Gain, super().__deepcopy__(memo))  # type: ignore[no-untyped-call]
        made.multiplies, made.read_as = self.multiplies, self.read_as
        return made


@dataclass(frozen=True)
class Home:
    """Where the bytes of a matrix came from, and go back to.

    file: a path. tensor: its name there. order: which of the tensor's rows each row of the matrix is, int64; None for the same.
    """

    file: str
    tensor: str
    order: Tensor | None


def unpack_into(outs: Tensor, blocks: Tensor, format: Format, gains: Tensor | None, to_bfloat16: bool) -> None:
    """outs[k] <- the weights of rows times 1 + gains[k], in one decoding of each row.

    outs: (k, rows, columns), contiguous, float32 or bfloat16. blocks: uint8 (rows, bytes of a row), contiguous. gains: float32 (k,
    rows, blocks), contiguous; None for one copy without. to_bfloat16: round to the nearest bfloat16, which a float32 holds too.
    """
    if noise.is_fast(outs) and blocks.is_contiguous():
        from zerograd.quantised import kernels

        kernels.unpack(outs, blocks, format, gains, to_bfloat16)
        return
    weights = format.unpacked(blocks)
    for k, out in enumerate(outs):
        made = weights
        if gains is not None:
            made = (weights.view(*gains[k].shape, format.weights) * (1 + gains[k])[..., None]).flatten(-2)
        out.copy_(made.to(torch.bfloat16) if to_bfloat16 else made)


def unpacked(blocks: Tensor, format: Format, dtype: torch.dtype, gain: Tensor | None = None) -> Tensor:
    """The weights of some rows in a dtype: (rows, columns). gain: float32 (rows, blocks)."""
    made = dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32
    out = torch.empty(1, *sizes(blocks, format), dtype=made, device=blocks.device)
    gains = None if gain is None else gain.detach()[None].contiguous()
    unpack_into(out, blocks.contiguous(), format, gains, made == torch.bfloat16)
    return out[0].to(dtype)


def sizes(blocks: Tensor, format: Format) -> tuple[int, int]:
    """(rows, columns) of an unpacked matrix."""
    return len(blocks), blocks.shape[1] // format.bytes * format.weights


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """The rows of a matrix in parts of about CHUNK weights."""
    each = max(1, CHUNK // columns)
    return (slice(first, min(first + each, rows)) for first in range(0, rows, each))


class Buffers(threading.local):
    """A worker's own buffers for unpacked chunks: as few as it needs at a time, kept for the length of a product."""

    def __init__(self) -> None:
        self.of_size: dict[tuple[Any, ...], Tensor] = {}

    def get(self, copies: int, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for copies of some rows: (copies, rows, columns)."""
        key = (copies, columns, dtype)
        values = copies * rows * columns
        if key not in self.of_size or self.of_size[key].numel() < values:
            self.of_size[key] = torch.empty(values, dtype=dtype, device=device)
        return self.of_size[key][:values].view(copies, rows, columns)


def product(x: Tensor, blocks: Tensor, format: Format, gain: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x W^T + bias, in the dtype of x, without an unpacked W. dtype: what weights are rounded to before."""
    rows, columns = sizes(blocks, format)
    wide = torch.float32 if half.is_slow(x) else x.dtype
    flat = x.reshape(-1, columns).to(wide)
    y, buffers, rounds = x.new_empty((len(flat), rows)), Buffers(), dtype == torch.bfloat16
    held = wide if wide in (torch.float32, torch.bfloat16) else torch.float32

    def work(some: slice) -> None:
        chunk = buffers.get(1, some.stop - some.start, columns, held, blocks.device)
        given = None if gain is None else gain.detach()[None, some]
        unpack_into(chunk, blocks[some], format, given, rounds)
        weight = chunk[0].to(wide)
        part = None if bias is None else bias[some].to(wide)
        if wide == y.dtype and part is None:
            torch.mm(flat, weight.t(), out=y[:, some])
        else:
            y[:, some] = F.linear(flat, weight, part)

    workers.each(work, chunks(rows, columns), workers.count(x.device))
    return y.view(*x.shape[:-1], rows)


def transposed_product(y: Tensor, blocks: Tensor, format: Format, gain: Tensor | None, dtype: torch.dtype) -> Tensor:
    """y W, in the dtype of y: what a backward pass takes to the layer below."""
    rows, columns = sizes(blocks, format)
    flat = y.reshape(-1, rows)
    total = torch.zeros(len(flat), columns, dtype=torch.float32, device=y.device)
    for some in chunks(rows, columns):
        weight = unpacked(blocks[some], format, dtype, None if gain is None else gain[some])
        total += flat[:, some].float() @ weight.float()
    return total.to(y.dtype).view(*y.shape[:-1], columns)


class _Product(torch.autograd.Function):
    """`product` where gradients or tangents are taken of it; the unpacked matrix is not kept for the backward pass."""

    @staticmethod
    def forward(x: Tensor, gain: Tensor | None, blocks: Tensor, format: str, dtype: torch.dtype) -> Tensor:
        return product(x, blocks, FORMATS[format], gain, None, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, gain, blocks, ctx.format, ctx.dtype = inputs
        ctx.save_for_backward(x, gain, blocks)
        ctx.save_for_forward(x, gain, blocks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, blocks = ctx.saved_tensors
        format = FORMATS[ctx.format]
        to_x = transposed_product(grad, blocks, format, gain, ctx.dtype) if ctx.needs_input_grad[0] else None
        to_gain = None
        if gain is not None and ctx.needs_input_grad[1]:
            flat_x, flat_y = x.reshape(-1, x.shape[-1]).float(), grad.reshape(-1, grad.shape[-1]).float()
            to_gain = torch.empty_like(gain)
            for some in chunks(*sizes(blocks, format)):
                of_weights = (flat_y[:, some].t() @ flat_x) * unpacked(blocks[some], format, torch.float32)
                to_gain[some] = of_weights.view(*to_gain[some].shape, format.weights).sum(-1)
        return to_x, to_gain, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, gain_t: Tensor | None, *others: Any) -> Tensor:
        x, gain, blocks = ctx.saved_tensors
        format = FORMATS[ctx.format]
        total: Tensor = x.new_zeros((*x.shape[:-1], len(blocks)))
        if x_t is not None:
            total = total + product(x_t, blocks, format, gain, None, ctx.dtype)
        if gain_t is not None:  # the tangent of (1 + g) W is g' W, which is the product with a gain of g' - 1
            total = total + product(x, blocks, format, gain_t - 1, None, torch.float32)
        return total


def packed_linear(x: Tensor, blocks: Tensor, gain: Tensor | None, bias: Tensor | None, format: str, dtype: torch.dtype) -> Tensor:
    """x W^T + bias with a packed W, in the dtype of x.

    x: (..., columns). blocks: uint8 (rows, bytes of a row). gain: float32 (rows, blocks) or None. bias: (rows,) or None. format: a
    name in FORMATS. dtype: what weights are rounded to, bfloat16 or float32.
    """
    given = (x, blocks) if gain is None else (x, blocks, gain)
    given = given if bias is None else (*given, bias)
    if has_torch_function(given):
        return handle_torch_function(packed_linear, given, x, blocks, gain, bias, format, dtype)
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or (gain is not None and gain.requires_grad))
    if wants_gradient or _is_dual(x, gain):
        y = cast(Tensor, _Product.apply(x, gain, blocks, format, dtype))  # type: ignore[no-untyped-call]
        return y if bias is None else y + bias.to(y.dtype)
    return product(x, blocks, FORMATS[format], gain, bias, dtype)


def _is_dual(*values: Tensor | None) -> bool:
    """Whether one of some tensors has a tangent, in forward-mode differentiation."""
    if forward_ad._current_level < 0:
        return False
    return any(value is not None and forward_ad.unpack_dual(value).tangent is not None for value in values)  # type: ignore[no-untyped-call]


class Packed(nn.Module):
    """What packed modules share: the blocks in a buffer `weight`, and perhaps a trained gain.

    format: the name of one of FORMATS. dtype: what weights are rounded to. home: where the bytes came from.
    """

    weight: Tensor
    gain: Gain | None
    format: str
    dtype: torch.dtype
    home: Home | None

    def hold(self, blocks: Tensor, format: Format, dtype: torch.dtype, home: Home | None = None) -> None:
        """Take blocks in place of a parameter `weight`."""
        self._parameters.pop("weight", None)
        self.register_buffer("weight", blocks)
        self.register_parameter("gain", None)
        self.format, self.dtype, self.home = format.name, dtype, home

    def rows(self, some: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows of the weight in a dtype, once rounded to the module's: (rows, columns)."""
        format = FORMATS[self.format]
        if self.gain is None:
            return unpacked(self.weight[some], format, self.dtype).to(dtype)
        exact = unpacked(self.weight[some], format, torch.float32)
        gained = exact.view(len(exact), -1, format.weights) * (1 + self.gain[some])[..., None]
        return gained.flatten(-2).to(self.dtype).to(dtype)

    def counted(self) -> Iterator[tuple[str, Tensor]]:
        """What stands for the matrix among the model's tensors, and the module's parameters."""
        yield ("weight", self.weight) if self.gain is None else ("gain", self.gain)
        yield from ((name, p) for name, p in self._parameters.items() if p is not None and name != "gain")


class PackedLinear(Packed, nn.Linear):
    """A linear layer whose matrix stays packed."""

    def forward(self, x: Tensor) -> Tensor:
        return packed_linear(x, self.weight, self.gain, self.bias, self.format, self.dtype)


class PackedEmbedding(Packed, nn.Embedding):
    """A table of embeddings that stays packed: the rows that ids name are unpacked."""

    def forward(self, ids: Tensor) -> Tensor:
        flat, format = ids.reshape(-1), FORMATS[self.format]
        if self.gain is None:
            made = _looked_up(flat, self.weight, self.format, self.dtype)
        else:
            exact = _looked_up(flat, self.weight, self.format, torch.float32)
            factors = 1 + F.embedding(flat, self.gain)
            made = (exact.view(len(flat), -1, format.weights) * factors[..., None]).view(len(flat), -1).to(self.dtype)
        return made.view(*ids.shape, -1)


def _looked_up(ids: Tensor, blocks: Tensor, format: str, dtype: torch.dtype) -> Tensor:
    """The rows of a packed table that ids name."""
    if has_torch_function((ids, blocks)):
        return handle_torch_function(_looked_up, (ids, blocks), ids, blocks, format, dtype)
    return unpacked(blocks[ids], FORMATS[format], dtype)


def pack(module: nn.Module, blocks: Tensor, format: Format, dtype: torch.dtype, home: Home | None = None) -> Packed:
    """Make a linear layer or a table of embeddings a packed one, in place, and return it.

    A subclass stays one: what its own forward adds to that of `nn.Linear` or `nn.Embedding` is added to the packed one's.
    """
    own = type(module)
    base = PackedLinear if isinstance(module, nn.Linear) else PackedEmbedding
    module.__class__ = base if own in (nn.Linear, nn.Embedding) else type(f"Packed{own.__name__}", (own, base), {})
    packed = cast(Packed, module)
    packed.hold(blocks, format, dtype, home)
    return packed
