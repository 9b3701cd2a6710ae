"""Products in bfloat16 without instructions for them: cast, multiplied, rounded once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import zerograd as zg
from tests.oracles.methods import Net, batch
from zerograd.evaluate import half


@pytest.fixture(autouse=True)
def slow(monkeypatch):
    monkeypatch.setattr(half, "IS_SLOW", True)


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (0, 7), (1, 7)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("values", [1 << 19, 20])
def test_a_product_is_that_of_float32_rounded_once(monkeypatch, shape, biased, values):
    monkeypatch.setattr(half, "VALUES", values)
    x, weight, bias = torch.randn(shape).bfloat16(), torch.randn(11, 7).bfloat16(), torch.randn(11).bfloat16() if biased else None
    with torch.no_grad():
        made = half.linear(x, weight, bias)
    wanted = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made, wanted.bfloat16(), rtol=2**-7, atol=1e-6)
    assert float((made - wanted).abs().max() if wanted.numel() else 0) <= 2**-8 * float(wanted.abs().max() if wanted.numel() else 0)


def test_gradients_and_other_dtypes_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", None)
    x, weight = torch.randn(3, 4), torch.randn(2, 4)
    half.linear(x, weight)
    half.linear(x.bfloat16(), weight.bfloat16().requires_grad_()).sum().backward()


@pytest.mark.parametrize("method", [zg.optim.MeZO, zg.optim.PerExample])
def test_a_step_is_the_step_without_it_to_rounding(monkeypatch, method):
    """The self-check compares it with really perturbed weights too."""
    losses = []
    for slow in (True, False):
        monkeypatch.setattr(half, "IS_SLOW", slow)
        net = Net().to(torch.bfloat16)
        opt = method(net, seed=3, self_check="full")
        losses.append([opt.step(net.losses, batch(seed=seed)) for seed in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_plain_passes_go_through_it():
    model, x = torch.nn.Linear(7, 5).bfloat16(), torch.randn(4, 7).bfloat16()
    with torch.no_grad(), half.fast_products():
        fast = model(x)
    with torch.no_grad():
        assert torch.equal(fast, half.linear(x, model.weight, model.bias))
