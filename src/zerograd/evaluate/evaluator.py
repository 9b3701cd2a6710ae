"""Evaluators: how a plan is scored.

LocalBatch   objective(batch) gives one loss an example; the branches of a plan ride the batch in one forward pass
Closure      a function without arguments gives one loss; it is evaluated branch by branch
Duals        objective(batch) in forward-mode differentiation: losses and exact derivatives (`derivative`)

An objective may bring an evaluator of its own: a method `evaluator(spaces, batch, examples=, micro_batch=, fit=, count=)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import nn

from zerograd.directions import Directions
from zerograd.evaluate import batch as batches
from zerograd.evaluate.forward import PerturbedForward
from zerograd.evaluate.micro_batch import MicroBatch, PeakBytes, is_out_of_memory
from zerograd.evaluate.pure import PROTOCOL, unchanged
from zerograd.evaluate.tensors import tensors
from zerograd.queries import Plan, Scores
from zerograd.queries.plan import along, clean, smallest
from zerograd.spaces import Space

WORK = 200_000_000_000
"""Products of a weight with a vector in one pass of a population on the CPU. Larger passes are slower: their
activations leave the caches, and are allocated anew each time.
"""

Objective = Callable[[Any], Any]
Radii = Mapping[int, float]
"""The smoothing radius of each space, by its id."""

Count = Callable[[float], None]


def not_counted(evaluations: float) -> None:
    """Evaluations of checks, which are no part of a step."""


class Evaluator(Protocol):
    """Scores plans on the examples of a step. It is pure: the same plan, directions and radii give the same scores.

    examples: of the step.
    """

    @property
    def examples(self) -> int: ...

    def clean(self, directions: Directions) -> torch.Tensor:
        """The losses of the unperturbed model: float32 (examples,)."""

    def scores(self, plan: Plan, directions: Directions, radii: Radii) -> Scores:
        """The losses of a plan for `examples` examples, with the spaces perturbed in which directions are active."""

    def on(self, spaces: Sequence[Space]) -> Self:
        """An evaluator of the same objective that perturbs these spaces alone. Its evaluations are not counted."""

    def sample(self) -> tuple[Self, Plan]:
        """An evaluator of a few examples and the smallest plan for them, for the self-check. Its evaluations are not
        counted.
        """

    def checked(self) -> Evaluator:
        """What the checks before the first step evaluate in its place: itself, unless it costs more than time, or jumps."""


def begun(evaluator: Evaluator, plan: Plan, directions: Directions, radii: Radii) -> Callable[[], Scores]:
    """How to get a plan's scores, with the part of the work that needs the weights already done.

    An evaluator that scores elsewhere has `begin(plan, directions, radii)`, which gives this; others are done when this returns.
    """
    begin = getattr(evaluator, "begin", None)
    if begin is not None:
        waiting: Callable[[], Scores] = begin(plan, directions, radii)
        return waiting
    scores = evaluator.scores(plan, directions, radii)
    return lambda: scores


def require_counts(batch: Any, examples: int | None, micro_batch: int | str | None) -> None:
    """Raises ValueError for counts that are none, or that a closure has no use for."""
    for name, count in (("micro_batch", micro_batch), ("examples", examples)):
        if isinstance(count, str) and (name, count) != ("micro_batch", "auto"):
            raise ValueError(f"{name} is {count!r}; it must be a number of at least 1" + ", or 'auto'" * (name == "micro_batch"))
        if isinstance(count, int) and count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
        if count is not None and batch is None:
            raise ValueError(f"{name} is {count}, but a closure has no examples; call step(objective, batch)")


@dataclass
class LocalBatch:
    """Evaluates objective(batch) in this process, all branches of a plan in one forward pass where memory allows.

    spaces: all that are trained. objective: returns one loss an example, (examples,), or (sums, weights) of that shape
    whose quotient of totals is the loss; each example's score is then its share, so that their mean is that quotient.
    batch: nested tensors. total: examples in it. first, stop: the ones that are evaluated. micro_batch: examples of a
    pass, at least 1; "auto" for as many as fit in memory; None for all. When memory runs out, half as many are tried,
    down to one. fit: what earlier passes showed of memory. count: is told evaluations of the whole batch.
    """

    spaces: Sequence[Space]
    objective: Objective
    batch: Any
    total: int
    first: int
    stop: int
    micro_batch: int | str | None = None
    fit: MicroBatch = field(default_factory=MicroBatch)
    count: Count = not_counted

    @classmethod
    def of(
        cls, spaces: Sequence[Space], objective: Objective, batch: Any, *, examples: int | None = None, **more: Any
    ) -> LocalBatch:
        """The evaluator of a whole batch. examples: how many it has; counted when None.

        Raises ValueError as `batch.examples`.
        """
        count = examples or batches.examples(batch)
        return cls(spaces, objective, batch, count, 0, count, **more)

    @property
    def examples(self) -> int:
        return self.stop - self.first

    def share(self, evaluations: float) -> float:
        """Evaluations of these examples as evaluations of the whole batch."""
        return evaluations if self.examples == self.total else evaluations * self.examples / self.total

    def part(self, first: int, stop: int) -> LocalBatch:
        """The evaluator of some of the examples."""
        return replace(self, first=self.first + first, stop=self.first + stop)

    def on(self, spaces: Sequence[Space]) -> LocalBatch:
        return replace(self, spaces=spaces, count=not_counted)

    def sample(self) -> tuple[LocalBatch, Plan]:
        few = min(2, self.examples)
        return replace(self.part(0, few), micro_batch=None, count=not_counted), smallest(few)

    def checked(self) -> LocalBatch:
        return self

    def clean(self, directions: Directions) -> torch.Tensor:
        size = self.micro_batch if isinstance(self.micro_batch, int) else None
        radii = {space.id: 0.0 for space in self.spaces}
        return LocalBatch.scores(replace(self, micro_batch=size), clean(self.examples), directions, radii).values[0]

    def scores(self, plan: Plan, directions: Directions, radii: Radii) -> Scores:
        """Raises ValueError when the objective does not return one loss an example, and UnresolvedOperation when the
        model cannot be split by example.
        """
        if not plan.branches:
            return Scores(plan, torch.zeros(0, self.examples, dtype=torch.float32))
        self.count(self.share(plan.branches))
        active = [space for space in self.spaces if directions.is_active(space)]
        passes = [self._pass(one, active, directions, radii) for one in self._passes(plan, active)]
        return Scores(plan, torch.cat(passes))

    def _passes(self, plan: Plan, spaces: Sequence[Space]) -> list[Plan]:
        """The plan, or parts of some branches each, where these are evaluated apart at no cost."""
        if not plan.is_separable or any(space.device.type != "cpu" for space in spaces):
            return [plan]
        work = sum(space.multiplied for space in spaces) * batches.vectors(self.batch, self.total) * self.examples // self.total
        some = max(1, WORK // max(1, work))
        return [plan.only(slice(first, first + some)) for first in range(0, plan.branches, some)]

    def _pass(self, plan: Plan, spaces: Sequence[Space], directions: Directions, radii: Radii) -> torch.Tensor:
        """The losses of a plan, some examples at a time: float32 (branches, examples)."""

        def evaluated(start: int, stop: int) -> list[torch.Tensor]:
            return self._evaluated(plan.part(start, stop), spaces, directions, radii, start, stop)

        def held_by(some: int) -> int:
            with PeakBytes() as live:
                evaluated(0, some)
            return int(live.peak)

        held = sum(t.numel() for t in tensors(self.batch) if t.ndim and len(t) % self.total == 0)
        elements = max(1, held * plan.branches // self.total)  # of an example with its branches
        size = self.examples if self.micro_batch is None or isinstance(self.micro_batch, str) else self.micro_batch
        measured = self.micro_batch == "auto"
        size = self.fit.examples(self.examples, elements, held_by) if measured else self.fit.limit(size, elements)
        parts, start = [], 0
        while start < self.examples:
            stop = min(start + size, self.examples)
            try:
                parts.append(evaluated(start, stop))
            except Exception as error:
                if stop - start == 1 or not is_out_of_memory(error):
                    raise
            else:
                start = stop
                continue
            size = self.fit.halve(stop - start, elements)
        given = [torch.cat(some, 1) for some in zip(*parts, strict=True)]
        return given[0] if len(given) == 1 else given[0] / given[1].mean(1, keepdim=True)

    def _evaluated(
        self, plan: Plan, spaces: Sequence[Space], directions: Directions, radii: Radii, start: int, stop: int
    ) -> list[torch.Tensor]:
        """What the objective returns for the expanded examples: float32 (branches, examples) each."""
        expanded, held = batches.part(self.batch, self.total, self.first + start, self.first + stop, plan.branches)
        forward = PerturbedForward(spaces, directions, plan, radii)
        for tensor in held:
            forward.trace.mark(tensor)
        with forward:
            losses = self.objective(expanded)
        given = [_as_losses(part) for part in (losses if isinstance(losses, tuple) else (losses,))]
        odd = [tuple(part.shape) for part in given if part.shape != (len(plan),)]
        if odd or len(given) > 2:
            shape = odd[0] if odd else f"of {len(given)} tensors"
            raise ValueError(f"objective(batch) returned shape {shape} for {len(plan)} examples; return one loss an example")
        return [forward.trace.resolved(part).float().cpu().view(plan.branches, -1) for part in given]


def _as_losses(part: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(part)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"objective(batch) returned a {type(part).__name__}; return a tensor of one loss an example, or (sums, weights) of its "
            "shape"
        ) from None


@dataclass
class Closure:
    """Evaluates a closure, which takes nothing and returns a scalar loss, once for each branch.

    module: whose buffers are as they were after every branch; None when only its parameters are known.
    """

    spaces: Sequence[Space]
    closure: Callable[[], Any]
    count: Count = not_counted
    module: nn.Module | None = None

    @property
    def examples(self) -> int:
        return 1

    def on(self, spaces: Sequence[Space]) -> Closure:
        return replace(self, spaces=spaces, count=not_counted)

    def sample(self) -> tuple[Closure, Plan]:
        return replace(self, count=not_counted), along(1, [-1.0])

    def checked(self) -> Closure:
        return self

    def clean(self, directions: Directions) -> torch.Tensor:
        return self.scores(clean(1), directions, {space.id: 0.0 for space in self.spaces}).values[0]

    def scores(self, plan: Plan, directions: Directions, radii: Radii) -> Scores:
        """Raises ValueError when the closure does not return a scalar, TypeError when it returns none or calls backward."""
        self.count(plan.branches)
        active = [space for space in self.spaces if directions.is_active(space)]
        losses = []
        for branch in range(plan.branches):
            perturbed = PerturbedForward(active, directions, plan.only(slice(branch, branch + 1)), radii, whole=True)
            with unchanged(self.module), perturbed:
                losses.append(self._loss())
        return Scores(plan, torch.stack(losses))

    def _loss(self) -> torch.Tensor:
        """The closure's loss: float32 (1,)."""
        try:
            given = self.closure()
        except RuntimeError as error:
            if "does not require grad" in str(error):
                raise TypeError(f"the closure calls for gradients; {PROTOCOL}") from error
            raise
        try:
            loss = torch.as_tensor(None if isinstance(given, tuple) else given).detach()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"the closure returned a {type(given).__name__}; {PROTOCOL}") from None
        if loss.numel() != 1:
            raise ValueError(f"the closure returned shape {tuple(loss.shape)}; return one scalar, or call step(objective, batch)")
        return loss.float().cpu().view(1)
