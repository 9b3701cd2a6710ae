"""Batches of any structure: repeating one for the branches of a plan, and taking examples out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def tensors(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors of nested mappings, sequences and dataclasses, in order."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from tensors(value)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from tensors(getattr(batch, field.name))


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


def expand(batch: Any, total: int, copies: int) -> Any:
    """The batch of `total` examples repeated `copies` times, block after block.

    Tensors are repeated along their leading dimension; so are lists and tuples that hold as many values as there are examples,
    or a multiple. Scalars, and sequences of another length, are settings: shared.
    """

    def repeat(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.cat([value] * copies) if value.ndim else value.clone()
        return value if len(value) % total else value * copies

    return _rebuild(batch, repeat)


def take(batch: Any, total: int, first: int, stop: int) -> Any:
    """The examples from `first` to before `stop`, of `total`."""

    def some(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not value.ndim:
            return value
        each, odd = divmod(len(value), total)
        return value if odd else value[first * each : stop * each]

    return _rebuild(batch, some)


def _rebuild(batch: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _rebuild(value, change) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        if any(True for _ in tensors(batch)):
            parts = [_rebuild(value, change) for value in batch]
            return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
        return change(batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changed = {f.name: _rebuild(getattr(batch, f.name), change) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **changed)
    return batch
