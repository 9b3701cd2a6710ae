"""Exact derivatives, for the methods that are compared with evaluations: forward mode along a direction, and backward
mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from zerograd.directions import Directions
from zerograd.evaluate import batch as batches
from zerograd.evaluate.evaluator import LocalBatch, Radii
from zerograd.queries import Plan, Scores
from zerograd.spaces import Space


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


class Duals(LocalBatch):
    """Evaluates objective(batch) by one dual forward: its scores are the losses, then the derivatives along direction
    0.

    Sums and weights are brought to their quotient as elsewhere; weights are taken not to depend on what is trained. A
    dual forward counts as three evaluations.
    """

    def scores(self, plan: Plan, directions: Directions, radii: Radii) -> Scores:
        self.count(self.share(3))
        parts = []
        with forward_ad.dual_level(), torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            duals = {}
            for space in self.spaces:
                tangent = directions.z(space, 0).mul_(space.scale).to(space.dtype)
                duals[id(space.parameter)] = forward_ad.make_dual(space.parameter.detach(), tangent)  # type: ignore[no-untyped-call]
            for part in _parts(self):
                with Replaced(duals):
                    losses = self.objective(part)
                given = losses if isinstance(losses, tuple) else (losses,)
                dual = forward_ad.unpack_dual(given[0])  # type: ignore[no-untyped-call]
                tangent = torch.zeros_like(dual.primal) if dual.tangent is None else dual.tangent
                parts.append([t.float().cpu() for t in (dual.primal, tangent, *given[1:])])
        found = [torch.cat(some) for some in zip(*parts, strict=True)]
        weight = found[2].mean() if len(found) == 3 else torch.ones((), dtype=torch.float32)
        return Scores(plan, torch.stack([found[0] / weight, found[1] / weight]))


def backward(evaluator: LocalBatch, spaces: Sequence[Space]) -> tuple[float, list[torch.Tensor | None]]:
    """(the mean loss of an evaluator's examples, its gradient in each of its spaces or None outside `spaces`), by a
    backward pass.

    A backward pass with its forward counts as three evaluations.
    """
    evaluator.count(evaluator.share(3))
    summed = weight = 0.0
    wanted = {id(space.parameter) for space in spaces}
    frozen = [space.parameter for space in evaluator.spaces if id(space.parameter) not in wanted]
    for space in evaluator.spaces:
        space.parameter.grad = None
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            for part in _parts(evaluator):
                losses = evaluator.objective(part)
                sums, weights = losses if isinstance(losses, tuple) else (losses, torch.ones_like(losses))
                whole = sums.sum()
                if whole.requires_grad:
                    whole.backward()
                summed += float(whole.detach())
                weight += float(weights.detach().sum())
        found = [None if space.parameter.grad is None else space.parameter.grad / weight for space in evaluator.spaces]
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for space in evaluator.spaces:
            space.parameter.grad = None
    return summed / weight, found


def _parts(evaluator: LocalBatch) -> Iterator[Any]:
    size = evaluator.micro_batch if isinstance(evaluator.micro_batch, int) else evaluator.examples
    for first in range(evaluator.first, evaluator.stop, size):
        yield batches.part(evaluator.batch, evaluator.total, first, min(first + size, evaluator.stop), 1)[0]
