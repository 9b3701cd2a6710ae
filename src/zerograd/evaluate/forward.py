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

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode

from zerograd.directions.family import Directions
from zerograd.evaluate import row_tracking as rows
from zerograd.evaluate.products import Part
from zerograd.evaluate.row_tracking import MARK, Batched
from zerograd.queries.plan import Plan, Variant
from zerograd.spaces.weights import Slot

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
_READS = {
    *("item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__", "__contains__", "equal", "allclose"),
    *("is_nonzero", "untyped_storage", "storage", "__dlpack__"),
}
CASTS = ("float", "to", "type_as", "bfloat16", "half", "contiguous", "detach")
"""Operations that change no value: what they return may be the tensor itself."""

_WHOLE = {"_grouped_mm", "grouped_mm", "_scaled_grouped_mm", "multi_head_attention_forward", "_native_multi_head_attention"}


_ASSIGNED = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_SHARED = {
    *("embedding", "embedding_bag", "index_select", "__getitem__", "outer", "ger", "inner", "tensordot", "bilinear", "cdist"),
    *rows.PRODUCTS,
}
"""Operations, beside convolutions, that take a tensor of at most two dimensions whole: its first is its own, not examples."""


class UnresolvedOperation(RuntimeError):
    """An operation mixes a perturbed parameter with the batch in a way that cannot be split by example."""


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


def _eager() -> AbstractContextManager[Any]:
    """Compiled modules run as they are written: a graph that was captured without a perturbation knows nothing of one."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes a second
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


class PerturbedForward(TorchFunctionMode):
    """Evaluate whatever runs inside the `with` block under a plan. Weights are read, never written.

    slots: the optimised tensors. directions: where their noise comes from. plan: who sees which direction.
    whole: everything inside sees the plan's only variant; no example needs to be told from another (closures).
    Raises UnresolvedOperation for what it cannot split by example.
    """

    def __init__(self, slots: Sequence[Slot], directions: Directions, plan: Plan, *, whole: bool = False) -> None:
        super().__init__()
        from zerograd.evaluate import operations as rules

        if whole and len(plan.variants) != 1:
            raise ValueError(f"a whole evaluation has one variant, this plan has {len(plan.variants)}")
        self.directions = directions
        self.plan = plan.to(slots[0].parameter.device) if slots else plan
        self.whole = whole
        self._slots = {id(slot.parameter): slot for slot in slots}
        self._batched = Batched(self)
        self._rules = rules.RULES

    def __enter__(self) -> Self:
        self._gradients = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        self._eager = _eager()
        self._eager.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._eager.__exit__(*error)
        torch.set_grad_enabled(self._gradients)

    def mark(self, tensor: torch.Tensor, to: torch.Tensor | None = None, *, lost: bool = False) -> torch.Tensor:
        """Say that a tensor depends on the batch, and on which examples; the engine marks the expanded batch itself."""
        setattr(tensor, MARK, self._batched if to is None and not lost else Batched(self, to, lost=lost))
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
        if mark is not None:
            mark = rows.settled(self, mark)
        if mark is not None and mark.lost:
            raise UnresolvedOperation(
                f"{name} meets a tensor of shape {tuple(tensor.shape)} whose leading dimension can no longer be told apart by "
                "example; keep the batch first and unmixed, or pass a closure"
            )
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
        return (variant.examples[:, None] * repeat + torch.arange(repeat, device=variant.examples.device)).flatten()

    def resolved(self, losses: torch.Tensor) -> torch.Tensor:
        """Losses as each expanded example sees them. Raises UnresolvedOperation when they are not in the order of the examples."""
        derived, mark = self.derived(losses), self.batched(losses)
        if mark is not None:
            mark = rows.settled(self, mark)
        if mark is not None and (mark.lost or mark.rows is not None):
            raise UnresolvedOperation(
                "the losses are not one an example in the order of the batch; restore its order before returning"
            )
        if derived is None or losses.shape != (len(self.plan),):
            return losses.detach()
        result = torch.empty(losses.shape, dtype=torch.float32, device=losses.device)
        for variant in self.plan.variants:
            result[variant.examples] = derived.value(variant)[variant.examples].float()
        return result

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA or not self._slots:
            return func(*args, **kwargs)
        ours: Any = None
        batched = False
        for value in rows.tensors(args, kwargs):
            if id(value) in self._slots:
                ours = value if ours is None else ours
                continue
            mark = getattr(value, MARK, None)
            if mark is not None and mark.owner is self:
                if type(mark) is Derived:
                    ours = value if ours is None else ours
                else:
                    batched = True
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = getattr(func, "__self__", func).__name__  # a property, such as T
        mixes = name == "batch_norm" and (kwargs.get("training") or True in args[5:6])
        if mixes and not self.whole and (batched or ours is not None):
            raise UnresolvedOperation("batch_norm in training mode mixes examples; call model.eval()")
        if ours is None:
            if self.whole or not batched:
                return func(*args, **kwargs)
            return rows.follow(self, name, func, args, kwargs)
        if torch.is_autocast_enabled(ours.device.type):
            raise UnresolvedOperation(f"{self.name(ours)} is used under autocast; leave it, and load the model in bfloat16 instead")
        if func == _ASSIGNED:
            raise UnresolvedOperation(f"{self.name(ours)} is given other data by the model's forward; freeze it")
        if name in _READS:
            raise UnresolvedOperation(
                f"{self.name(ours)} is read by {name}(), so the model's course would depend on the perturbation; freeze it"
            )
        if not self.whole and "out" in kwargs:
            raise UnresolvedOperation(f"{self.name(ours)} is used by {name} with out=; use what it returns, or pass a closure")
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
            return self.derive(func, args, kwargs, ours)
        return self._split(name, func, args, kwargs, str(self.name(ours)))

    def derive(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], ours: torch.Tensor) -> Any:
        """An operation on slots without the batch: its result is derived."""
        name, operation = str(self.name(ours)), getattr(func, "__name__", str(func))
        target = args[0] if args else None
        old = self.derived(target)
        writes = _in_place(operation) or operation == "__setitem__"
        if writes and old is None:
            raise UnresolvedOperation(f"{name} is used by {operation} to write into a tensor; write the operation out of place")
        result = func(*args, **kwargs)
        if old is not None and (writes or (result is target and operation not in CASTS)):

            def rewritten(variant: Variant) -> torch.Tensor:
                fresh = old.value(variant).clone()
                func(fresh, *_map(args[1:], self.value, variant), **_map(kwargs, self.value, variant))
                return fresh

            setattr(target, MARK, Derived(self, name, rewritten))
            return result
        if any(result is value for value in rows.tensors(args, kwargs)):
            return result  # a cast that had nothing to do
        for i, out in enumerate(rows.tensors(result)):

            def value(variant: Variant, i: int = i) -> torch.Tensor:
                made = func(*_map(args, self.value, variant), **_map(kwargs, self.value, variant))
                return list(rows.tensors(made))[i]

            setattr(out, MARK, Derived(self, name, value))
        return result

    def _split(self, operation: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], name: str) -> Any:
        """Any operation on slots and the batch: variant by variant, over that variant's rows."""
        inplace = _in_place(operation)
        refusal = f"{name} is used by {operation} in a way that cannot be split by example; freeze it or pass a closure"
        batched = [v for v in rows.tensors(args, kwargs) if self.batched(v) is not None and v.ndim]
        if not batched or (inplace and args[0] is not batched[0]) or operation in rows.WRITES:
            raise UnresolvedOperation(refusal)
        if not self._splits(operation, args, kwargs):
            raise UnresolvedOperation(refusal)
        repeat = self.repeat(batched[0], name)
        leading, ndim = batched[0].shape[0], max(v.ndim for v in rows.tensors(args, kwargs))
        if any(not _same(self.repeat(v, name), repeat) for v in batched if v.shape[0] == leading):
            raise UnresolvedOperation(refusal)

        keeps = operation.startswith("conv") or (operation in _SHARED and ndim <= 2)
        led = rows.led(args[0], list(rows.tensors(args[1:]))) if operation == "einsum" else None

        def mine(value: Any, variant: Variant) -> Any:
            made = self.value(value, variant)
            expanded = self.slot(value) is None and made.ndim == ndim and made.shape[0] == leading > 1
            expanded &= led is None or any(value is one for one in led)
            if self.batched(value) is not None and made.ndim:
                return made[self.at(variant, self.repeat(value, name))]
            return made[self.at(variant, repeat)] if expanded and not keeps else made

        result: torch.Tensor | None = None
        each: int | torch.Tensor = repeat
        for variant in self.plan.variants:
            at = self.at(variant, repeat)
            try:
                part = func(*_map(args, mine, variant), **_map(kwargs, mine, variant))
            except (RuntimeError, IndexError) as error:
                raise UnresolvedOperation(f"{refusal} ({str(error).splitlines()[0]})") from error
            if inplace:
                if not isinstance(at, slice):
                    batched[0][at] = part
                continue
            count = len(variant.examples) if isinstance(repeat, int) else len(at)  # type: ignore[arg-type]
            if not isinstance(part, torch.Tensor) or not part.ndim or part.shape[0] % max(1, count):
                raise UnresolvedOperation(refusal)
            if isinstance(repeat, int):
                each = part.shape[0] // count
            elif part.shape[0] != count:
                raise UnresolvedOperation(refusal)
            if result is None:
                total = each * len(self.plan) if isinstance(each, int) else len(each)
                result = part.new_empty((total, *part.shape[1:]))
            result[self.at(variant, each)] = part
        if inplace:
            return batched[0]
        assert result is not None
        return self.mark(result, each if isinstance(each, torch.Tensor) else None)

    def _splits(self, operation: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether the result of an operation has the rows of the batch in its leading dimension."""
        if operation == "einsum":
            return isinstance(args[0], str) and rows.leads(args[0], [self.batched(t) is not None for t in rows.tensors(args[1:])])
        if operation in ("cat", "concat", "concatenate", "stack"):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return bool(dim % (next(rows.tensors(args, kwargs)).ndim + (operation == "stack")) != 0)
        if operation == "__getitem__":
            return self.batched(args[0]) is not None or isinstance(args[1], torch.Tensor)
        return True


def _in_place(operation: str) -> bool:
    return operation.startswith("__i") or (operation.endswith("_") and not operation.endswith("__"))


def _same(one: int | torch.Tensor, other: int | torch.Tensor) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    return one == other


def _map(value: Any, change: Callable[[Any, Variant], Any], variant: Variant) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value, variant)
    if isinstance(value, dict):
        return {k: _map(v, change, variant) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_map(v, change, variant) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
