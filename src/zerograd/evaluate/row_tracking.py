"""Which example each row of a tensor belongs to, followed through the operations of a model.

A tensor that depends on the batch carries a `Batched` mark. Its rows are known to be examples x k in order, or mapped
to examples one by one, or lost: mixed, or moved to another dimension. A parameter that meets lost rows is refused;
nothing is guessed. Operations that move elements are followed by moving the numbers of the examples in the same way.
`operations.py` says which operation does what to rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from zerograd.evaluate.operations import Operation
from zerograd.evaluate.tensors import arguments, tensors
from zerograd.evaluate.trace import MARK, UNWRITTEN, Batched, Trace

LOST = -1
"""In place of an example: this element belongs to no example, or to an unknown one."""


def follow(trace: Trace, operation: Operation, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the batch alone, mark its result and return it."""
    rows = operation.rows
    if rows == "write" or "out" in kwargs:
        return _write(trace, operation, func, args, kwargs)
    result = func(*args, **kwargs)
    if operation.casts and trace.batched(args[0]) is None:
        return result  # a constant, given the type of a tensor of the batch
    if rows not in ("move", "copy", "constant") and trace.lies_later(args, kwargs):
        for out in tensors(result):
            axis = later_axis(trace, operation, args, kwargs, out)
            setattr(out, MARK, trace.lost if axis is None else Batched(trace, axis=axis))
    elif rows == "copy":
        setattr(result, MARK, _written(trace, operation, args, kwargs))
    elif rows == "move":
        _mark_moved(trace, operation, func, args, kwargs, result)
    elif operation.sorts and not _works_along_others(operation, args, kwargs):
        _mark_sorted(trace, operation, args, kwargs, result)
    elif rows != "constant":
        for out in tensors(result):
            setattr(out, MARK, _combined(trace, operation, args, kwargs, out))
    return result


def examples_of(trace: Trace, tensor: torch.Tensor) -> torch.Tensor:
    """Each element's example, of the tensor's shape; LOST where it is of no example or of an unknown one."""
    mark = trace.batched(tensor)
    leading = tensor.shape[0] if tensor.ndim else 0
    if mark is not None and mark.axis:
        along = trace.in_order(tensor.shape[mark.axis])
        return along.view(-1, *[1] * (tensor.ndim - 1 - mark.axis)).expand(tensor.shape)
    if mark is None or mark.lost or (mark.rows is None and (not leading or leading % trace.examples)):
        return torch.full((), LOST, device=tensor.device).expand(tensor.shape)
    rows = mark.rows if mark.rows is not None else trace.in_order(leading)
    return rows.view(-1, *[1] * (tensor.ndim - 1)).expand(tensor.shape)


def mark_of(trace: Trace, example: torch.Tensor) -> Batched:
    """The mark of a tensor whose elements belong to these examples."""
    if not example.ndim:
        return trace.lost
    if not example.numel():
        return Batched(trace, example.new_empty(example.shape[0]))
    flat = example.reshape(example.shape[0], -1)
    one = flat.shape[1] == 1
    rows = flat[:, 0] if one else flat.amax(1)
    if bool((flat == LOST).any()):
        return trace.lost
    if not one and bool(((flat != rows[:, None]) & (flat != UNWRITTEN)).any()):
        axis = _later_axis(trace, example)
        return Batched(trace, axis=axis) if axis else trace.lost
    in_order = len(rows) % trace.examples == 0 and torch.equal(rows, trace.in_order(len(rows)))
    return trace.ordered if in_order else Batched(trace, rows)


def _later_axis(trace: Trace, example: torch.Tensor) -> int:
    """The later dimension along which elements are examples x k in order; 0 where there is none."""
    for axis in range(1, example.ndim):
        size = example.shape[axis]
        if size and size % trace.examples == 0:
            along = trace.in_order(size).view(-1, *[1] * (example.ndim - 1 - axis))
            if torch.equal(example, along.expand(example.shape)):
                return axis
    return 0


def einsum_leads(trace: Trace, args: Sequence[Any]) -> bool:
    """Whether every operand of the batch in an einsum begins with the letter that its result begins with."""
    if not isinstance(args[0], str):
        return False
    operands = [trace.batched(t) is not None for t in tensors(args[1:])]
    inputs, arrow, output = args[0].replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or not output or len(terms) != len(operands):
        return False
    return all(term[:1] == output[0] for term, batched in zip(terms, operands, strict=True) if batched)


def leaders(equation: str, operands: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The operands of an einsum equation that begin with the letter that its result begins with."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    return [operand for operand, term in zip(operands, inputs.split(","), strict=True) if term[:1] == output[0]]


def _mark_moved(
    trace: Trace, operation: Operation, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], result: Any
) -> None:
    """Mark the result of an operation that moves elements."""
    source = args[0] if args else kwargs.get("input", kwargs.get("tensors"))
    if func is F.unfold:  # of images: each keeps its place
        setattr(result, MARK, _combined(trace, operation, (source,), {}, result))
        return
    if all(trace.batched(t) is None for t in tensors(source)):  # a constant, from which the batch picks
        first = args[1][0] if operation.move == "index" and isinstance(args[1], tuple) else args[1:]
        if not any(t.ndim for t in tensors(args[1:], kwargs) if trace.batched(t) is not None):
            return  # picked by a number, as Python's own control flow would
        leads = operation.move == "gather" or any(trace.batched(t) is not None for t in tensors(first))
        for out in tensors(result):
            setattr(out, MARK, _combined(trace, operation, args[1:], kwargs, out) if leads else trace.lost)
        return
    if isinstance(source, torch.Tensor) and _keeps_leading(trace, operation, source, args, kwargs, result):
        for out in tensors(result):
            setattr(out, MARK, trace.batched(source))
        return
    if (
        operation.move == "join"
        and _dimension(args, kwargs, 0) not in (0, -max(t.ndim for t in tensors(source)))
        and not trace.lies_later((source,), {})
    ):
        setattr(result, MARK, _combined(trace, operation, (source,), {}, result))
        return
    selected = _selected_rows(trace, operation, source, args)
    if selected is not None:
        setattr(result, MARK, mark_of(trace, selected))
        return
    moving = [examples_of(trace, t) for t in tensors(source)]
    if operation.move == "shape":
        moving = [example.contiguous() for example in moving]  # a view of expanded numbers may not be one
    shadow = func(moving[0] if isinstance(source, torch.Tensor) else moving, *args[1:], **_without(kwargs))
    for out, example in zip(tensors(result), tensors(shadow), strict=True):
        setattr(out, MARK, mark_of(trace, example))


def _mark_sorted(trace: Trace, operation: Operation, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
    """Mark the results of a sort along the leading dimension: each value, and its place before, is of its example."""
    source, outs = next(tensors(args, kwargs)), list(tensors(result))
    places = outs[-1]
    mark = trace.lost
    if source.ndim == 1:
        mark = mark_of(trace, examples_of(trace, source)[places] if source.numel() else places)
    for out in outs:
        setattr(out, MARK, mark)


def _selected_rows(trace: Trace, operation: Operation, source: Any, args: Sequence[Any]) -> torch.Tensor | None:
    """Each row's example where an index selects rows by their numbers; None for any other move."""
    if operation.move != "index" or len(args) < 2 or not isinstance(source, torch.Tensor):
        return None
    index, mark = args[1], trace.batched(source)
    if not isinstance(index, torch.Tensor) or index.ndim != 1 or index.dtype.is_floating_point or not index.numel():
        return None
    if mark is None or mark.lost or mark.axis or source.shape[0] % trace.examples:
        return None
    rows = trace.in_order(source.shape[0]) if mark.rows is None else mark.rows
    return rows[index]


def _keeps_leading(
    trace: Trace, operation: Operation, source: torch.Tensor, args: Sequence[Any], kwargs: dict[str, Any], result: Any
) -> bool:
    """Whether a move plainly leaves the leading dimension as it is: the usual case, without moving numbers."""
    mark, move = trace.batched(source), operation.move
    if mark is None or not source.ndim or mark.axis:
        return False
    if move == "index":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        if index[:1] == (Ellipsis,):
            return all(i is None or isinstance(i, (int, slice)) for i in index[1:]) and len(index) <= source.ndim
        return isinstance(index[0], slice) and index[0] == slice(None) if index else False
    if move == "shape":
        whole = isinstance(result, torch.Tensor) and result.ndim > 0 and result.shape[0] % trace.examples == 0
        return mark.rows is None and not mark.lost and whole and source.shape[0] % trace.examples == 0
    if move in ("swap", "permute"):
        dims = [d for a in (*args[1:], *kwargs.values()) for d in (a if isinstance(a, (tuple, list, torch.Size)) else (a,))]
        dims = [d % source.ndim for d in dims]
        return dims[0] == 0 if move == "permute" else 0 not in dims
    if move == "expand":
        return bool(result.ndim == source.ndim and result.shape[0] == source.shape[0])
    if move in ("insert", "dimension"):
        at = operation.dimension
        dim = kwargs.get("dim", args[at] if len(args) > at else None)
        return isinstance(dim, int) and dim % (source.ndim + (move == "insert")) != 0
    return False


def _combined(trace: Trace, operation: Operation, args: Sequence[Any], kwargs: dict[str, Any], out: torch.Tensor) -> Batched:
    """The mark of the result of an operation that computes: its rows are those of its operands, when they agree."""
    lost, rows = trace.lost, operation.rows
    if rows == "first":
        args, kwargs = args[:1], {}
    operands = [(t, trace.settled(m)) for t in arguments(args, kwargs) if (m := trace.batched(t)) is not None and t.ndim]
    ordered = all(mark is trace.ordered for _, mark in operands)
    if not out.ndim or not operands or (not ordered and any(mark.lost or mark.axis for _, mark in operands)):
        return lost
    if (
        (rows == "broadcast" and any(t.ndim < out.ndim and t.shape[0] > 1 for t, _ in operands))
        or (rows == "along" and not _works_along_others(operation, args, kwargs))
        or (rows == "product" and not _product_leads(trace, args, kwargs, out))
        or (rows == "einsum" and not einsum_leads(trace, args))
    ):
        return lost
    explicit = [] if ordered else [mark.rows for _, mark in operands if mark.rows is not None]
    if explicit:
        agree = (
            all(rows is explicit[0] or torch.equal(rows, explicit[0]) for rows in explicit) and out.shape[:1] == explicit[0].shape
        )
        others = [t for t, mark in operands if mark.rows is None and t.shape[0] == out.shape[0] and t.ndim == out.ndim]
        return Batched(trace, explicit[0]) if agree and not others else lost
    return trace.ordered if out.shape[0] and out.shape[0] % trace.examples == 0 else lost


def later_axis(trace: Trace, operation: Operation, args: Sequence[Any], kwargs: dict[str, Any], out: torch.Tensor) -> int | None:
    """The dimension of a result along which examples lie, where they lie along a later one of an argument; None where it is
    not known.
    """
    rows = operation.rows
    if rows == "first":
        args, kwargs = args[:1], {}
    operands = [(t, m) for t in tensors(args, kwargs) if (m := trace.batched(t)) is not None and t.ndim]
    if any(mark.lost or mark.rows is not None for _, mark in operands) or not out.ndim:
        return None
    if rows == "einsum":
        return _einsum_axis(trace, args)
    if rows == "product":
        return _product_axis(trace, operation, args, kwargs, out)
    from_right = {mark.axis - t.ndim for t, mark in operands}
    sizes = {t.shape[mark.axis] for t, mark in operands}
    if len(from_right) != 1 or len(sizes) != 1:
        return None
    offset, axis = from_right.pop(), out.ndim
    if operation.rule in ("embedding", "getitem"):
        axis = operands[0][1].axis
    elif rows in ("each", "broadcast", "first"):
        axis = out.ndim + offset
    elif rows == "along" and not (operation.elementwise and len(args) > 1 and isinstance(args[1], torch.Tensor)):
        source, mark = operands[0]
        dims = _dimensions(operation, args, kwargs, source.ndim)
        if dims is None or mark.axis in dims:
            return None
        axis = mark.axis - (sum(d < mark.axis for d in dims) if out.ndim < source.ndim else 0)
    return axis if 0 <= axis < out.ndim and out.shape[axis] == sizes.pop() else None


def letters_of(trace: Trace, args: Sequence[Any]) -> str:
    """The letter of an einsum equation along which the examples of every operand lie; "" where there is no such letter."""
    if not isinstance(args[0], str) or "." in args[0] or "->" not in args[0]:
        return ""
    operands, terms = list(tensors(args[1:])), args[0].replace(" ", "").split("->")[0].split(",")
    marks = [trace.batched(t) for t in operands]
    if len(terms) != len(operands):
        return ""
    letters = {term[mark.axis] for term, mark in zip(terms, marks, strict=True) if mark is not None}
    return letters.pop() if len(letters) == 1 else ""


def _einsum_axis(trace: Trace, args: Sequence[Any]) -> int | None:
    letter, output = letters_of(trace, args), str(args[0]).replace(" ", "").partition("->")[2]
    return output.index(letter) if letter and letter in output else None


def _product_axis(trace: Trace, operation: Operation, args: Sequence[Any], kwargs: dict[str, Any], out: torch.Tensor) -> int | None:
    """Of a matrix product: rows of the left factor, or a dimension of stacks that all factors share."""
    factors = list(tensors(args, kwargs))
    left, right = factors[:2] if operation.rule == "linear" else factors[-2:]
    (first, mark), *others = [(t, m) for t in (left, right) if (m := trace.batched(t)) is not None]
    axis = out.ndim + mark.axis - first.ndim
    of_stack, own = axis < out.ndim - 2, axis == out.ndim - (2 if first is left else 1)
    if others:
        of_stack &= out.ndim + others[0][1].axis - right.ndim == axis
        own = False
    return axis if (of_stack or own) and axis >= 0 and out.shape[axis] == first.shape[mark.axis] else None


def _dimensions(operation: Operation, args: Sequence[Any], kwargs: dict[str, Any], ndim: int) -> set[int] | None:
    """The dimensions that an operation works along; None where it names none."""
    at = operation.dimension
    dim = kwargs.get("dim", kwargs.get("axis", args[at] if len(args) > at else -1 if operation.last else None))
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    return {d % ndim for d in dims} if all(type(d) is int for d in dims) else None


def _works_along_others(operation: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation along dimensions leaves the leading one alone; max and min of two tensors do."""
    source = next(tensors(args, kwargs))
    if operation.elementwise and len(args) > 1 and isinstance(args[1], torch.Tensor):
        return True
    at = operation.dimension
    dim = kwargs.get("dim", kwargs.get("axis", args[at] if len(args) > at else None))
    if dim is None and operation.last:
        dim = -1
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    return all(type(d) is int and d % source.ndim != 0 for d in dims)


def _product_leads(trace: Trace, args: Sequence[Any], kwargs: dict[str, Any], out: torch.Tensor) -> bool:
    """Whether a product's leading dimension is the batch's: the right operand may carry it only in products of stacks."""
    factors = list(tensors(args, kwargs))
    if out.ndim > 2:
        return all(trace.batched(t) is None or t.ndim == out.ndim for t in factors)
    return trace.batched(factors[-1]) is None or len(factors) == 1


def _write(trace: Trace, operation: Operation, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A write into a tensor: its rows must then belong to the same examples as the values written into them."""
    target = kwargs.get("out", args[0])
    if "out" in kwargs:
        result = func(*args, **kwargs)
        mark = _combined(trace, operation, args, _without(kwargs), target) if isinstance(target, torch.Tensor) else None
    else:
        mark = _written(trace, operation, args, kwargs)
        result = func(*args, **kwargs)
    for out in tensors(target):
        setattr(out, MARK, mark or trace.lost)
        base = out._base
        if base is not None and trace.batched(base) is None:
            same = base.ndim and out.ndim and base.shape[0] == out.shape[0] and base.stride(0) == out.stride(0)
            setattr(base, MARK, mark if same and mark is not None else trace.lost)
    return result


def _written(trace: Trace, operation: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> Batched:
    """The mark of a target after a write: the same write, of the numbers of examples."""
    before = _ids_before(trace, args[0])
    is_value = [i == operation.value and isinstance(a, torch.Tensor) for i, a in enumerate(args[1:])]
    if not any(of_value and trace.batched(a) is not None for of_value, a in zip(is_value, args[1:], strict=True)):
        return trace.batched(args[0]) or mark_of(trace, before)  # the values are the same for every example
    written = before.clone()
    moving = [examples_of(trace, a) if of_value else a for of_value, a in zip(is_value, args[1:], strict=True)]
    write = getattr(torch.Tensor, operation.writes_as)
    write(written, *moving, **{k: v for k, v in kwargs.items() if k not in ("alpha", "accumulate")})
    return mark_of(trace, written)


def _ids_before(trace: Trace, target: Any) -> torch.Tensor:
    """The examples of a target's elements; UNWRITTEN where nothing of the batch was written into it yet."""
    if not isinstance(target, torch.Tensor):
        return torch.full((1,), LOST)
    return (
        torch.full(target.shape, UNWRITTEN, device=target.device) if trace.batched(target) is None else examples_of(trace, target)
    )


def _dimension(args: Sequence[Any], kwargs: dict[str, Any], default: int) -> int:
    dim: int = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else default))
    return dim


def _without(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if k not in ("input", "tensors", "out")}
