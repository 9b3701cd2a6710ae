"""Directions in a subspace: factors that last a period, orthonormal bases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.oracles.layer import made
from zerograd.directions import Draws


@pytest.mark.parametrize("name", ["lozo", "lozo-m", "subzero", "zo-muon"])
def test_factors_last_a_period_and_bases_are_orthonormal(name: str) -> None:
    opt = made(name, nn.Linear(40, 30), rank=8, period=3)
    space = opt.spaces[0]
    lasting, fresh = [], []
    for step in range(6):
        left, right = Draws(opt.method.draw, opt.draws.seed).at(step).factors(space, [0])
        lasting.append((left if name == "zo-muon" else right)[0].clone())
        fresh.append((right if name == "zo-muon" else left)[0].clone())
    for same in (lasting[:3], lasting[3:]):
        assert torch.equal(same[0], same[1])
        assert torch.equal(same[0], same[2])
    assert not torch.allclose(lasting[0], lasting[3], atol=0.1)
    assert all(not torch.allclose(fresh[0], other, atol=0.1) for other in fresh[1:])
    if name in ("subzero", "zo-muon"):
        basis = lasting[0].double() / (math.sqrt(30) if name == "zo-muon" else 1)
        torch.testing.assert_close(basis @ basis.T, torch.eye(8).double(), rtol=0, atol=1e-6)
