"""A batch in micro-batches gives the step of the whole batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.oracles.methods import (
    Net,
    batch,
    every_query,
    exact,
    shared_and_own,
)


def branches_of(method: Any) -> int:
    """How often a method's plan repeats the batch."""
    return method(Net()).branches


@every_query
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_in_parts_gives_the_step_of_the_whole(method, weighted):
    def trained(micro_batch):
        net, rows = Net(), []

        def objective(examples):
            rows.append(len(examples["ids"]))
            losses = net.losses(examples["ids"])
            return (losses * examples["weight"], examples["weight"]) if weighted else losses

        opt = method(net, lr=0.1, eps=1e-2)
        given = {"ids": batch(), "weight": torch.tensor([1.0, 2.0, 5.0, 0.5])}
        loss = opt.step(objective, given, micro_batch=micro_batch)
        return loss, opt.info, exact(opt), rows

    whole_loss, whole, whole_weights, _ = trained(None)
    loss, info, weights_in_parts, rows = trained(3)
    branches = branches_of(method)
    assert max(rows) <= 3 * branches
    assert rows[-2] == 3 * rows[-1]
    assert math.isclose(loss, whole_loss, rel_tol=1e-6)
    assert math.isclose(info.difference, whole.difference, rel_tol=1e-3)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights_in_parts, whole_weights, strict=True))


@shared_and_own
@pytest.mark.parametrize("micro_batch", [None, 1, 2])
def test_settings_in_a_batch_reach_the_objective_as_they_are(method, micro_batch):
    """Whatever their length: class weights, a size, names of options; alone, in micro-batches and in the checks."""
    net = Net()
    given = {"ids": batch(), "size": (2, 2, 2), "options": ["bad", "good", "so-so"], "weights": torch.ones(11, 1)[:3]}

    def objective(examples):
        assert examples["size"] == (2, 2, 2)
        assert examples["options"] == ["bad", "good", "so-so"]
        assert examples["weights"].shape == (3, 1)
        return net.losses(examples["ids"]) * examples["weights"].mean()

    opt = method(net, lr=0.1, eps=1e-2)
    opt.step(objective, given, examples=4, micro_batch=micro_batch)
    assert opt.info.loss > 0
