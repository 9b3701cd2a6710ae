"""Fast rules of the perturbed forward: the operations in which models spend their time.

A rule takes (trace, func, args, kwargs) and returns the result, or NotImplemented to leave the operation to
`generic.py`. `operations.py` says which operation has which rule. Products are computed in the dtype of the
activations. A perturbed chunk is formed in float32 and rounded once. Vectors (biases, scales of norms) stay float32
until they have met the activation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from zerograd import noise
from zerograd.errors import UnresolvedOperation
from zerograd.evaluate import products
from zerograd.evaluate.generic import derive
from zerograd.evaluate.operations import OPERATIONS, Operation, is_in_place
from zerograd.evaluate.trace import MARK, Derived, MatrixPart, Stack, Trace
from zerograd.queries import Variant
from zerograd.spaces import Space

SMALL = 1 << 16
"""A tensor of at most this many values is repeated for each example, so that an elementwise operation needs one call.
"""

Args = Sequence[Any]
Repeat = int | torch.Tensor
"""How the leading rows of a tensor map to examples: as many an example, or each row's example."""

Rule = Callable[[Trace, Callable[..., Any], Args, dict[str, Any]], Any]


def linear(trace: Trace, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """x W^T + bias."""
    x, weight, bias = _arguments(("input", "weight", "bias"), args, kwargs)
    return _affine(trace, x, weight, bias, transposed=False)


def addmm(trace: Trace, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """bias + x W, as GPT-2's Conv1D writes it."""
    bias, x, weight = _arguments(("input", "mat1", "mat2"), args, kwargs)
    if kwargs.keys() & {"alpha", "beta", "out"}:
        return NotImplemented
    return _affine(trace, x, weight, bias, transposed=True)


def matmul(trace: Trace, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """x W."""
    x, weight = _arguments(("input", "other"), args, kwargs)
    if x.ndim < 2 or "out" in kwargs:
        return NotImplemented
    return _affine(trace, x, weight, None, transposed=True)


def grouped(trace: Trace, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """x_i W_e of each group e of consecutive rows; the offsets say where each group ends."""
    x, weight, ends, bias, dtype = _arguments(("input", "mat2", "offs", "bias", "out_dtype"), args, kwargs)
    derived = trace.derived(weight)
    space = trace.space(weight)
    stack = Stack(space, False) if space is not None else derived.stack if derived is not None else None
    unusual = stack is None or ends is None or x.ndim != 2 or weight.ndim != 3 or bias is not None or dtype is not None
    if unusual or trace.name(x) is not None or trace.name(ends) is not None:
        return NotImplemented
    assert stack is not None
    mark = trace.batched(x)
    if not trace.whole and mark is None:
        return NotImplemented
    return _grouped(trace, x, stack, ends.tolist(), weight.shape[2])


def transpose(trace: Trace, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """W_e^T of every matrix of a stack: a product may use the matrices as they are stored."""
    space = trace.space(args[0]) if args else None
    dims = {d % 3 for d in (*args[1:], *kwargs.values()) if isinstance(d, int)}
    if space is None or space.parameter.ndim != 3 or dims not in (set(), {1, 2}):
        return NotImplemented
    result = derive(trace, func, args, kwargs, args[0])
    mark = trace.derived(result)
    if mark is not None:
        mark.stack = Stack(space, True)
    return result


def embedding(trace: Trace, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """W[ids]: only the rows that ids name are perturbed."""
    ids, weight, _, max_norm = _arguments(("input", "weight", "padding_idx", "max_norm"), args, kwargs)
    space = trace.space(weight)
    if max_norm is not None:
        raise UnresolvedOperation(f"{trace.name(weight)} is renormalised by its lookup (max_norm); build the embedding without it")
    if space is None or space.parameter.ndim != 2:
        return NotImplemented
    if ids.device.type == "cpu" and ids.numel() and int(ids.min()) < 0:  # elsewhere the lookup itself refuses it
        raise IndexError(f"{space.name} is looked up by a negative id")
    return _lookup(trace, ids, space)


def getitem(trace: Trace, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """W[e]: a matrix of a stack, or a row; W[ids] is an embedding."""
    weight, index = args
    space = trace.space(weight)
    scalar = isinstance(index, int) or (isinstance(index, torch.Tensor) and index.ndim == 0 and not index.dtype.is_floating_point)
    if space is None:
        by_number = scalar and not trace.whole and trace.derived(weight) is not None
        return derive(trace, func, (weight, int(index)), {}, weight) if by_number else NotImplemented
    if scalar and space.view[0] > 1 and space.parameter.ndim == 3:
        e = int(index) % space.view[0]
        return _rows_of(trace, func(weight, e), products.of_stack(space, e))
    if isinstance(index, slice) and space.parameter.ndim == 2:
        first, stop, step = index.indices(space.view[1])
        if step == 1 and first < stop:
            return _rows_of(trace, func(weight, index), MatrixPart(space, first, stop))
    if scalar:
        return NotImplemented if trace.whole else derive(trace, func, (weight, int(index)), {}, weight)
    if isinstance(index, torch.Tensor) and index.dtype in (torch.int64, torch.int32) and space.parameter.ndim == 2:
        from_start = torch.where(index < 0, index + space.view[1], index)
        mark = trace.batched(index)
        return _lookup(trace, from_start if mark is None else trace.mark(from_start, mark.rows, lost=mark.lost), space)
    return NotImplemented


def cast(trace: Trace, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """A matrix in another dtype is still that matrix: products choose their own dtype."""
    space, derived = trace.space(args[0]), trace.derived(args[0])
    part = None if derived is None else derived.part
    if space is not None and space.parameter.ndim == 2:
        part = products.of_space(space)
    like = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, torch.Tensor)]
    if like and not trace.whole and trace.name(like[0]) is None:
        return cast(trace, torch.Tensor.to, (args[0], like[0].dtype), {})
    if trace.whole or part is None or like:
        return NotImplemented
    before = args[0].dtype
    result = derive(trace, func, args, kwargs, args[0])
    mark = trace.derived(result)
    if mark is not None and torch.promote_types(before, result.dtype) == result.dtype:
        mark.part = part
    return result


def layer_norm(trace: Trace, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """Normalise without the affine part, then multiply and add row by row, all in float32."""
    x, shape, weight, bias, eps = _arguments(("input", "normalized_shape", "weight", "bias", "eps"), args, kwargs)
    y = F.layer_norm(x.float(), shape, eps=1e-5 if eps is None else eps)
    return _scale_and_shift_rows(trace, x, y, weight, bias)


def rms_norm(trace: Trace, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """As `layer_norm`, without the mean."""
    x, shape, weight, eps = _arguments(("input", "normalized_shape", "weight", "eps"), args, kwargs)
    y = F.rms_norm(x.float(), shape, eps=torch.finfo(torch.float32).eps if eps is None else eps)  # as torch computes 16 bits too
    return _scale_and_shift_rows(trace, x, y, weight, None)


def elementwise(trace: Trace, func: Callable[..., Any], args: Args, kwargs: dict[str, Any]) -> Any:
    """A small space or derived tensor combined with the batch: repeated for each example, one call for all."""
    if trace.whole or len(args) != 2 or not all(isinstance(a, torch.Tensor) for a in args):
        return NotImplemented
    ours = [i for i, a in enumerate(args) if trace.name(a) is not None]
    if len(ours) != 1:
        return NotImplemented
    small, other = args[ours[0]], args[1 - ours[0]]
    mark, derived = trace.batched(other), trace.derived(small)
    part = None if derived is None else derived.part
    if mark is not None and part is not None and part.ids is not None and small.shape == other.shape and not kwargs:
        rows = _looked_up(trace, part.ids.view(small.shape[:-1]), part.space, trace.repeat(other, part.space.name))
        rows = rows.to(small.dtype)  # a cast may stand between the lookup and here
        result = func(*((rows, other) if ours[0] == 0 else (other, rows)))
        return result if result is other else trace.mark(result, mark.rows)
    shape = small.shape[1:] if small.ndim == other.ndim and small.shape[:1] == (1,) else small.shape
    if mark is None or len(shape) >= other.ndim or small.numel() > max(SMALL, other.numel() // trace.examples):
        return NotImplemented
    repeat = trace.repeat(other, str(trace.name(small)))
    vector = small.ndim == 1 and len(small) == other.shape[-1] and other.is_floating_point() and not kwargs
    affine = OPERATIONS[func.__name__].affine
    if vector and affine:
        out = torch.empty_like(other, dtype=torch.result_type(small, other), memory_format=torch.contiguous_format)
        values = vectors_of_groups(trace, small, repeat)
        factors, shifts = (values, None) if affine == "scale" else (None, values)
        return trace.mark(scale_and_shift_groups(other, factors, shifts, out), mark.rows)
    values = _values_of_rows(trace, small, shape, repeat, other.ndim)
    in_place = ours[0] == 1 and is_in_place(func.__name__)
    if not in_place and other.is_floating_point():
        other = other.to(values.dtype)
    result = func(*((values, other) if ours[0] == 0 else (other, values)), **kwargs)
    if in_place:
        return result
    return trace.mark(result.to(torch.result_type(small, args[1 - ours[0]])), mark.rows)


_BY_RULE: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (linear, addmm, matmul, grouped, transpose, embedding, getitem, cast, layer_norm, rms_norm, elementwise)
}
RULES = {name: _BY_RULE[operation.rule] for name, operation in OPERATIONS.items() if operation.rule}
"""The rule of each operation that has one, by the operation's name."""


def register(name: str, operation: Operation, rule: Rule) -> None:
    """Add an operation of a subsystem's own, by the `__name__` of its function, which calls `torch.overrides`' handler."""
    OPERATIONS[name] = operation
    RULES[name] = rule


def _arguments(names: Sequence[str], args: Args, kwargs: dict[str, Any]) -> list[Any]:
    given = list(args[: len(names)])
    return given + [kwargs.get(name) for name in names[len(given) :]]


def _affine(trace: Trace, x: Any, weight: Any, bias: Any, *, transposed: bool) -> Any:
    space, derived = trace.space(weight), trace.derived(weight)
    part = products.of_space(space) if space is not None and space.view[0] == 1 else derived.part if derived is not None else None
    if part is None and (trace.name(weight) is not None or trace.space(bias) is None):
        return NotImplemented
    if part is not None and (weight.ndim != 2 or part.space.parameter.ndim - (part.space.view[0] > 1) != 2):
        return NotImplemented

    def product(repeat: Repeat, shifts: torch.Tensor | None) -> tuple[torch.Tensor, bool]:
        if part is None:
            return products.plain(x, weight, transposed), False
        if trace.directions.family.rank_in(part.space):
            return products.low_rank(trace, x, part, repeat, transposed, shifts)
        if shifts is not None and x.dtype == torch.float32 and _is_by_variant(shifts, repeat):
            return products.dense(trace, x, part, repeat, transposed, shifts), True
        return products.dense(trace, x, part, repeat, transposed), False

    return biased(trace, x, str(trace.name(weight) or trace.name(bias)), weight.shape[1 if transposed else 0], bias, product)


def biased(
    trace: Trace,
    x: torch.Tensor,
    name: str,
    width: int,
    bias: torch.Tensor | None,
    product: Callable[[Repeat, torch.Tensor | None], tuple[torch.Tensor, bool]],
) -> Any:
    """A product of the batch with a matrix, plus the bias as each row sees it; NotImplemented where x is not the batch's.

    name: of the parameter, for messages. width: of the product. product: takes how rows map to examples and the bias of consecutive
    groups of tokens, float32 (groups, width), which it may add; returns the product and whether it has.
    """
    mark = trace.batched(x)
    if trace.name(x) is not None or (not trace.whole and mark is None):
        return NotImplemented
    if not trace.whole and x.ndim < 2:
        raise UnresolvedOperation(
            f"{name} meets an example of shape {tuple(x.shape)} alone; keep its dimension, as x[i : i + 1] does"
        )
    repeat = 1 if trace.whole else trace.repeat(x, name)
    shifts = vectors_of_groups(trace, bias, repeat) if bias is not None and bias.shape == (width,) else None
    y, has_shifts = product(repeat, shifts)
    if bias is not None and not (has_shifts and shifts is not None):
        if shifts is not None:
            y = scale_and_shift_groups(y, None, shifts, y)
        elif trace.name(bias) is None:
            y += bias
        else:
            y += _values_of_variants(trace, bias)[0] if trace.whole else _values_of_rows(trace, bias, bias.shape, repeat, y.ndim)
    return y if mark is None else trace.mark(y, mark.rows)


def _grouped(trace: Trace, x: torch.Tensor, stack: Stack, ends: Sequence[int], width: int) -> torch.Tensor:
    """Rows of x times the matrices of a stack, matrix e meeting the rows from ends[e - 1] to before ends[e]."""
    space, mark = stack.space, trace.batched(x)
    repeat = 1 if trace.whole else trace.repeat(x, space.name)
    if not trace.whole and isinstance(repeat, int):
        repeat = trace.in_order(len(x))
    y = x.new_zeros((len(x), width))
    for e, (start, end) in enumerate(itertools.pairwise((0, *ends))):
        if start == end:
            continue
        seen = repeat if isinstance(repeat, int) else repeat[start:end]
        given = trace, x[start:end], products.of_stack(space, e), seen, not stack.transposed
        y[start:end] = products.low_rank(*given)[0] if trace.directions.family.rank_in(space) else products.dense(*given)
    return y if mark is None else trace.mark(y, mark.rows)


def _is_by_variant(shifts: torch.Tensor, repeat: int | torch.Tensor) -> bool:
    """Whether vectors from `vectors_of_groups` are one for all rows, or one a variant, and not one a row or an example."""
    return len(shifts) == 1 or isinstance(repeat, int)


def _lookup(trace: Trace, ids: torch.Tensor, space: Space) -> torch.Tensor:
    plan = trace.plan
    if trace.whole:
        return trace.perturbed(space, plan.variant(0), ids)
    mark = trace.batched(ids)
    if mark is None:  # ids that no example brought, positions for instance
        result = space.weight(ids.flatten()).view(*ids.shape, -1)
        part = MatrixPart(space, 0, space.view[1], ids.flatten())
        setattr(result, MARK, Derived(trace, space.name, lambda variant: trace.perturbed(space, variant, ids), part))
        return result
    return trace.mark(_looked_up(trace, ids, space, trace.repeat(ids, space.name)), mark.rows)


def _looked_up(trace: Trace, ids: torch.Tensor, space: Space, repeat: int | torch.Tensor) -> torch.Tensor:
    """Rows of a matrix that ids name, as each example sees them: (*ids.shape, columns)."""
    plan, directions, flat = trace.plan, trace.directions, ids.reshape(-1)
    if not directions.family.rank_in(space) or not ids.numel():
        out = torch.empty((*ids.shape, space.view[2]), dtype=space.dtype, device=space.device)
        for one in plan.variants():
            at = trace.at(one, repeat)
            out[at] = trace.perturbed(space, one, ids[at])
        return out
    a, b = directions.factors(space, plan.directions)
    variant = plan.variant_of if isinstance(repeat, int) else plan.variant_of[repeat]  # of groups of consecutive tokens
    each, amplitudes = ids.reshape(len(variant), -1), plan.variant_coefficients[variant] * trace.amplitude(space)
    direction = plan.variant_places[variant]
    u = a.transpose(1, 2)[direction[:, None], each] * amplitudes[:, None, None]
    made, modulation = space.exact(flat).view(*each.shape, -1), directions.modulation(space, flat)
    product = torch.bmm(u, b[direction])
    made = made + (product if modulation is None else product * modulation.view(made.shape))
    return made.view(*ids.shape, -1).to(space.dtype)


def _rows_of(trace: Trace, result: torch.Tensor, part: MatrixPart) -> torch.Tensor:
    """Mark a tensor as consecutive rows of a space."""

    def value(variant: Variant) -> torch.Tensor:
        return trace.perturbed(part.space, variant, slice(part.first, part.stop))

    setattr(result, MARK, Derived(trace, part.space.name, value, part))
    return result


def _scale_and_shift_rows(trace: Trace, x: torch.Tensor, y: torch.Tensor, weight: Any, bias: Any) -> Any:
    if trace.name(x) is not None or (weight is not None and weight.ndim != 1) or (not trace.whole and trace.batched(x) is None):
        return NotImplemented
    repeat = 1 if trace.whole else trace.repeat(x, str(trace.name(weight) or trace.name(bias)))
    vectors = [None if value is None else vectors_of_groups(trace, value, repeat) for value in (weight, bias)]
    y = scale_and_shift_groups(y, vectors[0], vectors[1], torch.empty(y.shape, dtype=x.dtype, device=x.device))
    if trace.whole:
        return y
    mark = trace.batched(x)
    return trace.mark(y, mark.rows if mark else None)


def scale_and_shift_groups(
    x: torch.Tensor, factors: torch.Tensor | None, shifts: torch.Tensor | None, out: torch.Tensor
) -> torch.Tensor:
    """out <- x * factors + shifts group by group of tokens, in float32, rounded once to out's dtype. Returns out.

    factors, shifts: float32 (groups, n) as `vectors_of_groups` gives them, or None. x, out: (..., n).
    """
    if not x.numel():
        return out
    groups = max(len(v) for v in (factors, shifts) if v is not None)
    factors, shifts = (v if v is None or len(v) == groups else v.expand(groups, -1) for v in (factors, shifts))
    if noise.is_fast(x, out) and x.is_contiguous() and out.is_contiguous():
        from zerograd.evaluate import kernels

        return kernels.scale_rows(x, factors, shifts, out)
    y = x.reshape(groups, -1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
    y = y if factors is None else y * factors[:, None]
    y = y if shifts is None else y + shifts[:, None]
    return out.copy_(y.view(out.shape))


def vectors_of_groups(trace: Trace, value: torch.Tensor, repeat: int | torch.Tensor) -> torch.Tensor:
    """A vector's value for consecutive groups of tokens of equal size: float32 (groups, n)."""
    if trace.name(value) is None:
        return value.detach().float()[None]
    values = _values_of_variants(trace, value).float()
    if isinstance(repeat, torch.Tensor):
        return values[trace.plan.variant_of[repeat]]
    return values


def _values_of_rows(trace: Trace, value: torch.Tensor, shape: torch.Size, repeat: int | torch.Tensor, ndim: int) -> torch.Tensor:
    """A small tensor's value for each row, shaped to broadcast against ndim dimensions: (rows, 1, ..., *shape)."""
    values = trace.per_row(_values_of_variants(trace, value)[trace.plan.variant_of], repeat)
    return values.view(len(values), *[1] * (ndim - 1 - len(shape)), *shape)


def _values_of_variants(trace: Trace, value: torch.Tensor) -> torch.Tensor:
    """A small tensor's value for each variant: (variants, *shape), float32 where it is a vector of ours or rows looked
    up.
    """
    space, derived = trace.space(value), trace.derived(value)
    if space is not None and space.flat_rows == 1:
        return _vector_of_variants(trace, space).view(-1, *value.shape)
    part = None if derived is None else derived.part
    if part is not None and part.ids is not None:
        return _rows_of_variants(trace, part.space, part.ids).view(-1, *value.shape)
    return torch.stack([trace.value(value, variant) for variant in trace.plan.variants()])


def _vector_of_variants(trace: Trace, space: Space) -> torch.Tensor:
    """A vector of ours for each variant: float32 (variants, n)."""
    directions, stored = trace.directions, space.kernel_storage()
    if stored is None or not noise.is_fast(stored[0]) or directions.family.is_modulated(space):
        return _rows_of_variants(trace, space, torch.zeros(1, dtype=torch.int64, device=space.device))[:, 0]
    from zerograd.evaluate import kernels

    plan, (weight, remainder) = trace.plan, stored
    noise_of = (directions.family.distribution, directions.address(space), plan.variant_order, plan.variant_directions)
    return kernels.vectors(weight, remainder, *noise_of, plan.variant_coefficients, trace.amplitude(space))


def _rows_of_variants(trace: Trace, space: Space, rows: torch.Tensor) -> torch.Tensor:
    """Rows of a space for each variant: float32 (variants, rows, columns)."""
    directions, plan = trace.directions, trace.plan
    z = directions.raw_rows(space, plan.directions, rows)[plan.variant_places]
    return space.exact(rows) + z * (plan.variant_coefficients * trace.amplitude(space))[:, None, None]
