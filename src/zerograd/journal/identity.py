"""What a run begins from: a hash of the model's weights, and the table of the tensors that it changes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zerograd.machine import workers
from zerograd.machine.tensor_bytes import tensor_bytes
from zerograd.spaces import weights
from zerograd.spaces.weights import Slot

_FIELDS: dict[str, type] = {"id": int, "name": str, "aliases": list, "shape": list, "storage": str, "scale": float, "group": int}


class WrongBase(ValueError):
    """A journal is of another model."""


def identity(model: nn.Module) -> str:
    """A hash of every parameter and every saved buffer of a model, by name, dtype, shape and bits; tied ones once."""
    found = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, torch.Tensor)}
    first: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in sorted(found.items()):
        first.setdefault(id(tensor), (name, tensor))
    hashes: dict[str, str] = {}

    def digest(pair: tuple[str, torch.Tensor]) -> None:
        name, tensor = pair
        hashes[name] = hashlib.blake2b(tensor_bytes(tensor.detach().cpu().contiguous()), digest_size=16).hexdigest()

    workers.each(digest, first.values())
    lines = [f"{name} {str(tensor.dtype)[6:]} {list(tensor.shape)} {hashes[name]}" for name, tensor in first.values()]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def table(slots: Sequence[Slot], groups: Sequence[int]) -> list[dict[str, Any]]:
    """What a header says of the tensors of a run. groups: which group each belongs to."""
    return [
        {
            "id": slot.id,
            "name": slot.name,
            "aliases": list(slot.aliases),
            "shape": list(slot.parameter.shape),
            "storage": storage(slot),
            "scale": slot.scale,
            "group": group,
        }
        | ({"view": list(slot.view)} if slot.parameter.ndim > 2 else {})  # of fewer dimensions it goes by the shape
        for slot, group in zip(slots, groups, strict=True)
    ]


def fit(slots: Iterable[Slot], said: Any, groups: int) -> list[int]:
    """Give slots of a base the ids and scales that a header says, by name, and return the group of each, in order.

    Raises WrongBase naming a tensor that is not there, or is another, and ValueError for a table that is none.
    """
    by_name: dict[str, Mapping[str, Any]] = {}
    for row in said if isinstance(said, list) else [None]:
        if not isinstance(row, dict) or any(not isinstance(row.get(name), kind) for name, kind in _FIELDS.items()):
            raise ValueError(f"the header's table of tensors has a row {row!r}")
        if not (math.isfinite(row["scale"]) and 0 <= row["group"] < groups and 0 <= row["id"] < 1 << 32):
            raise ValueError(f"the header gives {row['name']} scale {row['scale']}, group {row['group']} and number {row['id']}")
        by_name[row["name"]] = row
    found = []
    for slot in slots:
        name = next((name for name in (slot.name, *slot.aliases) if name in by_name), None)
        if name is None:
            raise WrongBase(f"this base trains {slot.name}, which the journal has not")
        row = by_name.pop(name)
        shape, stored = list(slot.parameter.shape), storage(slot)
        if (shape, stored) != (row["shape"], row["storage"]):
            there, here = _said(row["shape"], row["storage"]), _said(shape, stored)
            raise WrongBase(f"{slot.name} is {there} in the journal and {here} in this base")
        if row.get("view", list(slot.view)) != list(slot.view):
            raise WrongBase(f"{slot.name} was seen as {_times(row['view'])} and here as {_times(slot.view)}; {weights.SAME}")
        slot.id, slot.scale = row["id"], row["scale"]
        found.append(row["group"])
    if by_name:
        raise WrongBase(f"the journal trains {next(iter(by_name))}, which this base has not")
    return found


def storage(slot: Slot) -> str:
    """How a slot is stored: one of `spaces.weights.STORAGES`."""
    return "bfloat16" if slot.stochastic else "float32" if slot.remainder is None else "split"


def _said(shape: Sequence[int], stored: str) -> str:
    return f"{_times(shape)} in {stored}"


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"
