"""How many examples one forward pass takes: what fits in memory by measurement, or half of what did not."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zerograd.evaluate.tensors import tensors
from zerograd.machine.memory import free_bytes

SHARE = 0.8
"""Of the memory that is free, what a pass may take when nothing else was said."""

GROWTH = 1.25
"""How much larger an example may be than the one that was measured before another one is measured."""


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations inside the block make, until they are freed: the same on every
    run.

    peak: the most at one time since the block was entered; what there was before is not counted, nor other threads'
    tensors.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._now = 0
        self._bytes: dict[int, int] = {}

    @property
    def now(self) -> int:
        """The bytes that there are now."""
        return self._now

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in tensors(args)}
        for tensor in tensors(made):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._bytes and key not in before:
                self._bytes[key] = storage.nbytes()
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._free, key)
        return made

    def _free(self, key: int) -> None:
        self._now -= self._bytes.pop(key, 0)


class MicroBatch:
    """Remembers what a pass of some examples holds, and what was too much.

    memory: bytes that a pass may hold beside weights and batch; None for a share of what is free when it is first
    asked.
    """

    def __init__(self, memory: int | None = None) -> None:
        self.memory = memory
        self._measured = 0  # elements of an example when it was measured
        self._fixed = 0.0  # bytes of a pass
        self._each = 0.0  # bytes of an element more
        self._most: int | None = None  # elements of a pass since one did not fit

    def examples(self, count: int, elements: int, measure: Callable[[int], int]) -> int:
        """How many of `count` examples to evaluate at a time, at least 1.

        elements: of one example with its branches. measure(n): the bytes that a pass of n examples holds.
        """
        if self.memory is None:
            self.memory = int(SHARE * free_bytes())
        if count > 1 and elements > GROWTH * self._measured:
            one, two = measure(1), measure(2)
            self._measured, self._each = elements, max(two - one, 1) / elements
            self._fixed = max(0.0, one - self._each * elements)
        fits = int((self.memory - self._fixed) / max(1e-9, self._each * elements))
        return max(1, min(count, fits, self.limit(count, elements)))

    def limit(self, count: int, elements: int) -> int:
        """How many examples have fitted since a pass did not, `count` where all have."""
        return count if self._most is None else max(1, min(count, self._most // elements))

    def halve(self, examples: int, elements: int) -> int:
        """A pass of so many examples ran out of memory. Returns how many to try next; later passes keep to it."""
        fewer = max(1, examples // 2)
        self._most = fewer * elements
        warnings.warn(f"out of memory with {examples} examples at a time; going on with {fewer}", stacklevel=2)
        return fewer


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("can't allocate memory", "out of memory"))
