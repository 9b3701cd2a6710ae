"""Passes that repeat, as those that make an answer token by token: the same operations, over and over, on as many rows.

The first passes are followed row by row (`forward`), and a script of them says which operations met trained tensors, and that
their rows were examples in order. In later passes tensors stand in the places of the trained ones and meet these operations alone:
all else runs as if nothing were perturbed, and the factors of directions are drawn once. A pass that leaves the script ends in
`Changed`; nothing is guessed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zerograd import noise
from zerograd.directions import Directions
from zerograd.evaluate import half, products
from zerograd.evaluate.attention import WRITTEN_OUT
from zerograd.evaluate.forward import PerturbedForward
from zerograd.evaluate.operations import METADATA, OPERATIONS
from zerograd.evaluate.rules import scale_and_shift_groups, vectors_of_groups
from zerograd.evaluate.script import OURS, Meeting, Script
from zerograd.evaluate.tensors import arguments
from zerograd.evaluate.trace import Derived
from zerograd.queries import Plan
from zerograd.spaces import Space

Given = Callable[[Sequence[Any], Mapping[str, Any]], torch.Tensor]
"""What a pass of a module goes through, among its arguments: (rows, tokens, ...)."""

Pass = Callable[..., Any]
"""A module's own `forward`."""

Lane = Callable[[Sequence[Any], dict[str, Any]], Any]
"""An operation on trained tensors, made ready for one plan."""


class Changed(Exception):
    """A pass did something else than the one before; follow the rows of every pass instead."""


class Stand(torch.Tensor):
    """A tensor in the place of a trained one, or of what comes from trained ones alone: operations on it go to `Passes.meet`.

    trained: the tensor that it stands for.
    """

    trained: torch.Tensor
    passes: Passes

    @staticmethod
    def of(trained: torch.Tensor, passes: Passes) -> Stand:
        stand: Stand = trained.detach().as_subclass(Stand)
        stand.trained, stand.passes = trained, passes
        return stand

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        stand = next(value for value in arguments(args, kwargs) if type(value) is Stand)
        return stand.passes.meet(func, args, kwargs)


@dataclass(frozen=True)
class Held(Directions):
    """The directions of a step, whose factors are drawn once and kept."""

    kept: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def factors(self, space: Space, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        key = space.id, tuple(ids)
        if key not in self.kept:
            self.kept[key] = super().factors(space, ids)
        return self.kept[key]


class Passes:
    """Repeated forward passes of a module under a plan.

    module: whose `forward` is called again and again. given: its argument that has the tokens. steady: whether passes may run by
    the script; otherwise every one is followed. first: how the first pass under a plan is made, given the pass, its arguments and
    these passes; None to run it as it is.
    """

    def __init__(
        self, module: nn.Module, spaces: Sequence[Space], directions: Directions, radii: Mapping[int, float], given: Given, *,
        steady: bool = True, first: Callable[[Pass, Sequence[Any], dict[str, Any], Passes], Any] | None = None,
    ) -> None:  # fmt: skip
        self.module, self.spaces, self.directions, self.radii, self.given = module, spaces, directions, radii, given
        self.steady, self.first = steady, first
        self.held_bytes = 0
        self._count = 0
        self._script: Script | None = None
        self._tokens = -1
        self._at = 0
        self._lanes: list[Lane | None] = []

    @contextmanager
    def under(self, plan: Plan) -> Iterator[PerturbedForward]:
        """Evaluate whatever runs inside the block under a plan; mark the batch with the trace of what is given.

        A script that was written under another plan of this object is kept: it does not depend on the number of rows.
        """
        held = Held(self.directions.seed, self.directions.step, self.directions.family)
        self._forward = PerturbedForward(self.spaces, held, plan, self.radii)
        self._lanes = []
        own, original = vars(self.module).get("forward"), self.module.forward

        @functools.wraps(original)  # `generate` reads its signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._pass(original, args, kwargs)

        with half.FastLayers(self.module) as self._fast:
            self._fast.on = False
            self.module.forward = forward
            try:
                with self._forward:
                    yield self._forward
            finally:
                if own is None:
                    del self.module.forward
                else:
                    self.module.forward = own
                self.held_bytes = sum(factor.nbytes for pair in held.kept.values() for factor in pair)

    def meet(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """An operation on tensors that stand for trained ones. Raises Changed where the script has another."""
        called = getattr(func, "__name__", "")
        if called in WRITTEN_OUT and (result := WRITTEN_OUT[called](*args, **kwargs)) is not NotImplemented:
            return result
        func = half.linear if func is F.linear else func  # as the perturbed forward has it
        assert self._script is not None
        at = self._at
        if at >= len(self._script.meetings) or self._script.meetings[at].func != func:
            raise Changed(called)
        self._at += 1
        meeting = self._script.meetings[at]
        given = arguments(args, kwargs)
        if len(given) != len(meeting.rows) or not all(map(self._fits, given, meeting.rows)):
            raise Changed(called)
        while at >= len(self._lanes):
            self._lanes.append(None)
        lane = self._lanes[at]
        if lane is None:
            lane = self._lanes[at] = self._lane(meeting, called, args, kwargs)
        return lane(args, kwargs)

    @contextmanager
    def unperturbed(self) -> Iterator[None]:
        """Run the model as it is for the length of the block."""
        with self._forward.suspended():
            self._fast.on = True
            try:
                yield
            finally:
                self._fast.on = False

    def mark(self, value: torch.Tensor) -> None:
        """Say that a tensor has the rows of the plan's examples."""
        self._forward.trace.mark(value)

    def _pass(self, original: Pass, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """A forward pass of the module: followed, followed and written down, or by the script."""
        self._count += 1
        given, trace = self.given(args, kwargs), self._forward.trace
        if given.shape[0] % trace.examples == 0 and trace.batched(given) is None:
            trace.mark(given)  # a decoder's first token is the same in all rows, and its next one is not
        tokens, script = given.shape[1], self._script
        if script is not None and script.is_steady and tokens == self._tokens:
            return self._by_script(script, original, args, kwargs)
        if self._count == 1 and self.first is not None:
            return self.first(original, args, kwargs, self)
        if not self.steady or self._count == 1 or script is not None:
            return original(*args, **kwargs)
        self._forward.script = script = Script()
        try:
            result = original(*args, **kwargs)
        finally:
            self._forward.script = None
        self._script, self._tokens = script, tokens
        return result

    def _by_script(self, script: Script, original: Pass, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        stands = {id(space.parameter): Stand.of(space.parameter, self) for space in self.spaces}
        places = [
            (module._parameters, name, value)
            for module in self.module.modules()
            for name, value in module._parameters.items()
            if value is not None and id(value) in stands
        ]
        self._at = 0
        with self.unperturbed():
            for parameters, name, value in places:
                parameters[name] = stands[id(value)]  # type: ignore[assignment]
            try:
                result = original(*args, **kwargs)
            finally:
                for parameters, name, value in places:
                    parameters[name] = value
        if self._at != len(script.meetings):
            raise Changed("fewer operations")
        return result

    def _fits(self, value: torch.Tensor, rows: int) -> bool:
        """Whether an argument is of the kind that the script has."""
        if rows == OURS:
            return type(value) is Stand
        return type(value) is not Stand and (not rows or (value.ndim > 0 and value.shape[0] == rows * self._forward.trace.examples))

    def _lane(self, meeting: Meeting, called: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Lane:
        """The quickest way for an operation: what depends on the plan alone is computed now."""
        made: Lane | None = None
        if meeting.func is half.linear:
            made = self._linear(args, kwargs)
        elif called in OPERATIONS and OPERATIONS[called].affine:
            made = self._affine(called, meeting, args, kwargs)
        elif called in ("layer_norm", "rms_norm"):
            made = self._norm(meeting, args, kwargs)
        return made or (lambda args, kwargs: self._followed(meeting, args, kwargs))

    def _followed(self, meeting: Meeting, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The operation as the perturbed forward has it, on tensors marked as the script says."""
        trace = self._forward.trace
        for value, rows in zip(arguments(args, kwargs), meeting.rows, strict=True):
            if rows > 0:
                trace.mark(value)
        result = self._forward.__torch_function__(meeting.func, (), _trained(args), _trained(kwargs))
        return self._standing(result)

    def _standing(self, result: Any) -> Any:
        if isinstance(result, torch.Tensor):
            trace = self._forward.trace
            ours = trace.space(result) is not None or isinstance(trace.derived(result), Derived)
            return Stand.of(result, self) if ours else result
        return type(result)(map(self._standing, result)) if type(result) in (tuple, list) else result

    def _linear(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Lane | None:
        """x W^T + bias, W with factored directions."""
        trace = self._forward.trace
        x, weight, bias = (*args, *(kwargs[name] for name in ("input", "weight", "bias")[len(args) :] if name in kwargs), None)[:3]
        space = trace.space(getattr(weight, "trained", None))
        if space is None or space.view[0] != 1 or kwargs or x.ndim < 2 or not noise.is_fast(x):
            return None
        family = trace.directions.family
        if not family.rank_in(space) or family.is_modulated(space) or (bias is not None and bias.shape != (space.view[1],)):
            return None
        from zerograd.evaluate import kernels

        a, b = trace.directions.factors(space, trace.plan.directions)
        scales, places = trace.plan.example_coefficients * trace.amplitude(space), trace.plan.example_places
        shifts = None if bias is None else vectors_of_groups(trace, getattr(bias, "trained", bias), len(x) // trace.examples)
        matrix = products.of_space(space).weight()

        def lane(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
            x = args[0]
            y = products.plain(x, matrix, False)
            flat = x.reshape(-1, x.shape[-1]).contiguous()
            kernels.add_held_products(y.view(-1, y.shape[-1]), flat, places, scales, b, a, shifts)
            return y

        return lane

    def _affine(self, called: str, meeting: Meeting, args: Sequence[Any], kwargs: dict[str, Any]) -> Lane | None:
        """A vector that multiplies the batch, or is added to it."""
        if kwargs or len(args) != 2 or sorted(map(bool, (rows == OURS for rows in meeting.rows))) != [False, True]:
            return None
        ours = meeting.rows.index(OURS)
        small, other = args[ours].trained, args[1 - ours]
        if not meeting.rows[1 - ours] or small.ndim != 1 or len(small) != other.shape[-1] or not other.is_floating_point():
            return None
        values = vectors_of_groups(self._forward.trace, small, meeting.rows[1 - ours])
        factors, shifts = (values, None) if OPERATIONS[called].affine == "scale" else (None, values)
        dtype = torch.result_type(small, other)

        def lane(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
            other = args[1 - ours]
            return scale_and_shift_groups(other, factors, shifts, torch.empty(other.shape, dtype=dtype, device=other.device))

        return lane

    def _norm(self, meeting: Meeting, args: Sequence[Any], kwargs: dict[str, Any]) -> Lane | None:
        """A norm with trained factors and shifts."""
        is_layer = meeting.func is F.layer_norm
        names = ("input", "normalized_shape", "weight", *(("bias",) if is_layer else ()), "eps")
        given = dict(zip(names, args, strict=False)) | kwargs
        vectors = [given.get("weight"), given.get("bias")]
        if not meeting.rows[0] or any(v is not None and v.ndim != 1 for v in vectors):
            return None
        trace, rows = self._forward.trace, meeting.rows[0]
        held = [None if v is None else vectors_of_groups(trace, v.trained if type(v) is Stand else v, rows) for v in vectors]
        shape, eps = given["normalized_shape"], given.get("eps")

        def lane(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.Tensor:
            x = args[0] if args else kwargs["input"]
            if is_layer:
                y = F.layer_norm(x.float(), shape, eps=1e-5 if eps is None else eps)
            else:
                y = F.rms_norm(x.float(), shape, eps=torch.finfo(torch.float32).eps if eps is None else eps)
            return scale_and_shift_groups(y, held[0], held[1], torch.empty(y.shape, dtype=x.dtype, device=x.device))

        return lane


def _trained(value: Any) -> Any:
    """Arguments with the tensors that stand for others in place of them taken out."""
    if type(value) is Stand:
        return value.trained
    if isinstance(value, dict):
        return {name: _trained(one) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_trained(one) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
