"""Which tensors can be trained in which precision, and the unit of their directions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import zerograd as zg
from tests.oracles.methods import (
    Net,
    methods,
)


def test_a_unit_of_direction_is_the_rms_of_a_tensor_when_relative():
    zero = {"matrix": nn.Parameter(torch.zeros(4, 25)), "vector": nn.Parameter(torch.zeros(9))}
    named = [
        ("w", nn.Parameter(torch.tensor([[3.0, -4.0], [0.0, 5.0]]))),
        ("v", nn.Parameter(torch.full((3,), -2.0))),
        *zero.items(),
    ]
    scales = [space.scale for space in zg.optim.MeZO(named).spaces]
    assert scales == pytest.approx([math.sqrt(50 / 4), 2.0, 1 / 5, 0.02], rel=1e-6)
    assert [space.scale for space in zg.optim.MeZO(named, relative=False).spaces] == [1.0] * 4


@methods("mezo")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("precision", [None, "float32", "split", "bfloat16"])
def test_a_dtype_that_no_precision_holds_is_refused_naming_the_tensor(method, dtype, precision):
    with pytest.raises(ValueError, match=rf"embed\.weight is {dtype}.* load the model in float32"):
        method(Net().to(dtype), precision=precision)


def test_a_bfloat16_model_cannot_be_stored_as_float32():
    with pytest.raises(ValueError, match="precision 'float32' cannot hold"):
        zg.optim.MeZO(Net().bfloat16(), precision="float32")


@pytest.mark.parametrize("precision", ["split", "bfloat16"])
def test_a_model_that_is_refused_is_left_as_it_was(precision):
    net = Net()
    net.head.half()  # the last tensor is what cannot be stored
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=r"head\.weight"):
        zg.optim.MeZO(net, precision=precision)
    for parameter, was in zip(net.parameters(), before, strict=True):
        assert parameter.dtype == was.dtype
        assert torch.equal(parameter, was)


@pytest.mark.parametrize("precision", ["split", "bfloat16"])
def test_a_partly_frozen_float32_model_is_refused_in_16_bits_when_it_is_given(precision):
    net = Net()
    net.hidden.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"hidden\.bias is frozen in float32"):
        zg.optim.MeZO(net, precision=precision)


def test_a_strided_or_an_empty_parameter_is_refused_naming_it():
    with pytest.raises(ValueError, match="strided is not contiguous"):
        zg.optim.MeZO([("strided", nn.Parameter(torch.ones(3, 4).T))])
    with pytest.raises(ValueError, match="nothing is empty"):
        zg.optim.MeZO([("nothing", nn.Parameter(torch.ones(0, 4)))])
