"""The list of properties is true of the tests, and the properties that no other file shows."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

import zerograd as zg
from tests import ROOT
from tests.oracles import perturb_in_place
from tests.oracles.methods import (
    COMMON,
    FAMILIES,
    QUERIES,
    RULES,
    Net,
    batch,
    every_family_in_every_precision,
    every_method,
    every_method_in_split,
    every_query_in_every_precision,
    exact,
    same,
    stored,
    update_space,
)
from tests.properties.index import AXES, OWN, PROPERTIES, found, page
from tests.tiers import full
from zerograd.directions import Draws


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_is_shown_by_tests_that_exist_and_cover_it(name):
    assert PROPERTIES[name]
    for test, axis in PROPERTIES[name].items():
        if test.startswith("noise/test_gpu.py"):
            pytest.importorskip("triton")
        function = found(test)
        assert axis == OWN or AXES[axis].mark in function.pytestmark, f"{test} does not run over {axis}"


@full
def test_axes_leave_no_kind_of_method_out():
    def kinds(names: Iterable[str], of: Callable[[Any], Any]) -> set[Any]:
        return {of(COMMON[name](Net())) for name in names}

    def family(opt: Any) -> Any:
        draw = opt.method.draw
        return type(draw), draw.distribution, getattr(draw, "rank", 0), type(draw.modulation), draw.activity is None

    assert kinds(FAMILIES, family) == kinds(COMMON, family)
    assert kinds(RULES, lambda opt: type(opt.method.rule)) == kinds(COMMON, lambda opt: type(opt.method.rule))
    for hook in ("plan", "finite_differences", "coefficients", "refine"):
        of = functools.partial(lambda hook, opt: getattr(type(opt.method.query), hook), hook)
        assert kinds(QUERIES, of) == kinds(COMMON, of)


def test_the_front_page_is_up_to_date():
    assert (ROOT / "tests" / "README.md").read_text() == page(), "python -m tests.properties.index writes it"


def optimiser(method: Callable[..., Any], precision: str | None = None, **settings: Any) -> tuple[Net, Any]:
    net = Net()
    return net, method(net, precision=precision, **({"lr": 0.05} | settings))


@every_method_in_split
def test_a_step_moves_every_trainable_tensor(method, precision):
    net, opt = optimiser(method, precision)
    before = exact(opt)
    for seed in range(24):  # some methods move a part of the layers at a time
        opt.step(net.losses, batch(seed=seed))
    assert {name for name, _ in net.named_parameters()} == {space.name for space in opt.spaces}
    for space, was, now in zip(opt.spaces, before, exact(opt), strict=True):
        assert not torch.equal(was, now), space.name


@every_family_in_every_precision
def test_a_direction_is_the_same_in_its_evaluation_and_in_its_update(method, precision):
    """From weights of zero, where no precision hides it: a probe is eps z away, an update of one direction -z."""
    _, opt = optimiser(method, precision)
    directions = opt.draws.at(opt.steps)
    some = opt.method.query.plan(4, directions).directions[-1]
    everywhere = Draws(dataclasses.replace(opt.method.draw, activity=None), opt.draws.seed)
    for space in opt.spaces:
        space.parameter.data.zero_()
        if space.remainder is not None:
            space.remainder.zero_()
        probe = directions.perturbed(space, some, [1.0], dtype=torch.float32)[0] / space.scale
        update_space(space, everywhere, opt.steps, [0.0] * some + [1.0])
        torch.testing.assert_close(-space.exact() / space.scale, probe, rtol=2**-7, atol=1e-6)
        assert probe.abs().max() > 0.5


@every_query_in_every_precision
def test_scores_are_float32_and_see_what_16_bits_would_lose(method, precision):
    """Probes so small that a model of 16 bits computes the same hidden values: its vectors and its losses still tell them apart."""
    net, opt = optimiser(method, precision, eps=1e-4)
    directions = opt.draws.at(opt.steps)
    plan = opt.method.query.plan(4, opt.draws.at(opt.steps))
    vectors = [space for space in opt.spaces if not space.is_matrix]

    def losses(tokens: torch.Tensor) -> torch.Tensor:
        x = net.norm(net.embed(tokens[:, 1:]).float().mean(1))
        return x.square().sum(1)

    scores = perturb_in_place.scores(vectors, directions, plan, losses, batch(), 1e-4)
    assert scores.dtype == torch.float32
    perturbed = scores.view(plan.branches, -1)[plan.coefficient != 0]
    gaps = perturbed[0] - perturbed[1]
    assert bool(gaps.ne(0).any())
    assert float(gaps.abs().max()) < float(scores.abs().max()) * 2**-8  # half an ulp of bfloat16


OTHERS: dict[str, Any] = {
    "lr": 0.07,
    "eps": 0.01,
    "weight_decay": 0.3,
    "relative": False,
    "seed": 8,
    "precision": "bfloat16",
    "directions": 3,
    "rank": 3,
    "beta": 0.5,
    "betas": (0.5, 0.6),
    "zeta": 0.5,
    "history": 1,
    "period": 1,
    "keep": 0.6,
    "smoothing": 0.5,
    "share": 0.3,
    "clip": 1e-3,
    "times": 1e-3,
    "anchor": 0.5,
    "sensitivity": {name: torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) for name, p in Net().named_parameters()},
}
FLIPPED = {
    "distribution": ("rademacher", "gaussian"),
    "standardised": (False, True),
    "sides": (1, 2),
    "shared": (False, True),
    "shaping": ("ranks", "plain"),
}
CHECKS = ("params", "self_check")
"""What has no effect on a run that is sound."""


@every_method
def test_every_setting_has_an_effect(method):
    def after(**changed: Any) -> list[torch.Tensor]:
        net, opt = optimiser(method, changed.pop("precision", None), **({"directions": 2} if many else {}) | {"eps": 1.0} | changed)
        opt.step(net.losses, batch())
        opt.step(net.losses, batch(seed=1))
        return stored(opt)

    settings = dict(inspect.signature(method).parameters)
    many = "directions" in settings
    usual = after()
    assert same(after(), usual)
    for name, parameter in settings.items():
        if name in CHECKS:
            continue
        other = OTHERS[name] if name in OTHERS else next(v for v in FLIPPED[name] if v != parameter.default)
        assert not same(after(**{name: other}), usual), f"{name} = {other!r} changes nothing"


def test_the_table_of_methods_says_what_they_are():
    text = (ROOT / "docs" / "methods.md").read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:5]] for line in text.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == list(zg.optim.METHODS)
    for name, title, evaluations, state in rows:
        model = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(2)))
        opt = zg.optim.METHODS[name](model, self_check=False)
        opt.step(lambda x, model=model: model(x).square().mean(1), torch.randn(4, 256))
        assert (type(opt).__name__, opt.evaluations) == (title, float(evaluations))
        assert opt.state_bytes / sum(p.numel() for p in model.parameters()) == pytest.approx(float(state), abs=5e-3), name
