"""The memory of a run's method, and the way on from it: steps are applied here, by a running optimiser and by a replay
alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from zerograd.directions import Draws
from zerograd.queries import Query
from zerograd.spaces import Space
from zerograd.update.rule import Elementwise, Rule, rows_of
from zerograd.update.step import GroupStep, Step
from zerograd.update.target import Chunk, Target

PATH = "path"
"""The tensor of where a run stands: int64 (2,), its updates so far and the number of the last one, or -1."""


class Memory:
    """All that a method keeps from step to step, beside the weights.

    tensors: by name, of the same shapes from the start, changed in place.
    """

    def __init__(
        self, rule: Rule, query: Query, draws: Draws, spaces: Sequence[Space], groups: Sequence[int], group_count: int
    ) -> None:
        """groups: the parameter group of each space, of group_count that the run has."""
        self.rule = rule
        self.query = query
        self.draws = draws
        self.groups = list(groups)
        self._targets = [Target(space, draws) for space in spaces]
        self._kept = [rule.init(space) for space in spaces]
        self._numbers = rule.numbers(group_count)
        self._path = torch.tensor([0, -1], dtype=torch.int64)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        beside = {
            f"{name}.{target.space.name}": tensor
            for target, kept in zip(self._targets, self._kept, strict=True)
            for name, tensor in kept.items()
        }
        return beside | self._numbers | {PATH: self._path}

    @property
    def values(self) -> int:
        """Trained values of all spaces."""
        return sum(target.space.numel for target in self._targets)

    @property
    def nbytes(self) -> int:
        """Bytes that grow with the model or the method: the place on the path is not counted."""
        return sum(tensor.nbytes for name, tensor in self.tensors.items() if name != PATH)

    def follow(self, steps: Sequence[Step], listen: Callable[[int], None] = lambda values: None) -> None:
        """Do to the spaces what steps say, in order. listen: is told the values of each space that is done."""
        by_group = [self._advance(step) for step in steps]
        for target, kept, group in zip(self._targets, self._kept, self.groups, strict=True):
            self.rule.update(target, kept, [one[group] for one in by_group])
            listen(target.space.numel)

    def follow_gradients(self, step: Step, gradients: Sequence[torch.Tensor | None]) -> None:
        """Do to the spaces what one step says: the rule follows the gradients, of the parameters' shapes, where they
        are given, and the step's own estimate is plain SGD.
        """
        by_group = self._advance(step)
        for target, kept, group, gradient in zip(self._targets, self._kept, self.groups, gradients, strict=True):
            if gradient is not None:
                self._follow_gradient(target, kept, by_group[group], gradient)
            elif len(step.coefficients):
                target.subtract_directions([by_group[group]])

    def use(self, draws: Draws) -> None:
        """Draw from another seed from now on."""
        self.draws = draws
        self._targets = [Target(target.space, draws) for target in self._targets]

    def steps_along(self, step: Step) -> list[float]:
        """How far plain SGD steps along direction 0 in each group: lr * c, which a space multiplies by its scale."""
        return [one.lr * one.coefficients[0] for one in self._by_group(step, 1, -1)]

    def rehearse(self, step: Step) -> None:
        """Load every kernel that an update by this step needs; all its coefficients are taken as 0."""
        for target, group in zip(self._targets, self.groups, strict=True):
            rate, coefficients = float(step.lrs[group]), [0.0] * len(step.coefficients)
            target.subtract_directions([GroupStep(step.number, 1, -1, rate, 1.0, coefficients)])

    def require_loadable(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError for the memory of another method."""
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in self.tensors.items()}:
            raise ValueError("the saved memory is another method's, or of other tensors; build the optimiser as it was")

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what was kept and `require_loadable` has found to fit."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    def _advance(self, step: Step) -> Sequence[GroupStep]:
        """A step in each group, with the run's numbers moved on by it."""
        count, previous = self._path.tolist()
        self._path.copy_(torch.tensor([count + 1, step.number]))
        return self.rule.advance(self._numbers, self._by_group(step, count + 1, previous))

    def _by_group(self, step: Step, count: int, previous: int) -> list[GroupStep]:
        recorded, found = torch.tensor(step.coefficients), []
        for group, (lr, radius) in enumerate(zip(step.lrs.tolist(), step.radii.tolist(), strict=True)):
            own = self.query.at_radius(recorded, step.radii[0].item() / radius)
            decay = 1.0 if step.decays is None else float(step.decays[group])
            found.append(GroupStep(step.number, count, previous, lr, decay, own.tolist()))
        return found

    def _follow_gradient(self, target: Target, kept: Mapping[str, torch.Tensor], step: GroupStep, gradient: torch.Tensor) -> None:
        flat, scale, rule = gradient.reshape(target.space.flat_rows, -1), target.space.scale, self.rule
        adds = len(step.coefficients) > 0 and target.is_active(step)

        def changed(chunk: Chunk) -> torch.Tensor:
            made = rule.change(chunk, rows_of(kept, chunk), step) if isinstance(rule, Elementwise) else chunk.estimate()
            return made + chunk.estimate_of(step.number, step.coefficients) if adds else made  # a value is stored once

        target.change(step, changed, lambda rows: flat[rows].float() * scale)
