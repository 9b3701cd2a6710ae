"""Parameter groups and learning rate schedules act as those of torch's optimisers."""

from __future__ import annotations

import pytest
import torch

import zerograd as zg
from tests.oracles.methods import (
    Net,
    batch,
    every_method,
    exact,
    same,
    stored,
)


def test_a_parameter_in_two_groups_is_refused_before_it_is_stored_anew():
    net = Net()
    with pytest.raises(ValueError, match=r"head\.weight is in two parameter groups"):
        zg.optim.MeZO([{"params": net}, {"params": [("head.weight", net.head.weight)]}], precision="split")
    assert {p.dtype for p in net.parameters()} == {torch.float32}


@every_method
def test_a_group_with_a_learning_rate_of_0_stays_and_the_others_move_as_they_would(method):
    net, other = Net(), Net()
    still = method([{"params": net.embed, "lr": 0.0}, {"params": [net.hidden.weight, net.head.weight]}], lr=0.1)
    every = method([{"params": other.embed}, {"params": [other.hidden.weight, other.head.weight]}], lr=0.1)
    before = exact(still)
    still.step(net.losses, batch())
    every.step(other.losses, batch())
    assert torch.equal(exact(still)[0], before[0])
    assert same(exact(still)[1:], exact(every)[1:])
    for seed in range(8):  # a step need not touch every layer
        every.step(other.losses, batch(seed=seed))
    assert not torch.equal(exact(every)[0], before[0])


@every_method
def test_a_learning_rate_schedule_acts_on_the_steps_after_it(method):
    net, other = Net(), Net()
    opt, twin = method(net, lr=0.1), method(other, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    for step in range(3):
        opt.step(net.losses, batch(seed=step))
        schedule.step()
        twin.param_groups[0]["lr"] = 0.1 * 0.5**step
        twin.step(other.losses, batch(seed=step))
    assert same(stored(opt), stored(twin))


def test_a_parameter_group_that_is_added_later_is_refused():
    net = Net()
    opt = zg.optim.MeZO(net.embed, lr=0.1)
    opt.step(net.losses, batch())
    with pytest.raises(ValueError, match="build a new optimiser"):
        opt.add_param_group({"params": [net.head.weight]})
    assert len(opt.param_groups) == 1
