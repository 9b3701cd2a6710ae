"""Fast rules of the perturbed forward: the operations in which models spend their time.

A rule takes (forward, func, args, kwargs) and returns the result, or NotImplemented to leave the operation to the
generic way of `perturb.forward`. Products are computed in the dtype of the activations; a perturbed chunk is formed in
float32 and rounded once; vectors (biases, scales of norms) stay float32 until they have met the activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from zerograd import noise
from zerograd.perturb.forward import Derived, Part, PerturbedForward, UnresolvedOperation
from zerograd.perturb.plan import Variant
from zerograd.perturb.rows import MARK
from zerograd.spaces.weights import Slot

CHUNK = 1 << 20
"""Values of a weight that are perturbed at a time: a chunk and its signs stay within a few megabytes."""

SMALL = 1 << 16
"""Values of a tensor up to which it is held once per example, so that an elementwise operation needs one call."""

Args = Sequence[Any]
Rule = Callable[[PerturbedForward, Callable[..., Any], Args, dict[str, Any]], Any]


def linear(forward: PerturbedForward, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """x W^T + bias."""
    x, weight, bias = _arguments(("input", "weight", "bias"), args, kwargs)
    return _affine(forward, x, weight, bias, transposed=False)


def addmm(forward: PerturbedForward, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """bias + x W, as GPT-2's Conv1D writes it."""
    bias, x, weight = _arguments(("input", "mat1", "mat2"), args, kwargs)
    if kwargs.keys() & {"alpha", "beta", "out"}:
        return NotImplemented
    return _affine(forward, x, weight, bias, transposed=True)


def matmul(forward: PerturbedForward, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """x W."""
    x, weight = _arguments(("input", "other"), args, kwargs)
    if x.ndim < 2 or "out" in kwargs:
        return NotImplemented
    return _affine(forward, x, weight, None, transposed=True)


def embedding(forward: PerturbedForward, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """Rows of W picked by ids: only they are perturbed."""
    ids, weight, _, max_norm = _arguments(("input", "weight", "padding_idx", "max_norm"), args, kwargs)
    slot = forward.slot(weight)
    if max_norm is not None:
        raise UnresolvedOperation(
            f"{forward.name(weight)} is renormalised by its lookup (max_norm); build the embedding without it"
        )
    if slot is None or slot.parameter.ndim != 2:
        return NotImplemented
    if ids.numel() and int(ids.min()) < 0:
        raise IndexError(f"{slot.name} is looked up by a negative id")
    return _lookup(forward, ids, slot)


def getitem(forward: PerturbedForward, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """W[e]: a matrix of a stack, or a row; W[ids] is an embedding."""
    weight, index = args
    slot = forward.slot(weight)
    if slot is None:
        return NotImplemented
    scalar = isinstance(index, int) or (isinstance(index, torch.Tensor) and index.ndim == 0 and not index.dtype.is_floating_point)
    if scalar and slot.view[0] > 1 and slot.parameter.ndim == 3:
        e = int(index) % slot.view[0]

        def value(variant: Variant) -> torch.Tensor:
            rows = slice(e * slot.view[1], (e + 1) * slot.view[1])
            return forward.directions.perturbed(slot, variant.direction, [variant.sign], rows)[0]

        result = func(weight, e)
        setattr(result, MARK, Derived(forward, slot.name, value, Part(slot, e)))
        return result
    if scalar:
        return NotImplemented if forward.whole else forward.derive(func, (weight, int(index)), {}, weight)
    if isinstance(index, torch.Tensor) and index.dtype in (torch.int64, torch.int32) and slot.parameter.ndim == 2:
        from_start = torch.where(index < 0, index + slot.view[1], index)
        mark = forward.batched(index)
        return _lookup(forward, from_start if mark is None else forward.mark(from_start, mark.rows, lost=mark.lost), slot)
    return NotImplemented


def cast(forward: PerturbedForward, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """A matrix in another dtype is still that matrix: products choose their own dtype."""
    slot, derived = forward.slot(args[0]), forward.derived(args[0])
    part = Part(slot) if slot is not None and slot.parameter.ndim == 2 else derived.part if derived is not None else None
    like = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, torch.Tensor)]
    if like and not forward.whole and forward.name(like[0]) is None:
        return cast(forward, torch.Tensor.to, (args[0], like[0].dtype), {})
    if forward.whole or part is None or like:
        return NotImplemented
    before = args[0].dtype
    result = forward.derive(func, args, kwargs, args[0])
    made = forward.derived(result)
    if made is not None and torch.promote_types(before, result.dtype) == result.dtype:
        made.part = part
    return result


def layer_norm(forward: PerturbedForward, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """Normalise without the affine part, then multiply and add row by row, all in float32."""
    x, shape, weight, bias, eps = _arguments(("input", "normalized_shape", "weight", "bias", "eps"), args, kwargs)
    y = F.layer_norm(x.float(), shape, eps=1e-5 if eps is None else eps)
    return _scale_and_shift(forward, x, y, weight, bias)


def rms_norm(forward: PerturbedForward, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """As `layer_norm`, without the mean."""
    x, shape, weight, eps = _arguments(("input", "normalized_shape", "weight", "eps"), args, kwargs)
    y = F.rms_norm(x.float(), shape, eps=torch.finfo(x.dtype).eps if eps is None else eps)
    return _scale_and_shift(forward, x, y, weight, None)


def elementwise(forward: PerturbedForward, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """A small tensor of ours combined with the batch: held once per example, one call for all."""
    if forward.whole or len(args) != 2 or not all(isinstance(a, torch.Tensor) for a in args):
        return NotImplemented
    ours = [i for i, a in enumerate(args) if forward.name(a) is not None]
    if len(ours) != 1:
        return NotImplemented
    small, other = args[ours[0]], args[1 - ours[0]]
    mark = forward.batched(other)
    shape = small.shape[1:] if small.ndim == other.ndim and small.shape[:1] == (1,) else small.shape
    if mark is None or len(shape) >= other.ndim or small.numel() > max(SMALL, other.numel() // len(forward.plan)):
        return NotImplemented
    repeat = forward.repeat(other, str(forward.name(small)))
    values = _rows(forward, small, shape, repeat, other.ndim)
    inplace = ours[0] == 1 and (func.__name__.startswith("__i") or func.__name__.rstrip("_") + "_" == func.__name__)
    if not inplace and other.is_floating_point():
        other = other.to(values.dtype)
    result = func(*((values, other) if ours[0] == 0 else (other, values)), **kwargs)
    if inplace:
        return result
    return forward.mark(result.to(torch.result_type(small, args[1 - ours[0]])), mark.rows)


RULES: dict[str, Rule] = {
    "linear": linear,
    "addmm": addmm,
    "embedding": embedding,
    "__getitem__": getitem,
    **dict.fromkeys(("float", "to", "type_as", "bfloat16", "half", "contiguous", "detach"), cast),
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    **dict.fromkeys(("matmul", "__matmul__", "mm"), matmul),
    **dict.fromkeys(
        (
            *("add", "sub", "mul", "div", "true_divide", "multiply", "subtract", "add_", "sub_", "mul_", "div_"),
            *("__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "__mul__", "__rmul__", "__imul__"),
            *("__truediv__", "__rtruediv__", "__itruediv__", "rsub"),
        ),
        elementwise,
    ),
}


def _arguments(names: Sequence[str], args: Args, kwargs: dict[str, Any]) -> list[Any]:
    given = list(args[: len(names)])
    return given + [kwargs.get(name) for name in names[len(given) :]]


def _affine(forward: PerturbedForward, x: Any, weight: Any, bias: Any, *, transposed: bool) -> Any:
    slot, derived = forward.slot(weight), forward.derived(weight)
    part = Part(slot) if slot is not None and slot.view[0] == 1 else derived.part if derived is not None else None
    if forward.name(x) is not None or (part is None and (forward.name(weight) is not None or forward.slot(bias) is None)):
        return NotImplemented
    if part is not None and part.slot.parameter.ndim - (part.slot.view[0] > 1) != 2:
        return NotImplemented
    mark = forward.batched(x)
    if not forward.whole and mark is None:
        return NotImplemented
    repeat = 1 if forward.whole else forward.repeat(x, str(forward.name(weight) or forward.name(bias)))
    if part is None:
        y = _plain(x, weight, transposed)
    elif forward.directions.family.has_factors(part.slot):
        y = _low_rank(forward, x, part, repeat, transposed)
    else:
        y = _dense(forward, x, part, repeat, transposed)
    if bias is not None:
        if forward.name(bias) is None:
            y += bias
        else:
            y += _values(forward, bias)[0] if forward.whole else _rows(forward, bias, bias.shape, repeat, y.ndim)
    return y if mark is None else forward.mark(y, mark.rows)


def _dense(forward: PerturbedForward, x: torch.Tensor, part: Part, repeat: int | torch.Tensor, transposed: bool) -> torch.Tensor:
    """A product with dense perturbations: chunks of rows of the weight, one draw of noise for all signs of a direction."""
    slot, e, ids = part
    rows, columns = slot.view[1] if ids is None else len(ids), slot.view[2]
    step = rows if rows * columns <= CHUNK or ids is not None else max(1, CHUNK // columns)
    accumulate = transposed and step < rows
    out = columns if transposed else rows
    y = torch.empty((*x.shape[:-1], out), dtype=torch.float32 if accumulate else x.dtype)
    if accumulate:
        y.zero_()
    by_direction: dict[int, list[Variant]] = {}
    for variant in forward.plan.variants:
        by_direction.setdefault(variant.direction, []).append(variant)
    for first in range(0, rows, step):
        stop = min(first + step, rows)
        for direction, variants in by_direction.items():
            if ids is None:
                within = slice(e * slot.view[1] + first, e * slot.view[1] + stop)
                chunks = forward.directions.perturbed(slot, direction, [v.sign for v in variants], within, x.dtype)
            else:
                chunks = [_picked(forward, ids, slot, variant, x.dtype) for variant in variants]
            for variant, chunk in zip(variants, chunks, strict=True):
                at = slice(None) if forward.whole else forward.at(variant, repeat)
                mine = x[at]
                flat = mine.reshape(-1, x.shape[-1])
                if accumulate:
                    y[at] += (flat[:, first:stop] @ chunk).view(*mine.shape[:-1], -1)
                else:
                    made = flat @ chunk if transposed else F.linear(flat, chunk)
                    to = slice(None) if transposed else slice(first, stop)
                    y[at, ..., to] = made.view(*mine.shape[:-1], made.shape[1])
    return y.to(x.dtype)


def _low_rank(forward: PerturbedForward, x: torch.Tensor, part: Part, repeat: int | torch.Tensor, transposed: bool) -> torch.Tensor:
    """A product with factored perturbations: the plain product, plus (x b) a^T row by row."""
    slot, e, ids = part
    plan, rank = forward.plan, forward.directions.family.rank
    y = _plain(x, slot.flat[e * slot.view[1] : (e + 1) * slot.view[1]] if ids is None else slot.flat[ids], transposed)
    a, b = forward.directions.factors(slot, plan.directions)
    within = slice(e * rank, (e + 1) * rank)
    a, b = a[:, within].to(x.dtype), b[:, within].to(x.dtype)  # (directions, rank, rows), (directions, rank, columns)
    if ids is not None:
        a = a[..., ids]
    into, onto = (a, b) if transposed else (b, a)
    signs = plan.sign * forward.directions.amplitude(slot)
    if forward.whole:
        return y.add_((x @ into[0].T * signs[0]) @ onto[0])
    index = plan.index
    if isinstance(repeat, torch.Tensor):
        index, signs = index[repeat], signs[repeat]
    if not len(index):
        return y
    u = torch.bmm(x.reshape(len(index), -1, x.shape[-1]), into[index].transpose(1, 2))  # (groups, tokens, rank)
    u *= signs.to(x.dtype)[:, None, None]
    y.view(len(index), -1, y.shape[-1]).baddbmm_(u, onto[index])
    return y


def _plain(x: torch.Tensor, weight: torch.Tensor, transposed: bool) -> torch.Tensor:
    """A product with the unperturbed weight, in the dtype of x; a weight of another dtype is cast a chunk at a time."""
    flat = x.reshape(-1, x.shape[-1])  # torch folds a strided activation only for weights that require grad
    if weight.dtype == x.dtype or transposed:
        weight = weight.to(x.dtype)
        y = flat @ weight if transposed else F.linear(flat, weight)
        return y.view(*x.shape[:-1], y.shape[1])
    y = torch.empty((len(flat), weight.shape[0]), dtype=x.dtype)
    step = max(1, CHUNK // weight.shape[1])
    for first in range(0, weight.shape[0], step):
        y[:, first : first + step] = F.linear(flat, weight[first : first + step].to(x.dtype))
    return y.view(*x.shape[:-1], y.shape[1])


def _lookup(forward: PerturbedForward, ids: torch.Tensor, slot: Slot) -> torch.Tensor:
    plan = forward.plan
    if forward.whole:
        return _picked(forward, ids, slot, plan.variants[0])
    mark = forward.batched(ids)
    if mark is None:  # ids that no example brought, positions for instance
        result = slot.parameter.detach()[ids]
        part = Part(slot, ids=ids) if ids.ndim == 1 else None
        setattr(result, MARK, Derived(forward, slot.name, lambda variant: _picked(forward, ids, slot, variant), part))
        return result
    repeat = forward.repeat(ids, slot.name)
    out = torch.empty((*ids.shape, slot.view[2]), dtype=slot.parameter.dtype)
    for variant in plan.variants:
        at = forward.at(variant, repeat)
        out[at] = _picked(forward, ids[at], slot, variant)
    return forward.mark(out, mark.rows)


def _picked(
    forward: PerturbedForward, ids: torch.Tensor, slot: Slot, variant: Variant, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The rows of a matrix that ids name, perturbed: (*ids.shape, columns), by default in the parameter's dtype."""
    directions = forward.directions
    flat = ids.reshape(-1)
    weight = slot.flat[flat]
    if variant.sign == 0:
        return weight.view(*ids.shape, -1).to(dtype or weight.dtype)
    remainder = None if slot.flat_remainder is None else slot.flat_remainder[flat]
    made = torch.empty_like(weight, dtype=dtype or weight.dtype)
    amplitude = variant.sign * directions.amplitude(slot)
    if directions.family.has_factors(slot):
        a, b = directions.factors(slot, [variant.direction])
        made.copy_(noise.to_float(weight, remainder) + (a[0][:, flat].T * amplitude) @ b[0])
    else:
        address = directions.address(slot, variant.direction)
        kernels = noise.backend(weight)
        kernels.perturb([made], [amplitude], weight, remainder, directions.family.distribution, address, flat, 0)
    return made.view(*ids.shape, -1)


def _scale_and_shift(forward: PerturbedForward, x: torch.Tensor, y: torch.Tensor, weight: Any, bias: Any) -> Any:
    if (
        forward.name(x) is not None
        or (weight is not None and weight.ndim != 1)
        or (not forward.whole and forward.batched(x) is None)
    ):
        return NotImplemented
    repeat = 0 if forward.whole else forward.repeat(x, str(forward.name(weight) or forward.name(bias)))
    for value, combine in ((weight, torch.Tensor.mul_), (bias, torch.Tensor.add_)):
        if value is not None:
            ours = forward.name(value) is not None
            if ours and forward.whole:
                combine(y, _values(forward, value)[0])
            else:
                combine(y, _rows(forward, value, value.shape, repeat, y.ndim) if ours else value.float())
    y = y.to(x.dtype)
    if forward.whole:
        return y
    mark = forward.batched(x)
    return forward.mark(y, mark.rows if mark else None)


def _rows(forward: PerturbedForward, value: torch.Tensor, shape: torch.Size, repeat: int | torch.Tensor, ndim: int) -> torch.Tensor:
    """A small tensor's value for each row, shaped to broadcast against ndim dimensions: (rows, 1, ..., *shape)."""
    values = forward.per_row(_values(forward, value), repeat)
    return values.view(len(values), *[1] * (ndim - 1 - len(shape)), *shape)


def _values(forward: PerturbedForward, value: torch.Tensor) -> torch.Tensor:
    """A small tensor's value for each expanded example: (examples, *shape), float32 where it is a vector of ours."""
    plan, directions = forward.plan, forward.directions
    slot = forward.slot(value)
    if slot is not None and slot.view[0] * slot.view[1] == 1:
        z = directions.dense(slot, plan.directions, torch.zeros(1, dtype=torch.int64), slot.view[2])[:, 0]
        values = slot.exact().view(1, -1) + z[plan.index] * (plan.sign * directions.amplitude(slot))[:, None]
        return values.view(len(plan), *value.shape)
    made = [forward.value(value, variant) for variant in plan.variants]
    stacked: torch.Tensor = made[0].new_empty((len(plan), *value.shape))
    for one, variant in zip(made, plan.variants, strict=True):
        stacked[variant.examples] = one
    return stacked
