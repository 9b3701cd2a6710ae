"""What an estimate does to a tensor of any shape and precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zerograd as zg
from tests.oracles.methods import (
    Net,
    batch,
    every_precision,
    exact,
    update_space,
)
from zerograd.directions import Dense, Draws, LowRank
from zerograd.spaces import collect
from zerograd.update import target


@pytest.mark.parametrize("family", [Dense(), Dense("gaussian"), LowRank(), LowRank("gaussian", 3)], ids=str)
@pytest.mark.parametrize("shape", [(), (7,), (5, 9), (3, 5, 9), (40, 3)], ids=str)
@pytest.mark.parametrize("rows", [8192, 16])
def test_an_update_subtracts_the_directions_that_z_gives_in_every_shape(family, shape, rows, monkeypatch):
    monkeypatch.setattr(target, "ROWS", rows)
    space = collect([("w", nn.Parameter(torch.randn(shape)))], None)[0]
    space.scale = 0.7
    draws = Draws(family, 1)
    directions = draws.at(2)
    expected = space.exact().view(shape) * 0.9
    for direction, multiplier in ((1, -2.0), (4, 0.25)):
        expected = expected - multiplier * 0.7 * directions.z(space, direction)
    update_space(space, draws, 2, [0.0, -2.0, 0.0, 0.0, 0.25], decay=0.9)
    torch.testing.assert_close(space.exact().view(shape), expected, rtol=1e-5, atol=1e-6)


@every_precision
def test_weight_decay_is_decoupled_from_the_loss(precision):
    net = Net()
    opt = zg.optim.MeZO(net, lr=0.5, weight_decay=0.25, precision=precision)
    before = exact(opt)
    opt.step(lambda tokens: net.losses(tokens) * 0, batch())  # no slope: decay is all that is left
    for a, b in zip(exact(opt), before, strict=True):
        expected = b * 0.875
        torch.testing.assert_close(a, expected, rtol=2**-7 if precision == "bfloat16" else 1e-6, atol=0)
