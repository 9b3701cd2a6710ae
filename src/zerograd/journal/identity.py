"""What a run begins from: a hash of the model's weights, and the table of the tensors that it changes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zerograd.errors import WrongBase
from zerograd.machine import workers
from zerograd.machine.tensor_bytes import tensor_bytes
from zerograd.spaces import Space
from zerograd.spaces.collect import SAME_PARAMETERS

_FIELDS: dict[str, type] = {"id": int, "name": str, "aliases": list, "shape": list, "precision": str, "scale": float, "group": int}


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


def table(spaces: Sequence[Space], groups: Sequence[int]) -> list[dict[str, Any]]:
    """What a header says of the tensors of a run. groups: which group each belongs to."""
    return [
        {
            "id": space.id,
            "name": space.name,
            "aliases": list(space.aliases),
            "shape": list(space.shape),
            "precision": space.precision,
            "scale": space.scale,
            "group": group,
        }
        | ({"view": list(space.view)} if space.parameter.ndim > 2 else {})  # of fewer dimensions it goes by the shape
        for space, group in zip(spaces, groups, strict=True)
    ]


def fit(spaces: Iterable[Space], said: Any, groups: int) -> list[int]:
    """Give the spaces of a base the ids and scales that a header says, by name, and return the group of each, in order.

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
    for space in spaces:
        name = next((name for name in (space.name, *space.aliases) if name in by_name), None)
        if name is None:
            raise WrongBase(f"this base trains {space.name}, which the journal has not")
        row = by_name.pop(name)
        shape, stored = list(space.shape), space.precision
        if (shape, stored) != (row["shape"], row["precision"]):
            there, here = _said(row["shape"], row["precision"]), _said(shape, stored)
            raise WrongBase(f"{space.name} is {there} in the journal and {here} in this base")
        if row.get("view", list(space.view)) != list(space.view):
            raise WrongBase(f"{space.name} was seen as {_times(row['view'])} and here as {_times(space.view)}; {SAME_PARAMETERS}")
        space.id, space.scale = row["id"], row["scale"]
        found.append(row["group"])
    if by_name:
        raise WrongBase(f"the journal trains {next(iter(by_name))}, which this base has not")
    return found


def _said(shape: Sequence[int], stored: str) -> str:
    return f"{_times(shape)} in {stored}"


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"
