"""What authors, or mathematics, promise of single methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from tests.oracles.layer import LR, SIGMAS, Layer, Tower, data, flat, made, off
from zerograd.directions import Draws


@pytest.mark.parametrize("name", ["fzoo", "grzo", "per-example"])
def test_a_standardised_step_does_not_see_the_unit_of_the_loss(name: str) -> None:
    def after(unit: float, **settings: Any) -> npt.NDArray[np.float64]:
        model = Layer("quadratic")
        opt = made(name, model, **settings)
        opt.step(lambda batch: model.losses(batch) * unit, data(6))
        return flat(opt)

    start = flat(made(name, Layer("quadratic")))
    assert (after(8.0) == after(1.0)).all()
    assert (after(1.0) != start).all()
    if name != "fzoo":
        np.testing.assert_allclose(
            after(8.0, standardised=False) - start, 8 * (after(1.0, standardised=False) - start), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("directions", [1, 2])
def test_sign_moves_every_coordinate_by_lr_and_the_published_one_does_not(directions: int) -> None:
    def moves(name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        model = Layer("quadratic")
        opt = made(name, model, distribution="gaussian", directions=directions)
        before = flat(opt)
        opt.step(model.losses, data())
        ulps = np.spacing(np.maximum(np.abs(before), np.abs(flat(opt))).astype(np.float32))
        return np.abs(flat(opt) - before), ulps.astype(float)

    moved, ulps = moves("sign")
    assert (np.abs(moved - np.float32(LR)) <= ulps).all()
    moved, ulps = moves("sign-published")
    assert (np.abs(moved - np.float32(LR)) <= ulps).mean() < 0.05


@pytest.mark.parametrize("precision", ["float32", "split"])
def test_conservative_never_raises_its_batchs_loss_and_ends_on_one_of_three_points(precision: str) -> None:
    torch.manual_seed(0)
    model, other = nn.Linear(6, 4), nn.Linear(6, 4)

    def objective_of(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:  # waves: each of the points is the best at times
        return lambda x: torch.sin(3 * layer(x.to(layer.weight.dtype)).float()).sum(1)

    opt = made("conservative", model, lr=0.5, eps=0.05, precision=precision)
    twin = made("mezo", other, lr=0.5, eps=0.05, precision=precision)
    ends = []
    for step in range(50):
        batch, before = torch.randn(5, 6), flat(opt)
        for ours, theirs in zip(twin.spaces, opt.spaces, strict=True):
            ours.parameter.data.copy_(theirs.parameter.data)
            if precision == "split":
                ours.remainder.copy_(theirs.remainder)
        twin.continue_from(step, 0, 0)
        first = float(opt.evaluate(objective_of(model), batch).mean())
        opt.step(objective_of(model), batch)
        twin.step(objective_of(other), batch)
        assert float(opt.evaluate(objective_of(model), batch).mean()) <= first + 1e-6
        there = flat(twin) - before
        assert np.abs(there).max() > 1e-4
        gaps = [np.abs(flat(opt) - before - point).max() for point in (0 * there, there, -there)]
        assert min(gaps) < 1e-6 * (1 + np.abs(there).max())
        ends.append(int(np.argmin(gaps)))
    assert set(ends) == {0, 1, 2}


def test_grzos_directions_have_one_gaussian_matrix_a_step_under_signs_of_each_examples_own() -> None:
    opt = made("grzo", nn.Linear(40, 30))
    space, found = opt.spaces[0], []
    for step in range(2):
        directions = Draws(opt.method.draw, opt.draws.seed).at(step)
        left, right = directions.factors(space, range(3))
        signs = left.transpose(1, 2) @ right  # (examples, rows, columns)
        assert bool((signs.abs() == 1).all())
        assert max(abs(float((signs[a] * signs[b]).mean())) for a, b in ((0, 1), (0, 2), (1, 2))) < 0.25
        common = [directions.z(space, b) * signs[b] for b in range(3)]
        assert all(torch.equal(common[0], other) for other in common)
        found.append(common[0].double().flatten().numpy())
    for u in found:
        for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
            assert off(u**power, moment) < SIGMAS
    assert off(found[0] * found[1], 0) < SIGMAS


def test_what_is_logged_of_a_step_is_of_slopes_alone() -> None:
    """HiZOO's second number is a curvature."""
    model = Tower(2)
    infos = []
    for name in ("hizoo", "mezo"):
        opt = made(name, model, lr=0.0, distribution="gaussian")
        opt.step(model.losses, torch.ones(4, 8))
        infos.append(opt.info)
    assert infos[0].difference == pytest.approx(infos[1].difference, rel=1e-4)
    assert math.isnan(infos[0].spread)


def test_kerzoos_radii_are_uniform_and_its_kernel_keeps_the_first_order_and_cancels_the_third() -> None:
    opt, radii = made("kerzoo", Layer("linear")), []
    for step in range(4000):
        radii.append(opt.method.query.radius(opt.draws.at(step)))
    r = np.array(radii)
    kernel = 15 / 4 * r * (5 - 7 * r**2)
    assert np.abs(r).max() <= 1
    for values, expected in ((r, 0), (r**2, 1 / 3), (r**4, 1 / 5), (r * kernel, 1), (r**3 * kernel, 0)):
        assert off(values, expected) < SIGMAS
