"""The perturbed forward: a TorchFunctionMode that evaluates a plan without writing a weight.

Every torch operation of the model passes through `PerturbedForward.__torch_function__`. An operation that takes an
optimised parameter is computed as if each expanded example saw its own perturbed copy:

    attention.py     multi-head attention, written with smaller operations
    rules.py         fast rules for the operations that models spend their time in
    generic.py       any other operation, variant by variant
    row_tracking.py  operations on the batch alone: which example each row of the result belongs to

`operations.py` says by name what an operation does to rows and which rule computes it. `trace.py` holds the spaces,
directions, plan and marks that all of them read. What cannot be resolved to rows is refused, naming the parameter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from zerograd.directions import Directions
from zerograd.errors import UnresolvedOperation
from zerograd.evaluate import generic, half, row_tracking
from zerograd.evaluate.attention import WRITTEN_OUT
from zerograd.evaluate.operations import METADATA, OPERATIONS, UNKNOWN, Operation
from zerograd.evaluate.rules import RULES
from zerograd.evaluate.script import Script
from zerograd.evaluate.trace import Trace
from zerograd.queries import Plan
from zerograd.spaces import Space

_ASSIGNED = torch.Tensor.data.__set__  # type: ignore[attr-defined]


class PerturbedForward(TorchFunctionMode):
    """Evaluate whatever runs inside the `with` block under a plan. Weights are read, never written.

    spaces: the optimised tensors. directions: where their noise comes from. plan: which example sees which direction.
    radii: the smoothing radius of each space, by its id.
    whole: everything inside sees the plan's only variant; no example needs to be told from another (closures).
    Raises UnresolvedOperation for what it cannot split by example.

    trace: mark the batch with it before the block, and resolve the losses with it after. script: where operations on trained
    tensors are written down, or None.
    """

    def __init__(
        self, spaces: Sequence[Space], directions: Directions, plan: Plan, radii: Mapping[int, float], *, whole: bool = False
    ) -> None:
        super().__init__()
        self.trace = Trace(spaces, directions, plan, radii, whole=whole)
        self.script: Script | None = None

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

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let everything pass for the length of the block."""
        super().__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            super().__enter__()  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        trace = self.trace
        if func is F.linear:
            func = half.linear
        if func in METADATA or not trace.spaces:
            return func(*args, **kwargs)
        ours, batched = trace.meets(args, kwargs)
        if ours is None and not batched:
            return func(*args, **kwargs)
        called = getattr(func, "__name__", str(func))
        if called == "__get__":
            called = getattr(func, "__self__", func).__name__  # a property, such as T
        if called in WRITTEN_OUT and (result := self._written_out(called, args, kwargs)) is not NotImplemented:
            return result
        operation = OPERATIONS.get(called, UNKNOWN)
        if self.script is not None:
            self.script.write(trace, operation, func, args, kwargs, ours)
        if operation.training is not None and batched and not trace.whole and _trains(operation.training, args, kwargs):
            raise UnresolvedOperation(f"{called} in training mode mixes examples; call model.eval()")
        if ours is None:
            if trace.whole:
                return func(*args, **kwargs)
            return row_tracking.follow(trace, operation, func, args, kwargs)
        _refuse(trace, operation, func, called, kwargs, ours)
        if batched and not trace.whole and trace.lies_later(args, kwargs):
            return generic.split_later(trace, operation, func, args, kwargs, called, str(trace.name(ours)))
        rule = RULES.get(called)
        if rule is not None:
            result = rule(trace, func, args, kwargs)
            if result is not NotImplemented:
                return result
        if trace.whole:
            return generic.evaluate(trace, func, args, kwargs, trace.plan.variant(0))
        if not batched:
            return generic.derive(trace, func, args, kwargs, ours)
        if operation.mend:
            raise UnresolvedOperation(f"{trace.name(ours)} is used by {called}, which cannot be split by example; {operation.mend}")
        return generic.split(trace, operation, func, args, kwargs, called, str(trace.name(ours)))

    def _written_out(self, called: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """An operation by smaller ones, which pass through this mode in their turn."""
        super().__enter__()  # type: ignore[no-untyped-call]
        try:
            return WRITTEN_OUT[called](*args, **kwargs)
        finally:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]


def _refuse(
    trace: Trace,
    operation: Operation,
    func: Callable[..., Any],
    called: str,
    kwargs: dict[str, Any],
    ours: torch.Tensor,
) -> None:
    """Raise UnresolvedOperation for a use of a parameter that no evaluation can follow."""
    if torch.is_autocast_enabled(ours.device.type):
        raise UnresolvedOperation(f"{trace.name(ours)} is used under autocast; leave it, and load the model in bfloat16 instead")
    if func == _ASSIGNED:
        raise UnresolvedOperation(f"{trace.name(ours)} is given other data by the model's forward; freeze it")
    if operation.reads:
        raise UnresolvedOperation(
            f"{trace.name(ours)} is read by {called}(), so the model's course would depend on the perturbation; freeze it"
        )
    if trace.whole:
        return
    if "out" in kwargs:
        raise UnresolvedOperation(f"{trace.name(ours)} is used by {called} with out=; use what it returns, or pass a closure")


def _trains(position: int, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the argument `training` is true, by name or by position."""
    return bool(kwargs.get("training")) or True in args[position : position + 1]


def _eager() -> AbstractContextManager[Any]:
    """Compiled modules run as they are written: a graph that was captured without a perturbation knows nothing of one."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import takes a second
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager
