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
from zerograd.evaluate import products
from zerograd.evaluate.forward import CASTS, Derived, PerturbedForward, UnresolvedOperation
from zerograd.evaluate.products import Part
from zerograd.evaluate.row_tracking import MARK
from zerograd.queries.plan import Variant
from zerograd.spaces.weights import Slot

SMALL = 1 << 16
"""Values of a tensor up to which it is held once per example, so that an elementwise operation needs one call."""

_TIMES = ("mul", "multiply", "__mul__", "__rmul__")
_PLUS = ("add", "__add__", "__radd__")

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
    if ids.device.type == "cpu" and ids.numel() and int(ids.min()) < 0:  # elsewhere the lookup itself refuses it
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
        return _rows_of(forward, func(weight, e), products.of_stack(slot, e))
    if isinstance(index, slice) and slot.parameter.ndim == 2:
        first, stop, step = index.indices(slot.view[1])
        if step == 1 and first < stop:
            return _rows_of(forward, func(weight, index), Part(slot, first, stop))
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
    part = None if derived is None else derived.part
    if slot is not None and slot.parameter.ndim == 2:
        part = products.of_slot(slot)
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
    y = F.rms_norm(x.float(), shape, eps=torch.finfo(torch.float32).eps if eps is None else eps)  # as torch computes 16 bits too
    return _scale_and_shift(forward, x, y, weight, None)


def elementwise(forward: PerturbedForward, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """A small tensor of ours combined with the batch: held once per example, one call for all."""
    if forward.whole or len(args) != 2 or not all(isinstance(a, torch.Tensor) for a in args):
        return NotImplemented
    ours = [i for i, a in enumerate(args) if forward.name(a) is not None]
    if len(ours) != 1:
        return NotImplemented
    small, other = args[ours[0]], args[1 - ours[0]]
    mark, derived = forward.batched(other), forward.derived(small)
    part = None if derived is None else derived.part
    if mark is not None and part is not None and part.ids is not None and small.shape == other.shape and not kwargs:
        rows = _looked_up(forward, part.ids.view(small.shape[:-1]), part.slot, forward.repeat(other, part.slot.name))
        rows = rows.to(small.dtype)  # a cast may stand between the lookup and here
        made = func(*((rows, other) if ours[0] == 0 else (other, rows)))
        return made if made is other else forward.mark(made, mark.rows)
    shape = small.shape[1:] if small.ndim == other.ndim and small.shape[:1] == (1,) else small.shape
    if mark is None or len(shape) >= other.ndim or small.numel() > max(SMALL, other.numel() // len(forward.plan)):
        return NotImplemented
    repeat = forward.repeat(other, str(forward.name(small)))
    vector = small.ndim == 1 and len(small) == other.shape[-1] and other.is_floating_point() and not kwargs
    if vector and func.__name__ in (*_TIMES, *_PLUS):
        out = torch.empty_like(other, dtype=torch.result_type(small, other), memory_format=torch.contiguous_format)
        values, times = _vectors(forward, small, repeat), func.__name__ in _TIMES
        return forward.mark(_scaled(other, values if times else None, None if times else values, out), mark.rows)
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
    **dict.fromkeys(CASTS, cast),
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
    part = products.of_slot(slot) if slot is not None and slot.view[0] == 1 else derived.part if derived is not None else None
    if forward.name(x) is not None or (part is None and (forward.name(weight) is not None or forward.slot(bias) is None)):
        return NotImplemented
    if part is not None and (weight.ndim != 2 or part.slot.parameter.ndim - (part.slot.view[0] > 1) != 2):
        return NotImplemented
    mark = forward.batched(x)
    if not forward.whole and mark is None:
        return NotImplemented
    name = str(forward.name(weight) or forward.name(bias))
    if not forward.whole and x.ndim < 2:
        raise UnresolvedOperation(
            f"{name} meets an example of shape {tuple(x.shape)} alone; keep its dimension, as x[i : i + 1] does"
        )
    repeat = 1 if forward.whole else forward.repeat(x, name)
    width = weight.shape[1 if transposed else 0]
    shifts = _vectors(forward, bias, repeat) if bias is not None and bias.shape == (width,) else None
    if part is None:
        y = products.plain(x, weight, transposed)
    elif forward.directions.family.has_factors(part.slot):
        y, shifted = products.low_rank(forward, x, part, repeat, transposed, shifts)
        bias = None if shifted and shifts is not None else bias
    elif shifts is not None and x.dtype == torch.float32 and _is_by_variant(forward, shifts, repeat):
        y, bias = products.dense(forward, x, part, repeat, transposed, shifts), None
    else:
        y = products.dense(forward, x, part, repeat, transposed)
    if bias is not None:
        if shifts is not None:
            y = _scaled(y, None, shifts, y)
        elif forward.name(bias) is None:
            y += bias
        else:
            y += _values(forward, bias)[0] if forward.whole else _rows(forward, bias, bias.shape, repeat, y.ndim)
    return y if mark is None else forward.mark(y, mark.rows)


def _is_by_variant(forward: PerturbedForward, shifts: torch.Tensor, repeat: int | torch.Tensor) -> bool:
    """Whether vectors from `_vectors` are one for all rows, or one a variant, and not one a row or an example."""
    return len(shifts) == 1 or (isinstance(repeat, int) and (forward.whole or forward.plan.in_blocks))


def _lookup(forward: PerturbedForward, ids: torch.Tensor, slot: Slot) -> torch.Tensor:
    plan = forward.plan
    if forward.whole:
        return _picked(forward, ids, slot, plan.variants[0])
    mark = forward.batched(ids)
    if mark is None:  # ids that no example brought, positions for instance
        result = slot.parameter.detach()[ids]
        part = Part(slot, 0, slot.view[1], ids.flatten())
        setattr(result, MARK, Derived(forward, slot.name, lambda variant: _picked(forward, ids, slot, variant), part))
        return result
    return forward.mark(_looked_up(forward, ids, slot, forward.repeat(ids, slot.name)), mark.rows)


def _looked_up(forward: PerturbedForward, ids: torch.Tensor, slot: Slot, repeat: int | torch.Tensor) -> torch.Tensor:
    """Rows of a matrix that ids name, as each example sees them: (*ids.shape, columns)."""
    plan, directions, flat = forward.plan, forward.directions, ids.reshape(-1)
    if not directions.family.has_factors(slot) or not ids.numel():
        out = slot.flat.new_empty((*ids.shape, slot.view[2]))
        for one in plan.variants:
            at = forward.at(one, repeat)
            out[at] = _picked(forward, ids[at], slot, one)
        return out
    a, b = directions.factors(slot, plan.directions)
    variant = plan.variant_of if isinstance(repeat, int) else plan.variant_of[repeat]  # of groups of consecutive tokens
    signs, each = plan.variant_directions[1], ids.reshape(len(variant), -1)
    direction = plan.variant_places[variant]
    u = a.transpose(1, 2)[direction[:, None], each] * (signs[variant] * directions.amplitude(slot))[:, None, None]
    exact = noise.to_float(slot.flat[flat], None if slot.flat_remainder is None else slot.flat_remainder[flat])
    made, shape = exact.view(*each.shape, -1), directions.shape(slot, flat)
    made = made.baddbmm_(u, b[direction]) if shape is None else made + torch.bmm(u, b[direction]) * shape.view(made.shape)
    return made.view(*ids.shape, -1).to(slot.parameter.dtype)


def _picked(forward: PerturbedForward, ids: torch.Tensor, slot: Slot, variant: Variant) -> torch.Tensor:
    return forward.directions.picked(slot, variant.direction, variant.sign, ids)


def _rows_of(forward: PerturbedForward, result: torch.Tensor, part: Part) -> torch.Tensor:
    """Mark a tensor as consecutive rows of a slot."""

    def value(variant: Variant) -> torch.Tensor:
        within = slice(part.first, part.stop)
        return forward.directions.perturbed(part.slot, variant.direction, [variant.sign], within)[0]

    setattr(result, MARK, Derived(forward, part.slot.name, value, part))
    return result


def _scale_and_shift(forward: PerturbedForward, x: torch.Tensor, y: torch.Tensor, weight: Any, bias: Any) -> Any:
    if (
        forward.name(x) is not None
        or (weight is not None and weight.ndim != 1)
        or (not forward.whole and forward.batched(x) is None)
    ):
        return NotImplemented
    repeat = 1 if forward.whole else forward.repeat(x, str(forward.name(weight) or forward.name(bias)))
    vectors = [None if value is None else _vectors(forward, value, repeat) for value in (weight, bias)]
    y = _scaled(y, vectors[0], vectors[1], torch.empty(y.shape, dtype=x.dtype, device=x.device))
    if forward.whole:
        return y
    mark = forward.batched(x)
    return forward.mark(y, mark.rows if mark else None)


def _scaled(x: torch.Tensor, factors: torch.Tensor | None, shifts: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """out <- x * factors + shifts group by group of tokens, in float32, rounded once to out's dtype. Returns out.

    factors, shifts: float32 (groups, n) as `_vectors` gives them, or None. x, out: (..., n).
    """
    if not x.numel():
        return out
    given = [v for v in (factors, shifts) if v is not None]
    groups = max(map(len, given))
    factors, shifts = (v if v is None or len(v) == groups else v.expand(groups, -1) for v in (factors, shifts))
    if noise.is_fast(x, out) and x.is_contiguous() and out.is_contiguous():
        from zerograd.evaluate import kernels as compiled

        return compiled.scale_rows(x, factors, shifts, out)
    y = x.reshape(groups, -1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
    y = y if factors is None else y * factors[:, None]
    y = y if shifts is None else y + shifts[:, None]
    return out.copy_(y.view(out.shape))


def _vectors(forward: PerturbedForward, value: torch.Tensor, repeat: int | torch.Tensor) -> torch.Tensor:
    """What a vector is for consecutive groups of tokens, as many each: float32 (groups, n)."""
    if forward.name(value) is None:
        return value.detach().float()[None]
    values = _values(forward, value).float()
    if isinstance(repeat, torch.Tensor):
        return values[forward.plan.variant_of[repeat]]
    return values if forward.whole or forward.plan.in_blocks else values[forward.plan.variant_of]


def _rows(forward: PerturbedForward, value: torch.Tensor, shape: torch.Size, repeat: int | torch.Tensor, ndim: int) -> torch.Tensor:
    """A small tensor's value for each row, shaped to broadcast against ndim dimensions: (rows, 1, ..., *shape)."""
    values = forward.per_row(_values(forward, value)[forward.plan.variant_of], repeat)
    return values.view(len(values), *[1] * (ndim - 1 - len(shape)), *shape)


def _values(forward: PerturbedForward, value: torch.Tensor) -> torch.Tensor:
    """A small tensor's value for each variant: (variants, *shape), float32 where it is a vector of ours or rows looked up."""
    slot, derived = forward.slot(value), forward.derived(value)
    if slot is not None and slot.view[0] * slot.view[1] == 1:
        return _vector(forward, slot).view(-1, *value.shape)
    part = None if derived is None else derived.part
    if part is not None and part.ids is not None:
        return _at_rows(forward, part.slot, part.ids).view(-1, *value.shape)
    return torch.stack([forward.value(value, variant) for variant in forward.plan.variants])


def _vector(forward: PerturbedForward, slot: Slot) -> torch.Tensor:
    """A vector of ours for each variant: float32 (variants, n)."""
    flat, directions = slot.flat, forward.directions
    if not noise.is_fast(flat) or directions.family.has_shape(slot):
        return _at_rows(forward, slot, torch.zeros(1, dtype=torch.int64, device=flat.device))[:, 0]
    from zerograd.evaluate import kernels as compiled

    variants = (forward.plan.variant_order, *forward.plan.variant_directions, directions.amplitude(slot))
    return compiled.vectors(flat, slot.flat_remainder, directions.family.distribution, directions.address(slot), *variants)


def _at_rows(forward: PerturbedForward, slot: Slot, rows: torch.Tensor) -> torch.Tensor:
    """Rows of a slot for each variant: float32 (variants, rows, columns)."""
    directions, plan = forward.directions, forward.plan
    z = directions.at_rows(slot, plan.directions, rows)[plan.variant_places]
    exact = noise.to_float(slot.flat[rows], None if slot.flat_remainder is None else slot.flat_remainder[rows])
    return exact + z * (plan.variant_directions[1] * directions.amplitude(slot))[:, None, None]
