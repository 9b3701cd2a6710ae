"""Operations without a fast rule: computed variant by variant, with the perturbed tensor made for each.

An operation on spaces alone gives a derived tensor, which carries a recipe. An operation on spaces and the batch is
split: each variant's rows are computed by themselves. What cannot be split by example is refused, naming the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zerograd.errors import UnresolvedOperation
from zerograd.evaluate import row_tracking
from zerograd.evaluate.operations import OPERATIONS, UNKNOWN, Operation, is_in_place
from zerograd.evaluate.tensors import tensors
from zerograd.evaluate.trace import MARK, Batched, Derived, Trace
from zerograd.queries import Variant


def evaluate(trace: Trace, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], variant: Variant) -> Any:
    """An operation as one variant sees it, on all rows."""
    return func(*_map(args, trace.value, variant), **_map(kwargs, trace.value, variant))


def derive(trace: Trace, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], ours: torch.Tensor) -> Any:
    """An operation on spaces without the batch: its result is derived. ours: an argument that is a space or derived."""
    name, called = str(trace.name(ours)), getattr(func, "__name__", str(func))
    target = args[0] if args else None
    old = trace.derived(target)
    writes = is_in_place(called) or called == "__setitem__"
    if writes and old is None:
        raise UnresolvedOperation(f"{name} is used by {called} to write into a tensor; write the operation out of place")
    result = func(*args, **kwargs)
    if old is not None and (writes or (result is target and not OPERATIONS.get(called, UNKNOWN).casts)):

        def rewritten(variant: Variant) -> torch.Tensor:
            fresh = old.value(variant).clone()
            evaluate(trace, func, (fresh, *args[1:]), kwargs, variant)
            return fresh

        setattr(target, MARK, Derived(trace, name, rewritten))
        return result
    if any(result is value for value in tensors(args, kwargs)):
        return result  # a cast that had nothing to do
    for i, out in enumerate(tensors(result)):

        def value(variant: Variant, i: int = i) -> torch.Tensor:
            return list(tensors(evaluate(trace, func, args, kwargs, variant)))[i]

        setattr(out, MARK, Derived(trace, name, value))
    return result


def split(
    trace: Trace,
    operation: Operation,
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    called: str,
    name: str,
) -> Any:
    """An operation on spaces and the batch: variant by variant, over that variant's rows.

    called: the operation's name. name: the parameter's.
    Raises UnresolvedOperation when its rows cannot be told apart by example.
    """
    refusal = f"{name} is used by {called} in a way that cannot be split by example; freeze it or pass a closure"
    in_place = is_in_place(called)
    batched = [v for v in tensors(args, kwargs) if trace.batched(v) is not None and v.ndim]
    if (
        not batched
        or (in_place and args[0] is not batched[0])
        or (operation.rows == "write" and not _writes_rows(trace, called, args))
    ):
        raise UnresolvedOperation(refusal)
    in_place |= operation.rows == "write"
    if not _has_rows_first(trace, operation, args, kwargs):
        raise UnresolvedOperation(refusal)
    repeat = trace.repeat(batched[0], name)
    leading, ndim = batched[0].shape[0], max(v.ndim for v in tensors(args, kwargs))
    if any(not _same(trace.repeat(v, name), repeat) for v in batched if v.shape[0] == leading):
        raise UnresolvedOperation(refusal)

    is_weight = ndim <= operation.weight_ndim
    leaders = row_tracking.leaders(args[0], list(tensors(args[1:]))) if operation.rows == "einsum" else None

    def seen(value: Any, variant: Variant) -> Any:
        """An argument as a variant sees it, and only its rows."""
        perturbed = trace.value(value, variant)
        led = perturbed.ndim == ndim if leaders is None else any(value is one for one in leaders)
        expanded = led and trace.space(value) is None and perturbed.shape[0] == leading > 1
        if trace.batched(value) is not None and perturbed.ndim:
            return perturbed[trace.at(variant, trace.repeat(value, name))]
        return perturbed[trace.at(variant, repeat)] if expanded and not is_weight else perturbed

    result: torch.Tensor | None = None
    each: int | torch.Tensor = repeat
    for variant in trace.plan.variants():
        at = trace.at(variant, repeat)
        if called == "__setitem__" and not isinstance(at, slice):
            raise UnresolvedOperation(refusal)
        try:
            part = func(*_map(args, seen, variant), **_map(kwargs, seen, variant))
        except (RuntimeError, IndexError) as error:
            raise UnresolvedOperation(f"{refusal} ({str(error).splitlines()[0]})") from error
        if in_place:
            if not isinstance(at, slice):
                batched[0][at] = part
            continue
        count = variant.examples if isinstance(repeat, int) else len(at)  # type: ignore[arg-type]
        if not isinstance(part, torch.Tensor) or not part.ndim or part.shape[0] % max(1, count):
            raise UnresolvedOperation(refusal)
        if isinstance(repeat, int):
            each = part.shape[0] // count
        elif part.shape[0] != count:
            raise UnresolvedOperation(refusal)
        if result is None:
            total = each * trace.examples if isinstance(each, int) else len(each)
            result = part.new_empty((total, *part.shape[1:]))
        result[trace.at(variant, each)] = part
    if in_place:
        return batched[0]
    assert result is not None
    return trace.mark(result, each if isinstance(each, torch.Tensor) else None)


def split_later(
    trace: Trace,
    operation: Operation,
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    called: str,
    name: str,
) -> Any:
    """As `split`, where examples lie along a later dimension: that dimension is cut, and the parts are joined along it."""
    refusal = f"{name} is used by {called} where the batch is not first, in a way that cannot be split by example"
    batched = [v for v in tensors(args, kwargs) if trace.batched(v) is not None and v.ndim]
    if is_in_place(called) or operation.rows == "write":
        raise UnresolvedOperation(f"{refusal}; freeze it or pass a closure")
    parts: list[torch.Tensor] = []
    axis: int | None = None
    marked = batched[0]
    mark = trace.batched(marked)
    assert mark is not None
    length = marked.shape[mark.axis]
    letter = row_tracking.letters_of(trace, args) if operation.rows == "einsum" else ""
    terms = dict(zip(map(id, tensors(args[1:])), args[0].replace(" ", "").split("->")[0].split(","), strict=True)) if letter else {}

    def along(value: Any, perturbed: torch.Tensor) -> int | None:
        """The dimension of an argument that is cut; None for one that all variants see whole."""
        own = trace.batched(value)
        if own is not None and perturbed.ndim:
            return own.axis
        if letter:
            place = terms[id(value)].find(letter)
            return place if place >= 0 and perturbed.shape[place] == length else None
        expanded = perturbed.ndim == marked.ndim > operation.weight_ndim and trace.space(value) is None
        return mark.axis if expanded and perturbed.shape[mark.axis] == length > 1 else None

    def seen(value: Any, variant: Variant) -> Any:
        perturbed, own = trace.value(value, variant), trace.batched(value)
        cut = along(value, perturbed)
        if cut is None:
            return perturbed
        if (own is not None and (own.lost or own.rows is not None)) or perturbed.shape[cut] % trace.examples:
            raise UnresolvedOperation(f"{refusal}; freeze it or pass a closure")
        each = perturbed.shape[cut] // trace.examples
        return perturbed.narrow(cut, variant.first * each, variant.examples * each)

    for variant in trace.plan.variants():
        try:
            part = func(*_map(args, seen, variant), **_map(kwargs, seen, variant))
        except (RuntimeError, IndexError) as error:
            raise UnresolvedOperation(f"{refusal} ({str(error).splitlines()[0]}); freeze it or pass a closure") from error
        if not parts and isinstance(part, torch.Tensor):
            axis = _axis_of(trace, operation, args, kwargs, part, length)
        if axis is None or part.shape[axis] * trace.examples != length * variant.examples:
            raise UnresolvedOperation(f"{refusal}; freeze it or pass a closure")
        parts.append(part)
    assert axis is not None  # there is a variant
    result = torch.cat(parts, axis)
    setattr(result, MARK, Batched(trace, axis=axis))
    return result


def _axis_of(
    trace: Trace, operation: Operation, args: Sequence[Any], kwargs: dict[str, Any], part: torch.Tensor, length: int
) -> int | None:
    """The dimension of a part along which examples lie, told from the shape that the whole result would have."""
    for axis in range(part.ndim):
        shape = [*part.shape]
        shape[axis] = length
        if row_tracking.later_axis(trace, operation, args, kwargs, part.new_empty(1).expand(shape)) == axis:
            return axis
    return None


def _writes_rows(trace: Trace, called: str, args: Sequence[Any]) -> bool:
    """Whether a write into a tensor of the batch writes each row by that row's own index: a mask, or all rows."""
    if called != "__setitem__" or trace.batched(args[0]) is None:
        return False
    first = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
    if isinstance(first, torch.Tensor):
        own = first.dtype == torch.bool and trace.batched(first) is not None
        return own and not isinstance(args[1], tuple) and first.shape[0] == args[0].shape[0]
    return isinstance(first, slice) and first == slice(None)


def _has_rows_first(trace: Trace, operation: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the result of an operation has the rows of the batch in its leading dimension."""
    if operation.rows == "einsum":
        return row_tracking.einsum_leads(trace, args)
    if operation.move in ("join", "stack"):
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return bool(dim % (next(tensors(args, kwargs)).ndim + (operation.move == "stack")) != 0)
    if operation.move == "index":
        return trace.batched(args[0]) is not None or isinstance(args[1], torch.Tensor)
    return True


def _same(one: int | torch.Tensor, other: int | torch.Tensor) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    return one == other


def _map(value: Any, change: Callable[[Any, Variant], Any], variant: Variant) -> Any:
    """Arguments with each tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value, variant)
    if isinstance(value, dict):
        return {k: _map(v, change, variant) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_map(v, change, variant) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
