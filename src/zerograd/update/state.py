"""State: what a method keeps from step to step, and how it changes a tensor by an estimate.

State is a function of the base and of the steps before, so that a replay makes it again; a snapshot holds it beside the weights.
Most methods keep nothing: what their steps say is subtracted. The others record the coefficients of the estimate, and their State
makes of them what is subtracted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zerograd.directions.family import Directions, Family
from zerograd.spaces.weights import Slot
from zerograd.update import apply
from zerograd.update.apply import Step


@dataclass(frozen=True, eq=False)
class Resolved(Step):
    """A step, with what a State that goes on from step to step was when it was taken."""

    kept: Any = None

    @classmethod
    def of(cls, step: Step, kept: Any) -> Resolved:
        return cls(step.number, step.loss, step.lrs, step.decays, step.multipliers, kept)


class State:
    """Keeps nothing. A method that does keep something extends it.

    tensors: what is kept, by name; made by `begin`, of the same shapes from then on, changed in place.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def begin(self, slots: Sequence[Slot], groups: int) -> None:
        """Make what is kept, as it is before the first step. groups: of parameters."""

    def resolved(self, steps: Sequence[Step], seed: int) -> list[Step]:
        """Steps as `update` takes them, one after the other; what is kept of no tensor in particular goes on."""
        return list(steps)

    def update(self, slot: Slot, family: Family, seed: int, steps: Sequence[Step], group: int) -> None:
        """Do to one slot what resolved steps say. group: of the slot."""
        apply.update_by(slot, family, seed, steps, group)

    def require_loadable(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError for what another method kept."""
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in self.tensors.items()}:
            raise ValueError("the saved State is another method's, or of other tensors; build the optimiser as it was")

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what was kept and `require_loadable` has found to fit."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


class Beside(State):
    """Keeps tensors of the weights' shape. kept: their names."""

    kept: tuple[str, ...] = ()

    def begin(self, slots: Sequence[Slot], groups: int) -> None:
        for slot in slots:
            for name in self.kept:
                self.tensors[f"{name}.{slot.name}"] = torch.zeros(slot.flat.shape, dtype=torch.float32, device=slot.flat.device)


class Dense(Beside, ABC):
    """Sees the whole estimate, a chunk of a tensor at a time, in units of the slot's scale, as the change is too."""

    @abstractmethod
    def change(self, estimate: torch.Tensor, held: Mapping[str, torch.Tensor], step: Step, group: int) -> torch.Tensor:
        """What is subtracted where the estimate is this one; `held` goes on in place. By operations that round alike everywhere:
        one IEEE operation an element each, no fused multiply-add, no sums.

        estimate, held: float32 (rows, columns) of the same part of a tensor. The estimate may be overwritten.
        """

    def follow(self, slot: Slot, family: Family, seed: int, step: Step, group: int, gradient: torch.Tensor) -> None:
        """Do to one slot what a resolved step says of a gradient, of the parameter's shape, in place of an estimate."""
        own = {name: self.tensors[f"{name}.{slot.name}"] for name in self.kept}
        flat, decay = gradient.reshape(slot.flat.shape), step.decay(group)

        def change(estimate: torch.Tensor, rows: slice) -> torch.Tensor:
            return self.change(estimate, {name: tensor[rows] for name, tensor in own.items()}, step, group)

        apply.change(slot, lambda rows: flat[rows].float() * slot.scale, decay, Directions(family, seed, step.number), change)

    def update(self, slot: Slot, family: Family, seed: int, steps: Sequence[Step], group: int) -> None:
        own = {name: self.tensors[f"{name}.{slot.name}"] for name in self.kept}

        def change(estimate: torch.Tensor, rows: slice, step: Step) -> torch.Tensor:
            return self.change(estimate, {name: tensor[rows] for name, tensor in own.items()}, step, group)

        apply.change_by(slot, family, seed, steps, group, change)
