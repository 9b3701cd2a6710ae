"""The spread of an estimate is the known multiple of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.oracles.layer import SIGMAS, made, off
from zerograd.queries import Scores

pytestmark = pytest.mark.full


def draws(opt: Any, count: int) -> Iterator[torch.Tensor]:
    """The directions of so many steps in the only tensor, a vector: float32 (directions, d)."""
    for step in range(count):
        yield (opt.draws.at(step).dense(opt.spaces[0], range(opt.settings.directions), torch.tensor([0]))[:, 0])


SPREAD: dict[str, tuple[str, str, int, Callable[[int, int], float]]] = {
    "two-sided, Rademacher, 1": ("mezo", "rademacher", 1, lambda d, n: (d + n - 1) / n),
    "two-sided, Rademacher, 4": ("mezo", "rademacher", 4, lambda d, n: (d + n - 1) / n),
    "two-sided, Gaussian, 1": ("mezo", "gaussian", 1, lambda d, n: (d + n + 1) / n),
    "two-sided, Gaussian, 4": ("mezo", "gaussian", 4, lambda d, n: (d + n + 1) / n),
    # the sample covariance of losses and directions, of n - 1 degrees of freedom; -2 is the fourth cumulant of a sign
    "leave-one-out, Gaussian, 4": ("leave-one-out", "gaussian", 4, lambda d, n: (d + n) / (n - 1)),
    "leave-one-out, Rademacher, 4": ("leave-one-out", "rademacher", 4, lambda d, n: (d + n) / (n - 1) - 2 / n),
    "leave-one-out, Rademacher, 2": ("leave-one-out", "rademacher", 2, lambda d, n: (d + n) / (n - 1) - 2 / n),
}


@pytest.mark.parametrize(("name", "distribution", "n", "factor"), SPREAD.values(), ids=SPREAD)
def test_the_spread_of_an_estimate_on_a_linear_model_is_the_known_multiple(
    name: str, distribution: str, n: int, factor: Callable[[int, int], float]
) -> None:
    torch.manual_seed(0)
    d, slope = 12, torch.randn(12)
    opt = made(name, [("w", nn.Parameter(torch.zeros(d)))], lr=1.0, eps=1.0, directions=n, distribution=distribution)
    squares, alongs = [], []
    for z in draws(opt, 4000):
        rise = z @ slope
        values = torch.cat([rise, -rise]) if name == "mezo" else rise + 5
        query = opt.method.query
        scores = Scores(query.plan(1, opt.draws.at(0)), values[:, None])
        estimate = query.coefficients(query.finite_differences(scores), 1.0) @ z
        squares.append(float(estimate.square().sum() / slope.square().sum()))
        alongs.append(float(estimate @ slope / slope.square().sum()))
    assert off(alongs, 1) < SIGMAS
    assert off(squares, factor(d, n)) < SIGMAS
    assert np.std(squares) / math.sqrt(4000) < factor(d, n) / 20


DRAWS = 800


@pytest.mark.parametrize(("shape", "examples", "s"), [((48,), 16, 0), ((48,), 16, 4), ((48,), 4, 12), ((6, 8), 16, 4)], ids=str)
def test_directions_of_each_examples_own_lower_the_error_by_the_known_factor(examples: int, s: int, shape: tuple[int, ...]) -> None:
    """Shared: d (1 + s / B) - 1, per example: (d (1 + s) - 1) / B, both times |g|^2, of sign directions in d dimensions."""
    d = math.prod(shape)
    generator = torch.Generator().manual_seed(7)
    slope = torch.randn(shape, generator=generator)
    size = float(slope.square().sum())
    weight = nn.Parameter(torch.zeros(shape))
    batches = []
    for _ in range(DRAWS):  # of gradients, with tr Cov = s |slope|^2
        signs = torch.randint(2, (examples, *shape), generator=generator) * 2.0 - 1
        batches.append(slope + signs * math.sqrt(s * size / d))

    def objective(gradients: torch.Tensor) -> torch.Tensor:  # <gradient, weight>
        if weight.ndim == 1:
            return (gradients * weight).sum(1)
        return F.linear(gradients, weight).diagonal(dim1=1, dim2=2).sum(1)

    def errors(name: str, **settings: Any) -> list[float]:
        opt = made(name, [("w", weight)], lr=1.0, eps=1.0, distribution="rademacher", **settings)
        found = []
        for gradients in batches:
            weight.data.zero_()
            opt.step(objective, gradients)
            found.append(float((-weight.detach() - slope).square().sum()) / size)
        return found

    shared, own = errors("mezo"), errors("per-example", standardised=False)
    assert off(shared, d * (1 + s / examples) - 1) < SIGMAS
    assert off(own, (d * (1 + s) - 1) / examples) < SIGMAS
    gain, relative = np.mean(shared) / np.mean(own), math.hypot(*(np.std(e) / np.mean(e) / math.sqrt(DRAWS) for e in (shared, own)))
    assert relative < 0.065
    assert gain == pytest.approx((examples + s) / (1 + s), rel=SIGMAS * relative)
