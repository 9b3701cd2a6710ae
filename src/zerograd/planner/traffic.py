"""Bytes that operations other than matrix products read and write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from zerograd.evaluate.tensors import tensors

PRODUCTS = ("mm", "linear", "conv", "embedding")
"""Parts of names of operations that are not counted: their time is arithmetic, or they read only a part of their
inputs.
"""


class TrafficCounter(TorchDispatchMode):
    """Counts bytes inside the block. bytes: of the inputs and outputs of operations in this thread, without views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read, written = list(tensors(args)), list(tensors(result))
        storages = {tensor.untyped_storage()._cdata for tensor in read}
        is_view = not name.endswith("_") and all(tensor.untyped_storage()._cdata in storages for tensor in written)
        if not is_view and not any(word in name for word in PRODUCTS):
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in [*read, *written])
        return result
