"""Weights drift by no bit: with a learning rate of 0, and when a run is only prepared."""

from __future__ import annotations

from tests.oracles.methods import (
    Net,
    batch,
    every_query_in_split,
    every_rule_in_every_precision,
    same,
    stored,
)


@every_query_in_split
def test_attach_leaves_every_weight_as_it_was_and_the_first_step_as_it_would_be(method, precision):
    (net, opt), (other, fresh) = ((n, method(n, lr=0.1, eps=1e-2, precision=precision)) for n in (Net(), Net()))
    before = stored(opt)
    opt.attach(net.losses, batch())
    assert same(stored(opt), before)
    opt.step(net.losses, batch())
    fresh.step(other.losses, batch())
    assert same(stored(opt), stored(fresh))


@every_rule_in_every_precision
def test_a_learning_rate_of_0_leaves_every_bit_for_50_steps(method, precision):
    net = Net()
    opt = method(net, lr=0.0, weight_decay=0.1, precision=precision)
    before = stored(opt)
    for step in range(50):
        opt.step(net.losses, batch(seed=step))
    assert opt.steps == 50
    assert opt.skipped == 0
    assert same(stored(opt), before)
