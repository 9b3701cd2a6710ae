"""What a closure may do to a model: nothing that stays. Buffers are put back after it, and a backward pass is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from zerograd.evaluate.operations import is_in_place

PROTOCOL = "a closure computes the loss and returns it as one number, without backward, and may be called many times a step"
"""What a closure may do, in one sentence."""


@contextmanager
def unchanged(module: nn.Module | None) -> Iterator[None]:
    """While the block runs, writes into buffers are noted; they are undone after it.

    Buffers are those of the module; and of any module the running statistics of its norms, with their counts of batches.
    Raises TypeError when the block calls backward.
    """
    holders = [m._buffers for m in module.modules() if m._buffers] if module is not None else []
    before = [dict(buffers) for buffers in holders]
    writes = _Writes({id(b) for buffers in before for b in buffers.values() if b is not None})
    try:
        with writes:
            yield
    finally:
        for buffers, old in zip(holders, before, strict=True):
            buffers.update(old)
        with torch.no_grad():
            for tensor, values in writes.old.values():
                tensor.copy_(values)


class _Writes(TorchFunctionMode):
    """Keeps the values that buffers had before the first write into each. old: (buffer, its values), by the buffer's id."""

    def __init__(self, buffers: set[int]) -> None:
        super().__init__()
        self.buffers = buffers
        self.old: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        called = getattr(func, "__name__", "")
        if called == "backward":
            raise TypeError(f"the closure calls backward; {PROTOCOL}")
        if called in ("batch_norm", "instance_norm"):
            for tensor in (*args[1:3], kwargs.get("running_mean"), kwargs.get("running_var")):
                self._keep(tensor)
        elif (is_in_place(called) or called == "__setitem__") and args and isinstance(args[0], torch.Tensor):
            target = args[0]
            counts = target.ndim == 0 and target.dtype == torch.int64
            if id(target) in self.buffers or counts:
                self._keep(target)
        return func(*args, **kwargs)

    def _keep(self, tensor: Any) -> None:
        if isinstance(tensor, torch.Tensor):
            self.old.setdefault(id(tensor), (tensor, tensor.detach().clone()))
