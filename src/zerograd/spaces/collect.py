"""The spaces of a model: which tensors are trained, how each is stored, and the numbers that address their noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zerograd.spaces.base import Space
from zerograd.spaces.floats import Float32, Rounded, Split

PRECISIONS: dict[str, type[Space]] = {space.precision: space for space in (Float32, Split, Rounded)}

SAME_PARAMETERS = "build the optimiser from the same module, or from the same parameters, as that run did"


def named_parameters(params: nn.Module | Iterable[Any], first: int = 0) -> Iterator[tuple[str, Any, str]]:
    """(name, parameter, owner's class name) of a module, of (name, parameter) pairs, or of parameters numbered from
    `first`.

    A module with a method `counted` says itself which of its tensors count, a frozen tensor that is no parameter among them.
    """
    if isinstance(params, nn.Module):
        for prefix, module in params.named_modules(remove_duplicate=False):
            counted = getattr(module, "counted", module._parameters.items)
            for own, parameter in counted():
                if parameter is not None:
                    full = f"{prefix}.{own}" if prefix else own
                    name = full.replace("_orig_mod.", "")  # torch.compile's wrapper is no part of a name
                    yield name, parameter, type(module).__name__
        return
    for i, item in enumerate(params, first):
        name, parameter, *owner = item if isinstance(item, tuple) else (f"parameter {i}", item)
        yield name, parameter, owner[0] if owner else ""


def collect(params: nn.Module | Iterable[Any], precision: str | type[Space] | None = None) -> list[Space]:
    """The spaces of all trainable tensors that hold a value, tied ones once.

    A tensor's id counts all tensors, frozen ones too, so freezing some leaves the others' noise as it was. precision:
    one of PRECISIONS, a Space class of the caller's own, or None for float32 of float32 parameters and split of
    bfloat16 ones.
    Raises ValueError when nothing is trainable or a tensor cannot be stored so.
    """
    if isinstance(precision, str) and precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    spaces: dict[int, Space] = {}
    ids: dict[int, int] = {}
    empty = []
    for name, parameter, owner in named_parameters(params):
        identity = ids.setdefault(id(parameter), len(ids))
        if id(parameter) in spaces:
            spaces[id(parameter)].aliases = (*spaces[id(parameter)].aliases, name)
        elif parameter.requires_grad and not parameter.numel():
            empty.append(name)
        elif parameter.requires_grad:
            spaces[id(parameter)] = _space_of(name, parameter, precision)(identity, name, parameter, _view(parameter, owner))
        elif precision in ("split", "bfloat16") and parameter.dtype == torch.float32:
            raise ValueError(
                f"{name} is frozen in float32 while precision {precision!r} makes the others bfloat16; load the model in bfloat16"
            )
    if not spaces and empty:
        raise ValueError(f"{empty[0]} is empty; freeze it")
    if not spaces:
        raise ValueError("nothing is trainable: no parameter has requires_grad=True; unfreeze some before optimising")
    for space in spaces.values():
        space.adopt()
    return list(spaces.values())


def state(spaces: Iterable[Space]) -> dict[str, Any]:
    """What must be saved beside the parameters to go on exactly, by name: scale, tensors, and parts of noise addresses."""
    return {s.name: {"scale": s.scale, "precision": s.precision, "saved": s.saved(), "view": s.view, "id": s.id} for s in spaces}


def require_loadable(spaces: Sequence[Space], saved: Mapping[str, Any]) -> None:
    """Raises KeyError naming a tensor that `saved` lacks, ValueError naming one that was stored otherwise."""
    missing = [space.name for space in spaces if space.name not in saved]
    if missing:
        raise KeyError(f"the saved state has no tensor {missing[0]!r}")
    for space in spaces:
        there = saved[space.name]
        shapes, own = ({name: t.shape for name, t in tensors.items()} for tensors in (there["saved"], space.saved()))
        if (there["precision"], shapes) != (space.precision, own):
            raise ValueError(
                f"{space.name} was saved in precision {there['precision']!r} and is here in {space.precision!r}; "
                "build the optimiser with the precision of that run"
            )
        for field, here in (("view", space.view), ("id", space.id)):
            if there[field] != here:
                raise ValueError(
                    f"{space.name} was saved with {field} {there[field]}, a part of its noise's address, and has {here} here; "
                    f"{SAME_PARAMETERS}"
                )


def load_state(spaces: Iterable[Space], saved: Mapping[str, Any]) -> None:
    """Take back what `state` gave and `require_loadable` has found to fit."""
    for space in spaces:
        space.scale = saved[space.name]["scale"]
        for suffix, tensor in space.saved().items():
            tensor.copy_(saved[space.name]["saved"][suffix])


def _space_of(name: str, parameter: nn.Parameter, precision: str | type[Space] | None) -> type[Space]:
    if not parameter.is_contiguous():
        raise ValueError(f"{name} is not contiguous; replace it by its .contiguous() copy first")
    usual: dict[torch.dtype, type[Space]] = {torch.float32: Float32, torch.bfloat16: Split}
    if precision is None and parameter.dtype not in usual:
        raise ValueError(f"{name} is {parameter.dtype}, which no precision can hold; load the model in float32 or bfloat16")
    if precision is None:
        return usual[parameter.dtype]
    kind = PRECISIONS[precision] if isinstance(precision, str) else precision
    kind.require_storable(name, parameter)
    return kind


def _view(parameter: nn.Parameter, owner: str) -> tuple[int, int, int]:
    shape = parameter.shape
    if parameter.ndim <= 1:
        return 1, 1, parameter.numel()
    if parameter.ndim == 3 and not owner.startswith("Conv"):
        return shape[0], shape[1], shape[2]
    return 1, shape[0], parameter.numel() // max(1, shape[0])
