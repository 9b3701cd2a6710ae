"""The tensors within nested values: a batch, or the arguments of a torch operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

LEAVES = frozenset({type(None), bool, int, float, str, slice, type(Ellipsis), torch.dtype, torch.device})
"""Types of arguments that hold no tensor. They are passed over before the slower questions are asked."""


def tensors(*values: Any) -> Iterator[torch.Tensor]:
    """The tensors among values and in their mappings, lists, tuples and dataclasses, in order."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors(*value)
        elif isinstance(value, dict):
            yield from tensors(*value.values())
        elif type(value) in LEAVES:
            continue
        elif isinstance(value, Mapping):
            yield from tensors(*value.values())
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from tensors(*(getattr(value, field.name) for field in dataclasses.fields(value)))


def arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """`tensors` of a call's arguments, most of which are tensors or hold none: asked at every operation of a model."""
    found: list[torch.Tensor] = []
    for values in (args, kwargs.values()) if kwargs else (args,):
        for value in values:
            if isinstance(value, torch.Tensor):
                found.append(value)
            elif type(value) not in LEAVES:
                found.extend(tensors(value))
    return found
