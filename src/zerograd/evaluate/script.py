"""What a pass did to trained tensors, operation by operation, so that a later pass can be held against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from zerograd.evaluate.operations import Operation
from zerograd.evaluate.tensors import arguments, tensors
from zerograd.evaluate.trace import Trace

OURS = -1
"""In place of a number of rows: this argument is trained, or comes from trained tensors alone."""


class Meeting(NamedTuple):
    """An operation on trained tensors.

    rows: of each tensor among its arguments, how many rows an example has; 0 where it does not depend on the batch, or OURS.
    """

    func: Callable[..., Any]
    rows: tuple[int, ...]


@dataclass
class Script:
    """The operations on trained tensors of one pass, in order.

    is_steady: whether another pass may be held against it: all rows were examples in order, and no operation chose rows by
    values of the batch, as the routing of a mixture does.
    """

    meetings: list[Meeting] = field(default_factory=list)
    is_steady: bool = True

    def write(
        self,
        trace: Trace,
        operation: Operation,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        ours: torch.Tensor | None,
    ) -> None:
        """Write down an operation of the pass. ours: an argument that is trained or comes from trained tensors, or None."""
        if ours is None:
            self.is_steady &= not (operation.chooses and _chooses(trace, operation, args, kwargs))
            return
        self.meetings.append(Meeting(func, tuple(self._rows(trace, value) for value in arguments(args, kwargs))))

    def _rows(self, trace: Trace, value: torch.Tensor) -> int:
        if trace.name(value) is not None:
            return OURS
        mark = trace.batched(value)
        if mark is None:
            return 0
        mark = trace.settled(mark)
        if mark.lost or mark.axis or mark.rows is not None or not value.ndim or value.shape[0] % trace.examples:
            self.is_steady = False
            return 0
        return value.shape[0] // trace.examples


def _chooses(trace: Trace, operation: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether values of the batch say which elements an operation moves, or where it writes."""
    if operation.sorts:
        return True
    places = args[1:]
    if operation.rows in ("write", "copy"):
        places = [value for i, value in enumerate(places) if i != operation.value]
    return any(trace.batched(value) is not None for value in tensors(*places, kwargs.get("index")))
