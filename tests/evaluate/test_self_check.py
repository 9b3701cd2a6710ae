"""The self-check finds a model that the perturbed forward evaluates wrongly."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zerograd as zg
from tests.evaluate.small import WIDTH, check
from zerograd.directions import Dense, Draws
from zerograd.evaluate.self_check import NotPure, SelfCheckFailed, self_check
from zerograd.evaluate.trace import UnresolvedOperation
from zerograd.queries import Plan, Scores
from zerograd.queries import plan as plans
from zerograd.spaces import collect


class Behind(nn.Module):
    """A model that reads its weight where no torch operation sees it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.randn(WIDTH, 5))
        self.bias = nn.Parameter(torch.randn(5))
        self.view = self.weight.detach().numpy()

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "numpy view":
            weight = torch.from_numpy(self.view)
        else:
            memory = (ctypes.c_float * self.weight.numel()).from_address(self.weight.data_ptr())
            weight = torch.frombuffer(memory, dtype=torch.float32).view(WIDTH, 5)
        return x @ weight + self.bias


@pytest.mark.parametrize("how", ["address", "numpy view"])
@pytest.mark.parametrize("each", [False, True])
def test_self_check_finds_reads_behind_torch(how: str, each: bool) -> None:
    torch.manual_seed(0)
    batch = {"x": torch.randn(2, 3, WIDTH)}
    with pytest.raises(SelfCheckFailed, match="weight"):
        check(Behind(how), lambda m, b: m.logits(b["x"]).logsumexp((1, 2)), batch, 2, each)


def test_self_check_finds_a_use_that_is_partly_missed() -> None:
    """A tenth of the weight's effect goes past torch."""
    torch.manual_seed(0)
    model, batch = Behind("address"), {"x": torch.randn(2, 3, WIDTH)}

    def partly(model: Any, batch: Any) -> torch.Tensor:
        seen = batch["x"] @ model.weight + model.bias
        return (0.9 * seen + 0.1 * model.logits(batch["x"])).logsumexp((1, 2))

    with pytest.raises(SelfCheckFailed, match="weight"):
        check(model, partly, batch, 2)


@pytest.mark.parametrize("missed", [False, True])
def test_self_check_tells_a_deep_16_bit_models_rounding_from_a_fault(missed: bool) -> None:
    """Losses that jump by more than the floor where the true effect is small, and are right where it is large."""
    parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    space = collect([("weight", parameter)], "bfloat16")[0]
    directions = Draws(Dense(), 5).at(3)
    plan = plans.shared_pairs(2)
    z = directions.z(space, 0)

    @dataclasses.dataclass
    class Jumps:
        """An evaluator that is 0.15 off at small radii."""

        examples = 2

        def on(self, spaces: Any) -> Jumps:
            return self

        def sample(self) -> tuple[Jumps, Plan]:
            return self, plan

        def clean(self, directions: Any) -> torch.Tensor:
            moved = parameter.detach().float().sub(1).flatten() @ z.flatten() / z.numel()  # coefficient * eps, rounded
            return torch.tensor([1.0, 2.0]) + moved

        def scores(self, plan: Plan, directions: Any, radii: Any) -> Scores:
            radius = radii[space.id] * space.scale
            jump = 0.15 if radius < 0.2 else 0.0
            moved = 0.0 if missed else radius
            return Scores(plan, torch.tensor([1.0, 2.0]) + plan.coefficient[:, None] * (moved + jump))

    def run() -> int:
        return self_check(Jumps(), directions, [space], every=True)

    if missed:
        with pytest.raises(SelfCheckFailed, match="by 0,"):
            run()
    else:
        assert run() == 1


@pytest.mark.parametrize("method", [zg.optim.MeZO, zg.optim.PerExample])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_statistics_are_refused(method: Any, affine: bool) -> None:
    """Batch norm in training mode mixes the branches of a step."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6, affine=affine, momentum=None, track_running_stats=affine)
    model = nn.Sequential(nn.Linear(WIDTH, 6), norm, nn.Tanh(), nn.Linear(6, 3)).train()
    weights = copy.deepcopy(dict(model.named_parameters()))
    batch = {"x": torch.randn(4, WIDTH) * 3, "y": torch.tensor([0, 1, 2, 0])}
    optimiser = method(model)
    with pytest.raises((NotPure, SelfCheckFailed, UnresolvedOperation)):
        optimiser.step(lambda b: F.cross_entropy(model(b["x"]), b["y"], reduction="none"), batch)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
