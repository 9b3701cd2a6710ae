"""Batches of any structure: taking examples out of one, and repeating them for the branches of a plan."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch

from zerograd.evaluate.tensors import tensors


def examples(batch: Any) -> int:
    """How many examples a batch has: the smallest leading dimension of its tensors.

    Raises ValueError when it has none or is empty, or when a tensor's leading dimension is no multiple of it.
    """
    leading = [t.shape[0] for t in tensors(batch) if t.ndim]
    if not leading:
        raise ValueError("the batch holds no tensor with a leading dimension; give objective(batch) its examples as tensors")
    count = min(leading)
    if count == 0:
        raise ValueError("the batch has 0 examples; give it at least one")
    odd = [n for n in leading if n % count]
    if odd:
        raise ValueError(f"the batch holds tensors of leading dimension {count} and {odd[0]}; make one a multiple of the other")
    return count


def vectors(batch: Any, total: int) -> int:
    """How many vectors a model makes of its largest tensor of `total` examples: one of each integer, or of each last
    dimension.
    """
    held = [t for t in tensors(batch) if t.ndim and len(t) % total == 0]
    return max((t.numel() // (t.shape[-1] if t.is_floating_point() and t.ndim > 1 else 1) for t in held), default=0)


def part(batch: Any, total: int, first: int, stop: int, copies: int = 1) -> tuple[Any, list[torch.Tensor]]:
    """The examples from `first` to before `stop`, of `total`, repeated `copies` times, block after block.

    Tensors, lists and tuples are cut and repeated along their leading dimension when it is `total` or a multiple of it.
    Others are settings, the same for all examples. Returns the batch, and the tensors in it that hold examples.
    """
    held: list[torch.Tensor] = []

    def of(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and (not value.ndim or len(value) % total):
            return value.clone()
        each, odd = divmod(len(value), total)
        if odd:
            return value
        some = value[first * each : stop * each]
        if not isinstance(value, torch.Tensor):
            return some * copies
        held.append(torch.cat([some] * copies))
        return held[-1]

    return _rebuild(batch, of), held


def _rebuild(batch: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        changed = {key: _rebuild(value, change) for key, value in batch.items()}
        if not isinstance(batch, MutableMapping):
            return changed
        same = copy.copy(batch)
        same.update(changed)
        return same
    if isinstance(batch, (list, tuple)):
        if any(True for _ in tensors(batch)):
            parts = [_rebuild(value, change) for value in batch]
            return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
        return change(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {f.name: _rebuild(getattr(batch, f.name), change) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **fields)
    return batch
