"""The dense parameter space: tensors of a model, how each is stored, and the table that addresses them.

Storage precision is explicit:

    float32   the parameter is float32 and is updated in place
    split     the parameter holds the nearest bfloat16, an int16 remainder beside it makes it float32 exactly;
              the forward pass reads the 16-bit half
    bfloat16  the parameter alone, updated with stochastic rounding: unbiased, but a walk
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zerograd import noise

STORAGES = ("float32", "split", "bfloat16")


@dataclass(eq=False)
class Slot:
    """One optimised tensor.

    id: its number in the table, part of every noise address. view: (stack, rows, columns), the shape that noise and
    low-rank factors see: (1, 1, n) for a vector, (1, m, n) for a matrix, (experts, m, n) for stacked matrices, the output
    channels as rows for a convolution. scale: what one unit of a direction is in this tensor: 1 or the tensor's rms.
    eps: the smoothing radius of its group.
    """

    id: int
    name: str
    aliases: tuple[str, ...]
    parameter: nn.Parameter
    view: tuple[int, int, int]
    remainder: torch.Tensor | None = None
    stochastic: bool = False
    scale: float = 1.0
    eps: float = 1e-3

    @property
    def is_matrix(self) -> bool:
        """Whether a low-rank direction of this tensor has factors; a vector's direction is dense."""
        return self.view[1] > 1

    @property
    def flat(self) -> torch.Tensor:
        """The parameter's storage as (stack * rows, columns), a view."""
        return self.parameter.detach().view(self.view[0] * self.view[1], self.view[2])

    @property
    def flat_remainder(self) -> torch.Tensor | None:
        """The remainder as (stack * rows, columns), a view, where there is one."""
        return None if self.remainder is None else self.remainder.view(self.flat.shape)

    def exact(self) -> torch.Tensor:
        """The float32 value that is being optimised, a copy unless the parameter is float32 itself."""
        return noise.to_float(self.parameter.detach(), self.remainder)


def named_parameters(params: nn.Module | Iterable[Any], first: int = 0) -> Iterator[tuple[str, nn.Parameter, str]]:
    """(name, parameter, owner's class name) of a module, of (name, parameter) pairs, or of parameters numbered from `first`."""
    if isinstance(params, nn.Module):
        owners = {id(p): type(m).__name__ for m in params.modules() for p in m.parameters(recurse=False)}
        for name, parameter in params.named_parameters(remove_duplicate=False):
            yield name.replace("_orig_mod.", ""), parameter, owners[id(parameter)]  # torch.compile's wrapper is no part of a name
        return
    for i, item in enumerate(params, first):
        name, parameter, *owner = item if isinstance(item, tuple) else (f"parameter {i}", item)
        yield name, parameter, owner[0] if owner else ""


def collect(params: nn.Module | Iterable[Any], storage: str | None) -> list[Slot]:
    """Slots of all trainable tensors, tied ones once.

    A tensor's id counts all tensors, frozen ones too, so freezing some leaves the others' noise as it was.
    storage: one of STORAGES, or None to take float32 for float32 parameters and split for bfloat16 ones.
    Raises ValueError when nothing is trainable or a tensor cannot be stored as asked.
    """
    slots: dict[int, Slot] = {}
    ids: dict[int, int] = {}
    for name, parameter, owner in named_parameters(params):
        identity = ids.setdefault(id(parameter), len(ids))
        if id(parameter) in slots:
            slots[id(parameter)].aliases = (*slots[id(parameter)].aliases, name)
        elif parameter.requires_grad:
            slots[id(parameter)] = Slot(identity, name, (), parameter, _view(parameter, owner))
            _require_storable(name, parameter, storage)
        elif storage in ("split", "bfloat16") and parameter.dtype == torch.float32:
            raise ValueError(
                f"{name} is frozen in float32 while storage {storage!r} makes the others bfloat16; load the model in bfloat16"
            )
    if not slots:
        raise ValueError("nothing is trainable: no parameter has requires_grad=True; unfreeze some before optimising")
    for slot in slots.values():
        _store(slot, storage)
    return list(slots.values())


SAME = "build the optimiser from the same module, or from the same parameters, as that run did"
"""What makes the directions of a run those of another."""


def set_scale(slots: Iterable[Slot], relative: bool) -> None:
    """One unit of direction is the tensor's rms when relative, else 1.

    A tensor that is all zero has no rms of its own: it takes 1 / sqrt(columns) as a matrix, 0.02 as a vector
    (the usual initial scales), so that LoRA's B and fresh biases move.
    """
    for slot in slots:
        slot.scale = 1.0
        if relative:
            rms = math.sqrt(float(slot.exact().square().mean(dtype=torch.float64)))
            fallback = 1 / math.sqrt(slot.view[2]) if slot.is_matrix else 0.02
            slot.scale = float(torch.tensor(rms or fallback, dtype=torch.float32))


def state(slots: Iterable[Slot]) -> dict[str, Any]:
    """What must be saved beside the parameters to go on exactly, by name: scales and remainders, and what noise is addressed by."""
    return {s.name: {"scale": s.scale, "remainder": s.remainder, "view": s.view, "id": s.id} for s in slots}


def require_loadable(slots: Sequence[Slot], saved: Mapping[str, Any]) -> None:
    """Raises KeyError naming a tensor that `saved` lacks, ValueError naming one that was stored otherwise."""
    missing = [slot.name for slot in slots if slot.name not in saved]
    if missing:
        raise KeyError(f"the saved state has no tensor {missing[0]!r}")
    for slot in slots:
        theirs = saved[slot.name]["remainder"]
        if (theirs is None) != (slot.remainder is None) or (theirs is not None and theirs.shape != slot.parameter.shape):
            had, has = ("with a remainder" if value is not None else "without one" for value in (theirs, slot.remainder))
            raise ValueError(f"{slot.name} was saved {had} and is here {has}; build the optimiser with the storage of that run")
        for field, here in [("view", slot.view)] * (slot.parameter.ndim > 2) + [("id", slot.id)]:
            there = saved[slot.name].get(field, here)
            if there != here:
                raise ValueError(
                    f"{slot.name} was saved with {field} {there}, from which its noise comes, and has {here} here; {SAME}"
                )


def load_state(slots: Iterable[Slot], saved: Mapping[str, Any]) -> None:
    """Take back what `state` gave and `require_loadable` has found to fit."""
    for slot in slots:
        slot.scale = saved[slot.name]["scale"]
        if slot.remainder is not None:
            slot.remainder.copy_(saved[slot.name]["remainder"])


def _view(parameter: nn.Parameter, owner: str) -> tuple[int, int, int]:
    shape = parameter.shape
    if parameter.ndim <= 1:
        return 1, 1, parameter.numel()
    if parameter.ndim == 3 and not owner.startswith("Conv"):
        return shape[0], shape[1], shape[2]
    return 1, shape[0], parameter.numel() // max(1, shape[0])


def _require_storable(name: str, parameter: nn.Parameter, storage: str | None) -> None:
    if storage not in (None, *STORAGES):
        raise ValueError(f"storage {storage!r} is not one of {', '.join(STORAGES)}")
    if not parameter.is_contiguous():
        raise ValueError(f"{name} is not contiguous; replace it by its .contiguous() copy first")
    if parameter.numel() == 0:
        raise ValueError(f"{name} is empty; freeze it")
    takes = {torch.float32: (None, *STORAGES), torch.bfloat16: (None, "split", "bfloat16")}
    if storage not in takes.get(parameter.dtype, ()):
        asked = f"storage {storage!r}" if storage else "any storage"
        raise ValueError(f"{name} is {parameter.dtype}, which {asked} cannot hold; load the model in float32 or bfloat16")


def _store(slot: Slot, storage: str | None) -> None:
    """Bring a slot whose storage has been found possible into it."""
    parameter = slot.parameter
    if storage == "bfloat16":
        parameter.data = parameter.detach().to(torch.bfloat16)
        slot.stochastic = True
    elif storage == "split" and parameter.dtype == torch.float32:
        parameter.data, slot.remainder = noise.split(parameter.detach())
    elif parameter.dtype == torch.bfloat16:
        slot.remainder = torch.zeros(parameter.shape, dtype=torch.int16, device=parameter.device)
