"""One step: the documented formula, and the forms in which a batch and an objective may be given."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zerograd as zg
from tests.oracles import perturb_in_place
from tests.oracles.methods import (
    Net,
    batch,
    every_query_in_split,
    exact,
    methods,
    mezo_only,
    per_example_only,
    same,
    stored,
)
from zerograd.directions import Draws
from zerograd.queries import plan as plans


def moved(opt: Any, net: Net, **step: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    before = exact(opt)
    opt.step(net.losses, batch(), **step)
    return before, exact(opt)


@mezo_only
@pytest.mark.parametrize("relative", [True, False])
def test_mezo_subtracts_lr_times_the_projected_gradient_times_the_direction(method, relative):
    net = Net()
    groups = [
        {"params": net.embed, "lr": 0.3, "eps": 1e-2},
        {"params": [*net.hidden.named_parameters(), *net.norm.named_parameters(prefix="norm")], "weight_decay": 0.5},
        {"params": net.head.parameters(), "eps": 3e-3},
    ]
    opt = method(groups, lr=0.1, eps=1e-3, relative=relative, seed=9)
    before, after = moved(opt, net)
    directions = Draws(opt.method.draw, 9).at(0)
    settings = dict(zip(range(6), [(0.3, 1e-2, 0), *[(0.1, 1e-3, 0.5)] * 4, (0.1, 3e-3, 0)], strict=True))
    for i, space in enumerate(opt.spaces):
        lr, eps, decay = settings[i]
        z = directions.z(space, 0)
        expected = (1 - lr * decay) * before[i] - lr / eps * opt.info.difference * space.scale * z
        torch.testing.assert_close(after[i], expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(after[i], before[i])


@per_example_only
def test_a_per_example_update_is_the_weighted_mean_of_directions(method):
    net = Net()
    opt = method(net, lr=0.1, eps=1e-2, seed=9)
    directions = Draws(opt.method.draw, 9).at(0)
    scores = perturb_in_place.scores(opt.spaces, directions, plans.example_pairs(4), net.losses, batch(), 1e-2)
    d = (scores[:4] - scores[4:]) / 2
    a = d / d.std() if opt.settings.standardised else d / 1e-2
    before, after = moved(opt, net)
    for i, space in enumerate(opt.spaces):
        mean = sum(a[b] * directions.z(space, b) for b in range(4)) / 4
        torch.testing.assert_close(after[i], before[i] - 0.1 * space.scale * mean, rtol=1e-4, atol=1e-6)


def test_fzoo_subtracts_the_mean_of_its_directions_weighted_by_standardised_losses():
    net = Net()
    opt = zg.optim.FZOO(net, lr=0.1, eps=1e-2, directions=5, seed=9)
    directions = Draws(opt.method.draw, 9).at(0)
    plan = plans.population(4, 5)
    assert len(plan) == 24
    assert plan.variant(5).coefficient == 0
    losses = perturb_in_place.scores(opt.spaces, directions, plan, net.losses, batch(), 1e-2).view(6, 4).mean(1)
    torch.testing.assert_close(losses[5], net.losses(batch()).mean())
    a = (losses[:5] - losses[5]) / (losses[:5] - losses[5]).std()
    before, after = moved(opt, net)
    for i, space in enumerate(opt.spaces):
        mean = sum(a[n] * directions.z(space, n) for n in range(5)) / 5
        torch.testing.assert_close(after[i], before[i] - 0.1 * space.scale * mean, rtol=1e-4, atol=1e-6)


@methods("mezo", "mezo-populations", "fzoo", "leave-one-out", "sign-published", "conservative", "kerzoo", "hizoo")
@pytest.mark.parametrize("relative", [True, False])
def test_a_closure_and_a_batch_give_the_same_step(method, relative):
    net, other = Net(), Net()
    opt, twin = (method(n, lr=0.1, eps=1e-2, relative=relative) for n in (net, other))
    for seed in range(3):
        before = exact(opt)
        loss = opt.step(net.losses, batch(seed=seed))
        same_loss = twin.step(lambda seed=seed: other.losses(batch(seed=seed)).mean())
        assert math.isclose(loss, same_loss, rel_tol=1e-5)
        assert math.isclose(opt.info.difference, twin.info.difference, rel_tol=1e-3, abs_tol=1e-6)
        for a, b, w in zip(exact(opt), exact(twin), before, strict=True):
            torch.testing.assert_close(a - w, b - w, rtol=2e-3, atol=4e-6)


def test_sums_and_weights_give_the_step_of_their_quotient():
    net, other = Net(), Net()
    counts = torch.tensor([1.0, 2.0, 5.0, 0.5])

    def objective(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        many = counts.repeat(len(tokens) // 4)[: len(tokens)]
        return net.losses(tokens) * many, many

    opt, twin = (zg.optim.MeZO(n, lr=0.1, eps=1e-2, self_check=False) for n in (net, other))
    loss = opt.step(objective, batch())
    same_loss = twin.step(lambda: (other.losses(batch()) * counts).sum() / counts.sum())
    assert math.isclose(loss, same_loss, rel_tol=1e-5)
    assert math.isclose(opt.info.difference, twin.info.difference, rel_tol=1e-3)


@every_query_in_split
def test_the_returned_loss_is_near_that_of_the_clean_model_and_evaluate_gives_it(method, precision):
    net = Net()
    opt = method(net, lr=0.0, eps=1e-3, precision=precision)
    with torch.no_grad():
        clean = net.losses(batch())
    torch.testing.assert_close(opt.evaluate(net.losses, batch()), clean, rtol=2e-2 if precision != "float32" else 1e-5, atol=1e-5)
    assert math.isclose(opt.step(net.losses, batch()), float(clean.mean()), rel_tol=2e-2 if precision != "float32" else 1e-3)


def test_a_step_reads_every_batch_structure_alike():
    results = []
    for wrap, unwrap in (
        (lambda t: t, lambda b: b),
        (lambda t: {"tokens": t, "name": "x"}, lambda b: b["tokens"]),
        (lambda t: (t[:, :1], {"rest": [t[:, 1:]]}), lambda b: torch.cat([b[0], b[1]["rest"][0]], 1)),
    ):
        net = Net()
        opt = zg.optim.PerExample(net, lr=0.1)
        opt.step(lambda b, net=net, unwrap=unwrap: net.losses(unwrap(b)), wrap(batch()))
        results.append(stored(opt))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("name", [name for name in zg.optim.METHODS if zg.optim.method_of(name).perturbs])
def test_what_perturbs_does_so_in_units_of_each_tensors_rms_unless_told_otherwise(name):
    """`zerograd tune` gives all of them the same eps."""
    opt = zg.optim.METHODS[name](Net())
    for space in opt.spaces:
        assert space.scale == pytest.approx(float(space.exact().square().mean().sqrt()) or 0.02), space.name


def test_a_standardised_relative_step_changes_a_weight_by_lr_over_root_batch():
    weight = nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 3)
    opt = zg.optim.PerExample([("w", weight)], lr=1e-3, eps=1e-2, rank=1)
    before = weight.detach().clone()
    inputs = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    opt.step(lambda x: nn.functional.linear(x, weight).sum(1), inputs)
    change = (weight.detach() - before).square().mean().sqrt() / before.square().mean().sqrt()
    assert float(change) == pytest.approx(1e-3 / 8, rel=0.1)


@pytest.mark.full
@pytest.mark.parametrize(("optimiser", "closure"), [(zg.optim.MeZO, False), (zg.optim.MeZO, True), (zg.optim.PerExample, False)])
def test_a_compiled_module_is_perturbed_as_it_is_written(optimiser: Any, closure: bool) -> None:
    """A graph captured before a step knows nothing of a perturbation: it must not be what is evaluated."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    batch = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    weights, calls = [], []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append("captured")

        def run(*arguments: Any) -> Any:
            calls.append("run")
            return graph.forward(*arguments)

        return run

    for compile_it in (False, True):
        ours = copy.deepcopy(model)
        called = torch.compile(ours, backend=backend) if compile_it else ours
        opt = optimiser(called, lr=1e-2)
        assert [space.name for space in opt.spaces][:2] == ["0.weight", "0.bias"]

        def objective(batch: Any, called: Any = called) -> torch.Tensor:
            return F.cross_entropy(called(batch[0]), batch[1], reduction="none")

        def mean(objective: Any = objective) -> torch.Tensor:
            return objective(batch).mean()

        with torch.no_grad():
            objective(batch)
        taken = len(calls)
        for _ in range(3):
            opt.step(mean) if closure else opt.step(objective, batch)
        assert calls.count("captured") == compile_it
        weights.append([p.detach().clone() for p in ours.parameters()])
    assert taken == len(calls) == 2, "a graph ran in a step"
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
