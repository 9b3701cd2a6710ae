"""Exact derivatives, for the methods that are compared with evaluations: forward mode along a direction, and backward mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from zerograd.directions.family import Directions
from zerograd.evaluate import batch as batches
from zerograd.evaluate.score import Objective
from zerograd.spaces.weights import Slot


class Replaced(TorchFunctionMode):
    """Operations see other tensors in place of parameters. others: by the parameter's id."""

    def __init__(self, others: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        self.others = others

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map_only(torch.nn.Parameter, lambda p: self.others.get(id(p), p), (tuple(args), dict(kwargs or {})))
        return func(*args, **kwargs)


def along(
    slots: Sequence[Slot], directions: Directions, objective: Objective, batch: Any, count: int, micro_batch: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses, derivatives along direction 0) of each of `count` examples: float32 (count,), by one dual forward.

    Sums and weights are brought to their quotient as elsewhere; weights are taken not to depend on what is optimised.
    """
    parts = []
    with forward_ad.dual_level(), torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        duals = {}
        for slot in slots:
            tangent = directions.z(slot, 0).mul_(slot.scale).to(slot.parameter.dtype)
            duals[id(slot.parameter)] = forward_ad.make_dual(slot.parameter.detach(), tangent)  # type: ignore[no-untyped-call]
        for part in _parts(batch, count, micro_batch, count):
            with Replaced(duals):
                losses = objective(part)
            given = losses if isinstance(losses, tuple) else (losses,)
            dual = forward_ad.unpack_dual(given[0])  # type: ignore[no-untyped-call]
            tangent = torch.zeros_like(dual.primal) if dual.tangent is None else dual.tangent
            parts.append([t.float().cpu() for t in (dual.primal, tangent, *given[1:])])
    found = [torch.cat(some) for some in zip(*parts, strict=True)]
    weight = found[2].mean() if len(found) == 3 else torch.ones((), dtype=torch.float32)
    return found[0] / weight, found[1] / weight


def backward(
    slots: Sequence[Slot], objective: Objective, batch: Any, count: int, micro_batch: int | None, total: int | None = None
) -> float:
    """The mean loss of the first `count` examples of a batch, its gradient in each parameter's `grad`. total: how many it has, when
    there are more.
    """
    summed = weight = 0.0
    for slot in slots:
        slot.parameter.grad = None
    with torch.enable_grad():
        for part in _parts(batch, count, micro_batch, total or count):
            losses = objective(part)
            sums, weights = losses if isinstance(losses, tuple) else (losses, torch.ones_like(losses))
            whole = sums.sum()
            if whole.requires_grad:
                whole.backward()
            summed += float(whole.detach())
            weight += float(weights.detach().sum())
    for slot in slots:
        if slot.parameter.grad is not None:
            slot.parameter.grad /= weight
    return summed / weight


def _parts(batch: Any, count: int, micro_batch: int | None, total: int) -> Iterator[Any]:
    size = micro_batch or count
    for first in range(0, count, size):
        yield batches.part(batch, total, first, min(first + size, count), 1)[0]
