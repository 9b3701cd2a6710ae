"""The list of properties is true of the tests, and the properties that no other file shows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

import zerograd as zg
from tests import ROOT
from tests.oracles.methods import (
    COMMON,
    FAMILIES,
    QUERIES,
    RULES,
    Net,
    batch,
    every_family_in_every_storage,
    every_method,
    every_method_in_split,
    every_query_in_every_storage,
    exact,
    same,
    stored,
)
from tests.properties.index import AXES, OWN, PROPERTIES, found, page
from tests.tiers import full
from zerograd.evaluate.score import score_batch
from zerograd.optim.base import Common
from zerograd.update import apply


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
        return type(opt.family), opt.family.distribution, opt.family.rank, type(opt.family.shape)

    assert kinds(FAMILIES, family) == kinds(COMMON, family)
    assert kinds(RULES, lambda opt: type(opt.held)) == kinds(COMMON, lambda opt: type(opt.held))
    for hook in ("plan", "differences", "reconsidered"):
        of = functools.partial(lambda hook, opt: getattr(type(opt), hook), hook)
        assert kinds(QUERIES, of) == kinds(COMMON, of)


def test_the_front_page_is_up_to_date():
    assert (ROOT / "tests" / "README.md").read_text() == page(), "python -m tests.properties.index writes it"


def optimiser(method: Callable[..., Any], storage: str | None = None, **settings: Any) -> tuple[Net, Any]:
    net = Net()
    return net, method(net, storage=storage, **({"lr": 0.05} | settings))


@every_method_in_split
def test_a_step_moves_every_trainable_tensor(method, storage):
    net, opt = optimiser(method, storage)
    before = exact(opt)
    for seed in range(24):  # some methods move a part of the layers at a time
        opt.step(net.losses, batch(seed=seed))
    assert {name for name, _ in net.named_parameters()} == {slot.name for slot in opt.slots}
    for slot, was, now in zip(opt.slots, before, exact(opt), strict=True):
        assert not torch.equal(was, now), slot.name


@every_family_in_every_storage
def test_a_direction_is_the_same_in_its_evaluation_and_in_its_update(method, storage):
    """From weights of zero, where no precision hides it: a probe is eps z away, an update of one direction -z."""
    _, opt = optimiser(method, storage)
    directions = opt._directions()
    some = int(opt.plan(4).directions[-1])
    for slot in opt.slots:
        slot.parameter.data.zero_()
        if slot.remainder is not None:
            slot.remainder.zero_()
        probe = directions.perturbed(slot, some, [1.0], dtype=torch.float32)[0].view(slot.parameter.shape) / (slot.eps * slot.scale)
        apply.update(slot, directions, [some], [1.0], 1.0)
        torch.testing.assert_close(-slot.exact() / slot.scale, probe, rtol=2**-7, atol=1e-6)
        assert probe.abs().max() > 0.5


@every_query_in_every_storage
def test_scores_are_float32_and_see_what_16_bits_would_lose(method, storage):
    """Probes so small that a model of 16 bits computes the same hidden values: its vectors and its losses still tell them apart."""
    net, opt = optimiser(method, storage, eps=1e-4)
    directions = opt._directions()
    plan = opt.plan(4)
    vectors = [slot for slot in opt.slots if not slot.is_matrix]

    def losses(tokens: torch.Tensor) -> torch.Tensor:
        x = net.norm(net.embed(tokens[:, 1:]).float().mean(1))
        return x.square().sum(1)

    scores = score_batch(vectors, directions, plan, losses, batch())
    assert scores.dtype == torch.float32
    perturbed = scores.view(plan.copies, -1)[plan.sign.view(plan.copies, -1)[:, 0] != 0]
    gaps = perturbed[0] - perturbed[1]
    assert bool(gaps.ne(0).any())
    assert float(gaps.abs().max()) < float(scores.abs().max()) * 2**-8  # half an ulp of bfloat16


OTHERS: dict[str, Any] = {
    "lr": 0.07,
    "eps": 0.01,
    "weight_decay": 0.3,
    "relative": False,
    "seed": 8,
    "storage": "bfloat16",
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
    "sensitivity": {name: torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) for name, p in Net().named_parameters()},
}
FLIPPED = {"distribution": ("rademacher", "gaussian"), "standardised": (False, True), "sides": (1, 2)}
CHECKS = ("params", "self_check")
"""What has no effect on a run that is sound."""


@every_method
def test_every_setting_has_an_effect(method):
    def after(**changed: Any) -> list[torch.Tensor]:
        net, opt = optimiser(method, changed.pop("storage", None), **({"directions": 2} if many else {}) | {"eps": 1.0} | changed)
        opt.step(net.losses, batch())
        opt.step(net.losses, batch(seed=1))
        return stored(opt)

    settings = dict(inspect.signature(method).parameters)
    settings |= dict.fromkeys(Common.__annotations__, settings.pop("common"))
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
