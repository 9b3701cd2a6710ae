"""What an estimate does to a tensor of any shape and storage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zerograd as zg
from tests.oracles.methods import (
    Net,
    batch,
    every_storage,
    exact,
)
from zerograd.directions.family import Directions, Family
from zerograd.spaces import weights
from zerograd.update import apply


@pytest.mark.parametrize("family", [Family(), Family("gaussian"), Family(rank=1), Family("gaussian", 3)], ids=str)
@pytest.mark.parametrize("shape", [(), (7,), (5, 9), (3, 5, 9), (40, 3)], ids=str)
@pytest.mark.parametrize("rows", [8192, 16])
def test_an_update_subtracts_the_directions_that_z_gives_in_every_shape(family, shape, rows, monkeypatch):
    monkeypatch.setattr(apply, "ROWS", rows)
    slot = weights.collect([("w", nn.Parameter(torch.randn(shape)))], None)[0]
    slot.scale = 0.7
    directions = Directions(family, 1, 2)
    expected = slot.exact() * 0.9
    for direction, multiplier in ((4, 0.25), (1, -2.0)):
        expected = expected - multiplier * 0.7 * directions.z(slot, direction)
    apply.update(slot, directions, [4, 1], [0.25, -2.0], 0.9)
    torch.testing.assert_close(slot.exact(), expected, rtol=1e-5, atol=1e-6)


@every_storage
def test_weight_decay_is_decoupled_from_the_loss(storage):
    net = Net()
    opt = zg.optim.MeZO(net, lr=0.5, weight_decay=0.25, storage=storage)
    before = exact(opt)
    opt.step(lambda tokens: net.losses(tokens) * 0, batch())  # no slope: decay is all that is left
    for a, b in zip(exact(opt), before, strict=True):
        expected = b * 0.875
        torch.testing.assert_close(a, expected, rtol=2**-7 if storage == "bfloat16" else 1e-6, atol=0)
