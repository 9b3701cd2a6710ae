"""Which example each row of a tensor belongs to, followed through the operations of a model.

A tensor that depends on the batch carries a `Batched` mark. Its rows are known to be examples x k in order, or mapped to examples
one by one, or lost: mixed, or moved to another dimension. A parameter that meets lost rows is refused; nothing is guessed.
Operations that move elements are followed by moving the numbers of the examples in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from zerograd.evaluate.forward import PerturbedForward

MARK = "_zerograd"

MOVES = {
    *("__getitem__", "index_select", "flip", "fliplr", "flipud", "roll", "repeat", "repeat_interleave", "tile", "cat", "concat"),
    *("concatenate", "stack", "hstack", "vstack", "chunk", "split", "tensor_split", "unbind", "narrow", "select", "expand"),
    *("expand_as", "broadcast_to", "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "T", "mT", "H"),
    *("unsqueeze", "squeeze", "reshape", "view", "view_as", "reshape_as", "flatten", "unflatten", "ravel", "gather", "unfold"),
    *("take_along_dim", "masked_select", "diagonal", "rot90", "__iter__", "split_with_sizes", "dsplit", "vsplit", "hsplit"),
}
_SHAPES = {"reshape", "view", "view_as", "reshape_as", "flatten", "unflatten", "ravel"}
_JOINS = {"cat", "concat", "concatenate"}
_SWAPS = {"transpose", "swapaxes", "swapdims", "permute"}
_ALONG = {
    *("sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "logsumexp", "softmax", "log_softmax", "softmin", "cumsum"),
    *("cumprod", "sort", "argsort", "topk", "prod", "norm", "std", "var", "any", "all", "median", "normalize", "count_nonzero"),
    *("linalg_norm", "linalg_vector_norm", "var_mean", "std_mean", "aminmax", "nanmedian", "mode", "nanquantile"),
    *("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "diff", "cumulative_trapezoid", "trapezoid"),
    *("nansum", "nanmean", "msort", "cummax", "cummin", "logcumsumexp", "kthvalue", "quantile", "unique", "nonzero", "bincount"),
}
_DIMENSION_SECOND = {
    *("norm", "normalize", "linalg_norm", "linalg_vector_norm", "quantile", "nanquantile", "topk", "kthvalue", "diff"),
    *("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft"),
}
"""Of those, the ones that take something else (an order, a count) before the dimension."""
_DIMENSION_LAST = {
    *("topk", "kthvalue", "sort", "argsort", "mode", "diff", "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft"),
    *("cumulative_trapezoid", "trapezoid"),
}
"""The ones that work along the last dimension by default; the others along all, or the first."""
PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "linear", "addmm", "baddbmm"}
_CONSTANTS = {
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_empty"),
    *("new_full", "new_tensor"),
}
_COPIES = {
    "index_add": "index_copy_",
    "index_copy": "index_copy_",
    "index_put": "index_put_",
    "scatter": "scatter_",
    "scatter_add": "scatter_",
}
WRITES = {"__setitem__", "index_add_", "index_copy_", "index_put_", "scatter_", "scatter_add_", "masked_scatter_", "copy_"}
BROADCASTS = {
    *("add", "sub", "mul", "div", "true_divide", "multiply", "subtract", "rsub", "pow", "where", "maximum", "minimum", "addcmul"),
    *("add_", "sub_", "mul_", "div_", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "__mul__", "lerp"),
    *("__rmul__", "__imul__", "__truediv__", "__rtruediv__", "__itruediv__", "__pow__", "__rpow__", "logaddexp", "atan2"),
}


NONE, UNWRITTEN = -1, -2


class Batched:
    """Mark of a tensor that depends on the batch.

    rows: None when the leading dimension is examples x k in order, else int64 (leading dimension,), each row's example, or
    UNWRITTEN for a row of a buffer that nothing of the batch has been written into.
    lost: the rows cannot be told apart by example.
    """

    __slots__ = ("lost", "owner", "rows")

    def __init__(self, owner: PerturbedForward, rows: torch.Tensor | None = None, *, lost: bool = False) -> None:
        self.owner = owner
        self.rows = rows
        self.lost = lost


def tensors(*values: Any) -> Iterator[torch.Tensor]:
    """The tensors among arguments, in nested lists and tuples too."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors(*value)
        elif isinstance(value, dict):
            yield from tensors(*value.values())


def follow(forward: PerturbedForward, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the batch alone and mark what it gives."""
    if name in WRITES or "out" in kwargs:
        return _write(forward, name, func, args, kwargs)
    result = func(*args, **kwargs)
    if name in _COPIES:
        setattr(result, MARK, _written(forward, name, args, kwargs))
        return result
    if name in _CONSTANTS:
        return result
    if name in MOVES:
        _moved(forward, name, func, args, kwargs, result)
        return result
    mark = None
    for out in tensors(result):
        mark = _combined(forward, name, args, kwargs, out)
        setattr(out, MARK, mark)
    return result


def ids(forward: PerturbedForward, tensor: torch.Tensor) -> torch.Tensor:
    """Each element's example, of the tensor's shape; NONE where it is of no example or lost."""
    mark = forward.batched(tensor)
    leading = tensor.shape[0] if tensor.ndim else 0
    if mark is None or mark.lost or (mark.rows is None and (not leading or leading % len(forward.plan))):
        return torch.full((), NONE, device=tensor.device).expand(tensor.shape)
    rows = mark.rows if mark.rows is not None else _ordered(forward, leading)
    return rows.view(-1, *[1] * (tensor.ndim - 1)).expand(tensor.shape)


def mark_of(forward: PerturbedForward, example: torch.Tensor) -> Batched:
    """The mark of a tensor whose elements belong to these examples."""
    if not example.ndim:
        return Batched(forward, lost=True)
    if not example.numel():
        return Batched(forward, example.new_empty(example.shape[0]))
    flat = example.reshape(example.shape[0], -1)
    rows = flat.amax(1)
    if bool((flat == NONE).any() or ((flat != rows[:, None]) & (flat != UNWRITTEN)).any()):
        return Batched(forward, lost=True)
    in_order = len(rows) % len(forward.plan) == 0 and torch.equal(rows, _ordered(forward, len(rows)))
    return Batched(forward) if in_order else Batched(forward, rows)


def settled(forward: PerturbedForward, mark: Batched) -> Batched:
    """A mark without unwritten rows: they hold constants, so they may be of any example that order asks for."""
    if mark.rows is None or not bool((mark.rows == UNWRITTEN).any()):
        return mark
    if len(mark.rows) % len(forward.plan) == 0:
        order = _ordered(forward, len(mark.rows))
        if torch.equal(torch.where(mark.rows == UNWRITTEN, order, mark.rows), order):
            return Batched(forward)
    return Batched(forward, lost=True)


def _ordered(forward: PerturbedForward, rows: int) -> torch.Tensor:
    return torch.arange(len(forward.plan), device=forward.plan.device).repeat_interleave(rows // len(forward.plan))


def leads(equation: str, operands: Sequence[bool]) -> bool:
    """Whether every marked operand of an einsum equation begins with the letter that its result begins with."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow or not output or len(terms) != len(operands):
        return False
    return all(term[:1] == output[0] for term, marked in zip(terms, operands, strict=True) if marked)


def led(equation: str, operands: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The operands of an einsum equation that begin with the letter that its result begins with."""
    inputs, _, output = equation.replace(" ", "").partition("->")
    return [operand for operand, term in zip(operands, inputs.split(","), strict=True) if term[:1] == output[0]]


def _moved(
    forward: PerturbedForward, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], result: Any
) -> None:
    source = args[0] if args else kwargs.get("input", kwargs.get("tensors"))
    if all(forward.batched(t) is None for t in tensors(source)):  # a constant, from which the batch picks
        first = args[1][0] if name == "__getitem__" and isinstance(args[1], tuple) else args[1:]
        if not any(t.ndim for t in tensors(args[1:], kwargs) if forward.batched(t) is not None):
            return  # picked by a number, as Python's own control flow would
        leads = name in ("gather", "take_along_dim") or any(forward.batched(t) is not None for t in tensors(first))
        for out in tensors(result):
            setattr(out, MARK, _combined(forward, name, args[1:], kwargs, out) if leads else Batched(forward, lost=True))
        return
    if isinstance(source, torch.Tensor) and _stays(forward, name, source, args, kwargs, result):
        for out in tensors(result):
            setattr(out, MARK, forward.batched(source))
        return
    if name in _JOINS and _dimension(args, kwargs, 0) not in (0, -max(t.ndim for t in tensors(source))):
        setattr(result, MARK, _combined(forward, name, (source,), {}, result))
        return
    moving = [ids(forward, t) for t in tensors(source)]
    shadow = func(moving[0] if isinstance(source, torch.Tensor) else moving, *args[1:], **_without(kwargs))
    for out, example in zip(tensors(result), tensors(shadow), strict=True):
        setattr(out, MARK, mark_of(forward, example))


def _stays(
    forward: PerturbedForward, name: str, source: torch.Tensor, args: Sequence[Any], kwargs: dict[str, Any], result: Any
) -> bool:
    """Whether a move plainly leaves the leading dimension as it is: the usual case, without moving numbers."""
    mark = forward.batched(source)
    if mark is None or not source.ndim:
        return False
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        if index[:1] == (Ellipsis,):
            return all(i is None or isinstance(i, (int, slice)) for i in index[1:]) and len(index) <= source.ndim
        return isinstance(index[0], slice) and index[0] == slice(None) if index else False
    if name in _SHAPES:
        whole = isinstance(result, torch.Tensor) and result.ndim > 0 and result.shape[0] % len(forward.plan) == 0
        return mark.rows is None and not mark.lost and whole and source.shape[0] % len(forward.plan) == 0
    if name in _SWAPS:
        dims = [d for a in (*args[1:], *kwargs.values()) for d in (a if isinstance(a, (tuple, list, torch.Size)) else (a,))]
        dims = [d % source.ndim for d in dims]
        return dims[0] == 0 if name == "permute" else 0 not in dims
    if name in ("expand", "expand_as", "broadcast_to"):
        return bool(result.ndim == source.ndim and result.shape[0] == source.shape[0])
    if name in ("unsqueeze", "squeeze", "chunk", "split", "tensor_split", "narrow", "select", "unbind"):
        at = 1 if name in ("unsqueeze", "squeeze", "narrow", "select", "unbind") else 2
        dim = kwargs.get("dim", args[at] if len(args) > at else None)
        return isinstance(dim, int) and dim % (source.ndim + (name == "unsqueeze")) != 0
    return False


def _combined(forward: PerturbedForward, name: str, args: Sequence[Any], kwargs: dict[str, Any], out: torch.Tensor) -> Batched:
    """The mark of what an operation that computes gives: its rows are those of its operands, when they agree."""
    lost = Batched(forward, lost=True)
    operands = [(t, settled(forward, m)) for t in tensors(args, kwargs) if (m := forward.batched(t)) is not None and t.ndim]
    if not out.ndim or not operands or any(mark.lost for _, mark in operands):
        return lost
    if name in _ALONG and not _along_others(name, args, kwargs):
        return lost
    if name == "einsum" and not _einsum_leads(forward, args):
        return lost
    if name in PRODUCTS and not _product_leads(forward, args, kwargs, out):
        return lost
    narrow = [t for t, _ in operands if t.ndim < out.ndim and t.shape[0] > 1]
    if name in BROADCASTS and narrow:
        return lost
    explicit = [mark.rows for _, mark in operands if mark.rows is not None]
    if explicit:
        agree = all(torch.equal(rows, explicit[0]) for rows in explicit) and out.shape[:1] == explicit[0].shape
        ordered = [t for t, mark in operands if mark.rows is None and t.shape[0] == out.shape[0] and t.ndim == out.ndim]
        return Batched(forward, explicit[0]) if agree and not ordered else lost
    return Batched(forward) if out.shape[0] and out.shape[0] % len(forward.plan) == 0 else lost


def _along_others(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation along dimensions leaves the leading one alone; elementwise max and min do."""
    source = next(tensors(args, kwargs))
    if name in ("max", "min") and len(args) > 1 and isinstance(args[1], torch.Tensor):
        return True
    at = 2 if name in _DIMENSION_SECOND else 1
    dim = kwargs.get("dim", kwargs.get("axis", args[at] if len(args) > at else None))
    if dim is None and name in _DIMENSION_LAST:
        dim = -1
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    return all(type(d) is int and d % source.ndim != 0 for d in dims)


def _einsum_leads(forward: PerturbedForward, args: Sequence[Any]) -> bool:
    marked = [forward.batched(t) is not None for t in tensors(args[1:])]
    return isinstance(args[0], str) and leads(args[0], marked)


def _product_leads(forward: PerturbedForward, args: Sequence[Any], kwargs: dict[str, Any], out: torch.Tensor) -> bool:
    """Whether a product's leading dimension is the batch's: the right operand may carry it only in products of stacks."""
    factors = list(tensors(args, kwargs))
    if out.ndim > 2:
        return all(forward.batched(t) is None or t.ndim == out.ndim for t in factors)
    return forward.batched(factors[-1]) is None or len(factors) == 1


def _write(forward: PerturbedForward, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A write into a tensor: its rows must then belong to the same examples as what was written into them."""
    target = kwargs.get("out", args[0])
    if "out" in kwargs:
        result = func(*args, **kwargs)
        mark = _combined(forward, name, args, _without(kwargs), target) if isinstance(target, torch.Tensor) else None
    else:
        mark = _written(forward, name, args, kwargs)
        result = func(*args, **kwargs)
    for out in tensors(target):
        setattr(out, MARK, mark or Batched(forward, lost=True))
        base = out._base
        if base is not None and forward.batched(base) is None:
            same = base.ndim and out.ndim and base.shape[0] == out.shape[0] and base.stride(0) == out.stride(0)
            setattr(base, MARK, mark if same and mark is not None else Batched(forward, lost=True))
    return result


def _written(forward: PerturbedForward, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Batched:
    """The mark of a target after a write: the same write, of the numbers of examples."""
    before = _ids_before(forward, args[0])
    if not any(_numbers(forward, name, i, a) and forward.batched(a) is not None for i, a in enumerate(args[1:])):
        return forward.batched(args[0]) or mark_of(forward, before)  # what is written is the same for every example
    written = before.clone()
    moving = [ids(forward, a) if _numbers(forward, name, i, a) else a for i, a in enumerate(args[1:])]
    plain = {"index_add_": "index_copy_", "scatter_add_": "scatter_"} | _COPIES
    getattr(torch.Tensor, plain.get(name, name))(
        written, *moving, **{k: v for k, v in kwargs.items() if k not in ("alpha", "accumulate")}
    )
    return mark_of(forward, written)


def _numbers(forward: PerturbedForward, name: str, position: int, value: Any) -> bool:
    """Whether an argument of a write is what is written, rather than where."""
    last = {"__setitem__": 1, "copy_": 0, "index_put": 1, "index_put_": 1, "masked_scatter_": 1}.get(name, 2)
    return position == last and isinstance(value, torch.Tensor)


def _ids_before(forward: PerturbedForward, target: Any) -> torch.Tensor:
    """The examples of a target's elements; UNWRITTEN where nothing of the batch was written into it yet."""
    if not isinstance(target, torch.Tensor):
        return torch.full((1,), NONE)
    return torch.full(target.shape, UNWRITTEN, device=target.device) if forward.batched(target) is None else ids(forward, target)


def _dimension(args: Sequence[Any], kwargs: dict[str, Any], default: int) -> int:
    dim: int = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else default))
    return dim


def _without(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if k not in ("input", "tensors", "out")}
