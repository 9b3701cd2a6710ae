"""The perturbed forward: a TorchFunctionMode that evaluates a plan without writing a weight.

Every torch operation of the model passes through `PerturbedForward.__torch_function__`. An operation that takes an
optimised parameter is computed as if each expanded example saw its own perturbed copy. Three kinds of tensors matter:

    slot      an optimised parameter
    derived   a tensor that depends on a slot but not on the batch (`-exp(A_log)`, a relative position bias): it carries a
              recipe that makes its value for a variant
    batched   a tensor that depends on the batch; its leading dimension is examples, or examples x k, in order, or is
              mapped to examples explicitly after an operation that selected rows (experts do)

The fast rules for the operations that models spend their time in are in `perturb.rules`. Any other operation on a slot
and the batch is evaluated variant by variant, over that variant's rows, with the perturbed tensor made for it; what
cannot be resolved to rows is refused, naming the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch.overrides import TorchFunctionMode

from zerograd.perturb.directions import Directions
from zerograd.perturb.plan import Plan, Variant
from zerograd.spaces.weights import Slot

MARK = "_zerograd"

_METADATA = {
    getattr(torch.Tensor, name).__get__
    for name in (
        *("shape", "dtype", "device", "layout", "ndim", "is_leaf", "requires_grad", "grad_fn", "is_cuda", "is_sparse"),
        *("is_quantized", "is_meta", "is_mps", "is_xla", "is_nested", "itemsize", "nbytes", "_version"),
    )
} | {
    getattr(torch.Tensor, name)
    for name in (
        *("size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point", "is_complex", "__len__"),
        *("is_contiguous", "element_size", "data_ptr", "storage_offset", "get_device", "requires_grad_", "__hash__"),
    )
}
_READS = {"item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__contains__", "equal", "allclose"}
_WHOLE = {"_grouped_mm", "grouped_mm", "_scaled_grouped_mm", "multi_head_attention_forward", "_native_multi_head_attention"}


_INTO = {"__setitem__", "index_add_", "index_copy_", "index_put_", "scatter_add_", "copy_"}
_BROADCASTS = {
    *("add", "sub", "mul", "div", "true_divide", "multiply", "subtract", "rsub", "pow", "where", "cat", "matmul", "__matmul__"),
    *("add_", "sub_", "mul_", "div_", "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "__mul__"),
    *("__rmul__", "__imul__", "__truediv__", "__rtruediv__", "__itruediv__", "maximum", "minimum", "addcmul", "lerp"),
}


class UnresolvedOperation(RuntimeError):
    """An operation mixes a perturbed parameter with the batch in a way that cannot be split by example."""


class Batched:
    """Mark of a tensor that depends on the batch.

    rows: None when the leading dimension is examples x k in order, else int64 (leading dimension,), each row's example.
    """

    __slots__ = ("owner", "rows")

    def __init__(self, owner: PerturbedForward, rows: torch.Tensor | None = None) -> None:
        self.owner = owner
        self.rows = rows


class Part(NamedTuple):
    """A matrix within a slot: matrix `e` of its stack, or the rows `ids` of a single matrix."""

    slot: Slot
    e: int = 0
    ids: torch.Tensor | None = None


class Derived:
    """Mark of a tensor that depends on slots but not on the batch.

    value: makes the tensor for a variant. name: of a slot it comes from. part: what it is of a slot, when it is rows of one.
    """

    __slots__ = ("name", "owner", "part", "value")

    def __init__(
        self,
        owner: PerturbedForward,
        name: str,
        value: Callable[[Variant], torch.Tensor],
        part: Part | None = None,
    ) -> None:
        self.owner = owner
        self.name = name
        self.value = value
        self.part = part


class PerturbedForward(TorchFunctionMode):
    """Evaluate whatever runs inside the `with` block under a plan. Weights are read, never written.

    slots: the optimised tensors. directions: where their noise comes from. plan: who sees which direction.
    whole: everything inside sees the plan's only variant; no example needs to be told from another (closures).
    Raises UnresolvedOperation for what it cannot split by example.
    """

    def __init__(self, slots: Sequence[Slot], directions: Directions, plan: Plan, *, whole: bool = False) -> None:
        super().__init__()
        from zerograd.perturb import rules

        if whole and len(plan.variants) != 1:
            raise ValueError(f"a whole evaluation has one variant, this plan has {len(plan.variants)}")
        self.directions = directions
        self.plan = plan
        self.whole = whole
        self.used: set[int] = set()
        self._slots = {id(slot.parameter): slot for slot in slots}
        self._batched = Batched(self)
        self._rules = rules.RULES

    def __enter__(self) -> Self:
        self._gradients = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_grad_enabled(self._gradients)

    def mark(self, tensor: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Say that a tensor depends on the batch; the engine marks the expanded batch itself."""
        setattr(tensor, MARK, self._batched if rows is None else Batched(self, rows))
        return tensor

    def slot(self, value: Any) -> Slot | None:
        """The slot of a parameter, or None."""
        return self._slots.get(id(value))

    def batched(self, value: Any) -> Batched | None:
        """The mark of a tensor that depends on the batch, or None."""
        mark = getattr(value, MARK, None)
        return mark if type(mark) is Batched and mark.owner is self else None

    def derived(self, value: Any) -> Derived | None:
        """The recipe of a derived tensor, or None."""
        mark = getattr(value, MARK, None)
        return mark if type(mark) is Derived and mark.owner is self else None

    def name(self, value: Any) -> str | None:
        """The name of the slot that a tensor is or comes from, or None."""
        slot = self.slot(value)
        if slot is not None:
            return slot.name
        derived = self.derived(value)
        return derived.name if derived else None

    def value(self, value: Any, variant: Variant) -> Any:
        """What an argument is for one variant."""
        slot = self.slot(value)
        if slot is not None:
            made = self.directions.perturbed(slot, variant.direction, [variant.sign])[0]
            return made.view(slot.parameter.shape)
        derived = self.derived(value)
        return derived.value(variant) if derived else value

    def repeat(self, tensor: torch.Tensor, name: str) -> int | torch.Tensor:
        """How a batched tensor's leading dimension maps to examples: k rows an example, or each row's example."""
        mark = self.batched(tensor)
        if mark is not None and mark.rows is not None:
            return mark.rows
        leading = tensor.shape[0] if tensor.ndim else 1
        if leading % len(self.plan) or not leading:
            raise UnresolvedOperation(
                f"{name} meets a tensor of shape {tuple(tensor.shape)}, whose leading dimension is not a multiple of "
                f"the {len(self.plan)} examples of the expanded batch; put the batch first, or pass a closure"
            )
        return leading // len(self.plan)

    def per_row(self, values: torch.Tensor, repeat: int | torch.Tensor) -> torch.Tensor:
        """Values of shape (examples, ...) as (rows, ...)."""
        if isinstance(repeat, torch.Tensor):
            return values[repeat]
        return values if repeat == 1 else values.repeat_interleave(repeat, 0)

    def at(self, variant: Variant, repeat: int | torch.Tensor) -> slice | torch.Tensor:
        """The rows of a variant, as an index of the leading dimension."""
        if isinstance(repeat, torch.Tensor):
            return torch.isin(repeat, variant.examples).nonzero()[:, 0]
        if variant.span:
            return slice(variant.span[0] * repeat, variant.span[1] * repeat)
        return (variant.examples[:, None] * repeat + torch.arange(repeat)).flatten()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            return func(*args, **kwargs)
        ours: Any = None
        batched = selected = False
        for value in _tensors(args, kwargs):
            if id(value) in self._slots:
                ours = value if ours is None else ours
                self.used.add(id(value))
                continue
            mark = getattr(value, MARK, None)
            if mark is not None and mark.owner is self:
                if type(mark) is Derived:
                    ours = value if ours is None else ours
                else:
                    batched = True
                    selected = selected or mark.rows is not None
        if ours is None:
            if not batched:
                return func(*args, **kwargs)
            return self._follow(func, args, kwargs, selected)
        name = getattr(func, "__name__", str(func))
        if name in _READS:
            raise UnresolvedOperation(
                f"{self.name(ours)} is read by {name}(), so the model's course would depend on the perturbation; freeze it"
            )
        if not self.whole and batched and name in _WHOLE:
            mend = "call model.set_experts_implementation('eager')" if "grouped" in name else "freeze it or pass a closure"
            raise UnresolvedOperation(f"{self.name(ours)} is used by {name}, which cannot be split by example; {mend}")
        rule = self._rules.get(name)
        if rule is not None:
            result = rule(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        if self.whole:
            variant = self.plan.variants[0]
            return func(*_map(args, self.value, variant), **_map(kwargs, self.value, variant))
        if not batched:
            return self._derive(func, args, kwargs, ours)
        return self._split(func, args, kwargs, str(self.name(ours)))

    def _follow(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], selected: bool) -> Any:
        """An operation on the batch alone: run it, and keep track of which example each row belongs to."""
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "index_select") and _selects(name, args) and self._resolves(args[0]):
            rows = self.per_row(torch.arange(len(self.plan)), self.repeat(args[0], name))
            spread = rows.view(-1, *[1] * (args[0].ndim - 1)).expand(args[0].shape)
            chosen = func(spread, *args[1:], **kwargs)  # the same selection, of each element's example
            if not chosen.ndim or not chosen.numel():
                return self.mark(result, chosen.new_empty(0) if chosen.ndim else None)
            rows = chosen.reshape(len(chosen), -1)[:, 0]
            in_order = len(rows) % len(self.plan) == 0 and torch.equal(rows, self._in_order(len(rows)))
            return self.mark(result, None if in_order else rows)
        if name in _INTO:
            if self.batched(args[0]) is None:
                self.mark(args[0])
            return result
        rows_of: Batched | None = None
        if selected:
            marks = (self.batched(value) for value in _tensors(args, kwargs))
            rows_of = next((mark for mark in marks if mark is not None and mark.rows is not None), None)
        for out in _tensors((result,), {}):
            follows = rows_of is not None and rows_of.rows is not None and out.shape[:1] == rows_of.rows.shape
            setattr(out, MARK, rows_of if follows else self._batched)
        return result

    def _in_order(self, rows: int) -> torch.Tensor:
        return self.per_row(torch.arange(len(self.plan)), rows // len(self.plan))

    def _resolves(self, tensor: Any) -> bool:
        mark = self.batched(tensor)
        return mark is not None and tensor.ndim > 0 and (mark.rows is not None or tensor.shape[0] % len(self.plan) == 0)

    def _derive(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], ours: torch.Tensor) -> Any:
        """An operation on slots without the batch: its result is derived."""
        result = func(*args, **kwargs)
        name = str(self.name(ours))
        if any(result is value for value in _tensors(args, kwargs)):
            return result  # a cast that had nothing to do
        if isinstance(result, torch.Tensor):

            def value(variant: Variant) -> torch.Tensor:
                made: torch.Tensor = func(*_map(args, self.value, variant), **_map(kwargs, self.value, variant))
                return made

            setattr(result, MARK, Derived(self, name, value))
            return result
        if isinstance(result, (tuple, list)):
            for i, out in enumerate(result):

                def item(variant: Variant, i: int = i) -> torch.Tensor:
                    made: torch.Tensor = func(*_map(args, self.value, variant), **_map(kwargs, self.value, variant))[i]
                    return made

                if isinstance(out, torch.Tensor):
                    setattr(out, MARK, Derived(self, name, item))
        return result

    def _split(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], name: str) -> Any:
        """Any operation on slots and the batch: variant by variant, over that variant's rows."""
        operation = getattr(func, "__name__", str(func))
        inplace = operation.startswith("__i") or (operation.endswith("_") and not operation.endswith("__"))
        source = next((v for v in _tensors(args, kwargs) if self.batched(v) is not None and v.ndim), None)
        if source is None or (inplace and args[0] is not source):
            raise UnresolvedOperation(f"{name} is used by {operation} in a way that cannot be split by example; freeze it")
        repeat = self.repeat(source, name)
        leading = {v.shape[0] for v in _tensors(args, kwargs) if self.batched(v) is not None and v.ndim}
        ndim = max(v.ndim for v in _tensors(args, kwargs))
        broadcasts = operation in _BROADCASTS

        def rows(value: Any, variant: Variant) -> Any:
            mine = self.value(value, variant)
            follows = broadcasts and self.slot(value) is None and mine.ndim == ndim and mine.shape[0] in leading
            if (follows and mine.shape[0] > 1) or (self.batched(value) is not None and mine.ndim):
                return mine[self.at(variant, self.repeat(value, name))]
            return mine

        result: torch.Tensor | None = None
        for variant in self.plan.variants:
            part = func(*_map(args, rows, variant), **_map(kwargs, rows, variant))
            at = self.at(variant, repeat)
            if inplace:
                if not isinstance(at, slice):
                    source[at] = part
                continue
            count = len(variant.examples) if isinstance(repeat, int) else len(at)  # type: ignore[arg-type]
            if not isinstance(part, torch.Tensor) or not part.ndim or part.shape[0] % max(1, count):
                shape = tuple(part.shape) if isinstance(part, torch.Tensor) else type(part).__name__
                raise UnresolvedOperation(
                    f"{name} is used by {operation}, whose result ({shape}) has no row for each example; freeze it"
                )
            each: int | torch.Tensor = part.shape[0] // count if isinstance(repeat, int) else repeat
            if result is None:
                total = each * len(self.plan) if isinstance(each, int) else len(each)
                result = part.new_empty((total, *part.shape[1:]))
            result[self.at(variant, each)] = part
        if inplace:
            return source
        assert result is not None
        return self.mark(result, repeat if isinstance(repeat, torch.Tensor) else None)


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    for value in args:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value, {})
    for value in kwargs.values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value, {})


def _map(value: Any, change: Callable[[Any, Variant], Any], variant: Variant) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value, variant)
    if isinstance(value, dict):
        return {k: _map(v, change, variant) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_map(v, change, variant) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _selects(name: str, args: Sequence[Any]) -> bool:
    """Whether an indexing operation may pick among leading rows."""
    if name == "index_select":
        return bool(args[1] == 0)
    index = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
    return index is not Ellipsis and index is not None and not (isinstance(index, slice) and index == slice(None))
