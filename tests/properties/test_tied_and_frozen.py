"""Which tensors move: a tied weight once, a frozen one never, every vector of a stack."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.oracles.methods import (
    Net,
    batch,
    every_family,
    every_family_in_split,
    same,
    stored,
)
from zerograd.directions import Draws


class Reused(Net):
    """Tied, by a forward that uses one parameter twice."""

    def __init__(self) -> None:
        super().__init__(tied=True)
        del self.head

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens).mean(1)
        return F.linear(self.norm(x + F.gelu(self.hidden(x))), self.embed.weight)


@every_family_in_split
def test_tied_weights_are_one_slot_perturbed_in_both_uses_and_updated_once(method, precision):
    net = Net(tied=True)
    opt = method(net, lr=0.1, eps=1e-2, precision=precision, self_check="full")
    names = {space.name: space.aliases for space in opt.spaces}
    assert names["embed.weight"] == ("head.weight",)
    assert "head.weight" not in names
    assert net.head.weight is net.embed.weight
    other = Reused()
    twin = method(other, lr=0.1, eps=1e-2, precision=precision)
    for seed in range(2):  # the full self-check compares both uses with really perturbed weights
        opt.step(net.losses, batch(seed=seed))
        twin.step(other.losses, batch(seed=seed))
    assert len(opt.spaces) == len(twin.spaces)
    assert same(stored(opt), stored(twin))


@every_family_in_split
def test_frozen_parameters_stay_and_leave_the_noise_of_the_others_as_it_was(method, precision):
    free, partly = Net(), Net()
    if precision != "float32":
        free, partly = free.bfloat16(), partly.bfloat16()
    for parameter in (partly.embed.weight, partly.hidden.bias):
        parameter.requires_grad_(False)
    before = partly.embed.weight.detach().clone(), partly.hidden.bias.detach().clone()
    every, some = method(free, precision=precision), method(partly, lr=0.1, precision=precision)
    ids = {space.name: space for space in every.spaces}
    assert {space.name for space in some.spaces} == set(ids) - {"embed.weight", "hidden.bias"}
    directions = Draws(some.method.draw, 0).at(0)
    for space in some.spaces:
        assert space.id == ids[space.name].id
        assert torch.equal(directions.z(space, 1), directions.z(ids[space.name], 1))
    some.step(partly.losses, batch())
    assert torch.equal(partly.embed.weight.float(), before[0].to(partly.embed.weight.dtype).float())
    assert torch.equal(partly.hidden.bias.float(), before[1].to(partly.hidden.bias.dtype).float())


@every_family
def test_every_vector_of_a_stack_moves(method):
    """As the weight of a depthwise convolution has them, when its parameters are given without it."""
    torch.manual_seed(0)
    model = nn.Conv1d(4, 4, 3, groups=4, bias=False)
    opt = method(model.named_parameters(), lr=0.05)
    assert opt.spaces[0].view == (4, 1, 3)
    before = model.weight.detach().clone()
    opt.step(lambda x: (F.conv1d(x, model.weight, groups=4) - 1).square().mean((1, 2)), torch.randn(3, 4, 8))
    assert bool((model.weight != before).any(2).all())
