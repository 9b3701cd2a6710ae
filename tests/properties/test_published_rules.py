"""Every method follows its published rule: steps, forward passes, bytes of state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles.layer import LR, METHODS, Layer, data, flat, made
from tests.oracles.published import CASES, Run, adams, heavy_ball, rule_of
from zerograd import optim
from zerograd.directions import Draws
from zerograd.journal import replay


def test_every_method_has_a_published_rule() -> None:
    assert {name for name, _, _ in CASES.values()} == set(optim.METHODS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("relative", "decay"), [(False, 0.0), (True, 0.3)])
def test_three_steps_are_the_published_ones(case: str, relative: bool, decay: float) -> None:
    model, batch = Layer("quadratic"), data()
    name, settings, _ = CASES[case]
    opt = made(name, model, relative=relative, weight_decay=decay, **settings)
    run = Run(opt, lambda w: model.losses_in_float64(w, batch), lambda w: model.gradients_in_float64(w, batch))
    rule, start = rule_of(case)(run), flat(opt)
    for run.step in range(3):
        change = next(rule)
        run.w = np.where(run.touched, (1 - LR * decay) * run.w, run.w) - change
        opt.step(model.losses, batch)
        np.testing.assert_allclose(flat(opt), run.w * run.scale, rtol=0, atol=1e-6)
    assert np.abs(run.w * run.scale - start).max() > 0.01


@pytest.mark.parametrize("name", ["mezo", "momentum", "adam"])
def test_groups_have_their_own_rates_radii_and_decays(name: str) -> None:
    model, batch = Layer("quadratic"), data()
    each = [(0.05, 0.75, 0.0), (0.1, 0.25, 0.5), (0.02, 1.5, 0.2)]
    groups = [
        {"params": [named], "lr": lr, "eps": eps, "weight_decay": decay}
        for named, (lr, eps, decay) in zip(model.named_parameters(), each, strict=True)
    ]
    own: dict[str, Any] = {"adam": {"betas": (0.6, 0.8), "zeta": 0.01}, "momentum": {"beta": 0.9}}.get(name, {})
    opt = made(name, groups, **own)
    sizes = [space.numel for space in opt.spaces]
    lr, eps, decay = (np.concatenate([np.full(n, of[i]) for n, of in zip(sizes, each, strict=True)]) for i in range(3))
    follow = {"mezo": lambda g: g, "momentum": heavy_ball(0.9), "adam": adams((0.6, 0.8), 0.01)}[name]
    records, w = list[Any](), flat(opt)
    opt.record = records.append
    for step in range(3):
        z = np.concatenate([Draws(opt.method.draw, 6).at(step).z(space, 0).double().numpy().ravel() for space in opt.spaces])
        rise = float((model.losses_in_float64(w + eps * z, batch) - model.losses_in_float64(w - eps * z, batch)).mean()) / 2
        w = (1 - lr * decay) * w - lr * follow(rise / eps * z)
        opt.step(model.losses, batch)
        np.testing.assert_allclose(flat(opt), w, rtol=0, atol=2e-6)
    assert [step.radii.tolist() for step in records] == [[0.75, 0.25, 1.5]] * 3
    twin = made(
        name,
        [group | {"params": [named]} for group, named in zip(groups, Layer("quadratic").named_parameters(), strict=True)],
        **own,
    )
    replay(twin.memory, records)
    assert (flat(twin) == flat(opt)).all()


@pytest.mark.parametrize("name", ["sign-published", "fzoo"])
def test_coefficients_that_no_radius_divides_are_the_same_in_every_group(name: str) -> None:
    """The sign of a difference, and its size over the deviation: a group's radius shows in the scores alone."""
    model, batch, radii = Layer("quadratic"), data(), (0.75, 0.25, 1.5)
    groups = [{"params": [named], "eps": eps} for named, eps in zip(model.named_parameters(), radii, strict=True)]
    opt = made(name, groups, distribution="gaussian", directions=3)
    eps = np.concatenate([np.full(space.numel, radius) for space, radius in zip(opt.spaces, radii, strict=True)])
    w, directions = flat(opt), opt.draws.at(0)
    zs = [np.concatenate([directions.z(space, i).double().numpy().ravel() for space in opt.spaces]) for i in range(3)]
    plus, minus, clean = ([float(model.losses_in_float64(w + sign * eps * z, batch).mean()) for z in zs] for sign in (1, -1, 0))
    one_sided = np.subtract(plus, clean)
    a = np.sign(np.subtract(plus, minus)) if name == "sign-published" else one_sided / one_sided.std(ddof=1)
    opt.step(model.losses, batch)
    expected = w - LR * sum(c * z for c, z in zip(a, zs, strict=True)) / 3
    np.testing.assert_allclose(flat(opt), expected, rtol=0, atol=2e-6)


FORWARDS: dict[str, tuple[dict[str, Any], int]] = {
    "fzoo": ({"directions": 8}, 9),
    "leave-one-out": ({"directions": 8}, 8),
    "evolution": ({"directions": 3}, 6),
    "zo-muon": ({"directions": 4, "rank": 2}, 5),
    "conservative": ({}, 5),
    "hizoo": ({}, 3),
}
POPULATIONS: list[tuple[str, dict[str, Any], int]] = [
    ("mezo", {"directions": 3}, 6),
    ("mezo", {"directions": 3, "sides": 1}, 4),
    ("adam", {"directions": 7, "sides": 1}, 8),
    ("per-example", {"directions": 3}, 6),
    ("per-example", {"directions": 3, "sides": 1}, 3),
]


@pytest.mark.parametrize(
    ("name", "settings", "forwards"), [(name, *FORWARDS.get(name, ({}, 2))) for name in METHODS] + POPULATIONS, ids=str
)
def test_a_step_costs_as_many_forwards_as_its_rule_asks_for(name: str, settings: dict[str, Any], forwards: int) -> None:
    model, batch, seen = Layer("quadratic"), data(3), list[int]()

    def objective(some: Any) -> torch.Tensor:
        seen.append(len(some[0]))
        return model.losses(some)

    opt = made(name, model, **settings)
    opt.step(objective, batch)  # whose checks are not the rule's
    counted = opt.forwards
    seen.clear()
    opt.step(objective, batch)
    assert (opt.forwards - counted, sum(seen), opt.evaluations) == (forwards, 3 * forwards, forwards)
    assert max(seen) == 3 * opt.branches


KEPT: dict[str, tuple[dict[str, Any], Callable[[int, int], int]]] = {
    "momentum": ({}, lambda m, n: 4 * (m * n + m)),
    "evolution": ({"anchor": 0.1}, lambda m, n: 4 * (m * n + m)),
    "adam": ({}, lambda m, n: 8 * (m * n + m)),
    "hizoo": ({}, lambda m, n: 4 * (m * n + m)),
    "meazo": ({}, lambda m, n: 8),
    "qzo": ({}, lambda m, n: 8),
    "adamezo": ({"history": 5, "directions": 3}, lambda m, n: 5 * (8 + 3 * 4)),
    "lozo-m": ({"rank": 3}, lambda m, n: 4 * (3 * m + m)),
    "subzero": ({"rank": 3}, lambda m, n: 4 * 3 * (m + n)),
    "zo-muon": ({"rank": 3}, lambda m, n: 4 * 3 * m),
    "sparse-mezo": ({}, lambda m, n: 4),
    "static-mask": ({}, lambda m, n: m * n),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("m", "n"), [(4, 6), (30, 50)])
def test_a_method_keeps_as_many_bytes_as_its_rule_asks_for(name: str, m: int, n: int) -> None:
    settings, expected = KEPT.get(name, ({}, lambda m, n: 0))
    model = nn.Linear(n, m)
    opt = made(name, model, **settings)
    for _ in range(2):
        opt.step(lambda x: model(x).square().sum(1), torch.randn(4, n))
    assert opt.state_bytes == expected(m, n)
    assert expected(m, n) <= held_beside(opt, {p.data_ptr() for p in model.parameters()}) <= expected(m, n) + SMALL


SMALL = 64
"""Bytes of the losses and differences of the last step, and of the place on the path, which are in no count."""


def held_beside(opt: Any, known: set[int]) -> int:
    """Bytes of all tensors and arrays that an optimiser reaches, those apart whose data begins at a known place."""
    found, seen, todo = 0, set[int](), [vars(opt)]
    while todo:
        some: Any = todo.pop()
        if id(some) in seen or isinstance(some, nn.Module):
            continue
        seen.add(id(some))
        if isinstance(some, (torch.Tensor, np.ndarray)):
            found += 0 if isinstance(some, torch.Tensor) and some.data_ptr() in known else some.nbytes
        elif isinstance(some, dict):
            todo += some.values()
        elif isinstance(some, (list, tuple, set, frozenset)):
            todo += some
        elif type(some).__module__.startswith("zerograd"):
            todo += [vars(some)] if hasattr(some, "__dict__") else [getattr(some, name) for name in some.__slots__]
    return found
