"""Every method follows its published rule, and has the properties that its authors or its mathematics promise."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.oracles.published import CASES, EPS, LR, Layer, Run, adams, data, flat, heavy_ball, rule_of
from zerograd import noise, optim
from zerograd.directions.family import Directions
from zerograd.noise import exact

SIGMAS = 4.5
"""Standard errors that a mean may be off by; seeds are fixed, so no test is flaky."""

METHODS = [name for name, method in optim.METHODS.items() if method.perturbs and not method.takes_backward]
"""Those of evaluations alone."""


def made(name: str, params: Any, **settings: Any) -> Any:
    common = {"lr": LR, "relative": False, "seed": 6, "self_check": False} | ({"eps": EPS} if optim.METHODS[name].perturbs else {})
    return optim.METHODS[name](params, **(common | settings))


def off(samples: Any, expected: float) -> float:
    """Standard errors between the mean of samples and what it should be."""
    values = np.asarray(samples, dtype=float)
    return abs(float(values.mean()) - expected) / (float(values.std(ddof=1)) / math.sqrt(len(values)))


# Steps.


def test_every_method_has_a_published_rule() -> None:
    assert {name for name, _, _ in CASES.values()} == set(optim.METHODS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize(("relative", "decay"), [(False, 0.0), (True, 0.3)])
def test_three_steps_are_the_published_ones(case: str, kind: str, relative: bool, decay: float) -> None:
    model, batch = Layer(kind), data()
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
    opt = made(name, groups, **{"adam": {"betas": (0.6, 0.8), "zeta": 0.01}, "momentum": {"beta": 0.9}}.get(name, {}))
    sizes = [slot.parameter.numel() for slot in opt.slots]
    lr, eps, decay = (np.concatenate([np.full(n, of[i]) for n, of in zip(sizes, each, strict=True)]) for i in range(3))
    follow = {"mezo": lambda g: g, "momentum": heavy_ball(0.9), "adam": adams((0.6, 0.8), 0.01)}[name]
    w = flat(opt)
    for step in range(3):
        z = np.concatenate([Directions(opt.family, 6, step).z(slot, 0).double().numpy().ravel() for slot in opt.slots])
        rise = float((model.losses_in_float64(w + eps * z, batch) - model.losses_in_float64(w - eps * z, batch)).mean()) / 2
        w = (1 - lr * decay) * w - lr * follow(rise / eps * z)
        opt.step(model.losses, batch)
        np.testing.assert_allclose(flat(opt), w, rtol=0, atol=2e-6)


FORWARDS: dict[str, tuple[dict[str, Any], int]] = {
    "fzoo": ({"directions": 8}, 9),
    "leave-one-out": ({"directions": 8}, 8),
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
    model, batch, seen = Layer("quadratic"), data(3), 0

    def objective(some: Any) -> torch.Tensor:
        nonlocal seen
        seen += len(some[0])
        return model.losses(some)

    opt = made(name, model, **settings)
    opt.step(objective, batch)  # whose checks are not the rule's
    counted, seen = opt.forwards, 0
    opt.step(objective, batch)
    assert (opt.forwards - counted, seen, opt.evaluations) == (forwards, 3 * forwards, forwards)


@pytest.mark.parametrize("name", ["fzoo", "grzo", "per-example"])
def test_a_standardised_step_does_not_see_the_unit_of_the_loss(name: str) -> None:
    def after(unit: float, **settings: Any) -> npt.NDArray[np.float64]:
        model = Layer("quadratic")
        opt = made(name, model, **settings)
        opt.step(lambda batch: model.losses(batch) * unit, data(6))
        return flat(opt)

    start = flat(made(name, Layer("quadratic")))
    assert (after(8.0) == after(1.0)).all()
    assert (after(1.0) != start).all()
    if name != "fzoo":
        np.testing.assert_allclose(
            after(8.0, standardised=False) - start, 8 * (after(1.0, standardised=False) - start), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("directions", [1, 2])
def test_sign_moves_every_coordinate_by_lr_and_the_published_one_does_not(directions: int) -> None:
    def moves(name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        model = Layer("quadratic")
        opt = made(name, model, distribution="gaussian", directions=directions)
        before = flat(opt)
        opt.step(model.losses, data())
        ulps = np.spacing(np.maximum(np.abs(before), np.abs(flat(opt))).astype(np.float32))
        return np.abs(flat(opt) - before), ulps.astype(float)

    moved, ulps = moves("sign")
    assert (np.abs(moved - np.float32(LR)) <= ulps).all()
    moved, ulps = moves("sign-published")
    assert (np.abs(moved - np.float32(LR)) <= ulps).mean() < 0.05


@pytest.mark.parametrize("storage", ["float32", "split"])
def test_conservative_never_raises_its_batchs_loss_and_ends_on_one_of_three_points(storage: str) -> None:
    torch.manual_seed(0)
    model, other = nn.Linear(6, 4), nn.Linear(6, 4)

    def objective_of(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:  # waves: each of the points is the best at times
        return lambda x: torch.sin(3 * layer(x.to(layer.weight.dtype)).float()).sum(1)

    opt = made("conservative", model, lr=0.5, eps=0.05, storage=storage)
    twin = made("mezo", other, lr=0.5, eps=0.05, storage=storage)
    ends = []
    for step in range(50):
        batch, before = torch.randn(5, 6), flat(opt)
        for ours, theirs in zip(twin.slots, opt.slots, strict=True):
            ours.parameter.data.copy_(theirs.parameter.data)
            if storage == "split":
                ours.remainder.copy_(theirs.remainder)
        twin.go_on(step, 0, 0)
        first = float(opt.evaluate(objective_of(model), batch).mean())
        opt.step(objective_of(model), batch)
        twin.step(objective_of(other), batch)
        assert float(opt.evaluate(objective_of(model), batch).mean()) <= first + 1e-6
        there = flat(twin) - before
        assert np.abs(there).max() > 1e-4
        gaps = [np.abs(flat(opt) - before - point).max() for point in (0 * there, there, -there)]
        assert min(gaps) < 1e-6 * (1 + np.abs(there).max())
        ends.append(int(np.argmin(gaps)))
    assert set(ends) == {0, 1, 2}


def test_grzos_directions_have_one_gaussian_matrix_a_step_under_signs_of_each_examples_own() -> None:
    opt = made("grzo", nn.Linear(40, 30))
    slot, found = opt.slots[0], []
    for step in range(2):
        directions = Directions(opt.family, opt.seed, step)
        left, right = directions.factors(slot, range(3))
        signs = left.transpose(1, 2) @ right  # (examples, rows, columns)
        assert bool((signs.abs() == 1).all())
        assert max(abs(float((signs[a] * signs[b]).mean())) for a, b in ((0, 1), (0, 2), (1, 2))) < 0.25
        common = [directions.z(slot, b) * signs[b] for b in range(3)]
        assert all(torch.equal(common[0], other) for other in common)
        found.append(common[0].double().flatten().numpy())
    for u in found:
        for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
            assert off(u**power, moment) < SIGMAS
    assert off(found[0] * found[1], 0) < SIGMAS


# Parts of the weights.


def picked(where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch that reads each of these entries of a matrix: one an example, (rows, columns) -> x, y."""
    rows, columns = where.nonzero(as_tuple=True)
    return torch.eye(where.shape[1])[columns], torch.eye(where.shape[0])[rows] * torch.randn(len(rows), 1)


@pytest.mark.parametrize("name", ["sparse-mezo", "static-mask"])
@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("storage", ["float32", "split"])
def test_a_mask_keeps_the_share_asked_for_and_zeroes_the_rest_in_evaluation_and_update(
    name: str, keep: float, storage: str
) -> None:
    def stepped(batch: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
        torch.manual_seed(1)
        model = nn.Linear(9, 7)
        opt = made(name, model, keep=keep, distribution="gaussian", directions=2, storage=storage)
        matrix, vector = (slot.exact().clone() for slot in opt.slots)
        bias = torch.zeros_like(model.bias)  # out of the loss, not of the step

        def objective(some: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            dtype = model.weight.dtype
            return (F.linear(some[0].to(dtype), model.weight, bias).float() * some[1]).sum(1)

        opt.step(objective, batch)
        return opt, opt.slots[0].exact() != matrix, opt.slots[1].exact() != vector

    _, kept, whole = stepped((torch.randn(4, 9), torch.randn(4, 7)))
    assert int(kept.sum()) == round(keep * 63)
    assert bool(whole.all())
    if keep < 1:
        opt, moved, _ = stepped(picked(~kept))
        assert opt.info.difference == opt.info.spread == 0
        assert not bool(moved.any())
    opt, moved, _ = stepped(picked(kept))
    assert opt.info.spread > 0
    assert bool((moved == kept).all())


@pytest.mark.parametrize("name", ["sparse-mezo", "static-mask"])
def test_sparse_mezo_looks_at_the_weights_as_they_are_and_a_static_mask_does_not(name: str) -> None:
    torch.manual_seed(1)
    model = nn.Linear(9, 7)
    opt = made(name, model, keep=0.4, distribution="gaussian")
    sizes = model.weight.detach().abs().flatten().sort().values
    small = model.weight.detach().abs() <= sizes[round(0.4 * 63) - 1]
    large = model.weight.detach().abs() > sizes[63 - round(0.4 * 63) - 1]
    model.weight.data = model.weight.data.roll((1, 2), (0, 1))
    before = model.weight.detach().clone()
    opt.step(lambda x: model(x).square().sum(1), torch.randn(4, 9))
    moved = model.weight.detach() != before
    assert torch.equal(moved, small.roll((1, 2), (0, 1)) if name == "sparse-mezo" else large)


@pytest.mark.parametrize("name", ["sparse-mezo", "static-mask"])
def test_a_matrix_whose_sizes_choose_nothing_is_whole_at_every_step(name: str) -> None:
    """LoRA's B is all zero when training begins; where a third of A is, the mask still chooses among the rest."""
    torch.manual_seed(1)
    lora = nn.Sequential(nn.Linear(9, 4, bias=False), nn.Linear(4, 7, bias=False))
    a, b = lora[0].weight.data, lora[1].weight.data
    a[:, :3] = 0.0
    b.zero_()
    opt = made(name, lora, keep=0.25, distribution="gaussian", relative=True)
    chosen = a.abs() > a.abs().flatten().sort().values[-10]  # the nine largest of 36
    for _ in range(4):
        before = a.clone(), b.clone()
        opt.step(lambda x: (lora(x) - 1).square().sum(1), torch.randn(4, 9))
        assert bool((b != before[1]).all())
        assert torch.equal(a != before[0], chosen) if name == "static-mask" else bool((a != before[0]).all())


class Tower(nn.Module):
    """Layers of one shape, and a norm, whose two vectors are one block."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.norm(x)

    def losses(self, x: torch.Tensor) -> torch.Tensor:
        return (self(x) - torch.linspace(0, 2, 8)).square().sum(1)

    def reading(self, block: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """A loss of one block alone."""
        if block == "norm":
            return lambda x: (x * self.norm.weight + self.norm.bias).sum(1)
        return lambda x: self.get_submodule(block)(x).sum(1)


def block_of(name: str) -> str:
    return name.rpartition(".")[0]


def moves(opt: Any, objective: Any, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a step adds to the tensors that it changes."""
    before = [slot.exact().clone() for slot in opt.slots]
    opt.step(objective, batch)
    changes = {slot.name: slot.exact() - was for slot, was in zip(opt.slots, before, strict=True)}
    return {name: change for name, change in changes.items() if bool(change.any())}


def test_block_wise_covers_every_parameter_within_a_cycle_a_block_a_step_with_noise_of_its_own() -> None:
    model = Tower(3)
    opt = made("block-wise", model, lr=1e-3, eps=0.01)
    cycle = [moves(opt, model.losses, torch.randn(4, 8)) for _ in range(4)]
    assert [len({block_of(name) for name in step}) for step in cycle] == [1] * 4
    assert sorted(name for step in cycle for name in step) == sorted(name for name, _ in model.named_parameters())
    signs = [step[f"layers.{i}.weight"].sign() for i, step in enumerate(cycle[:3])]
    assert max(abs(float((a * b).mean())) for a, b in ((signs[0], signs[1]), (signs[0], signs[2]), (signs[1], signs[2]))) < 0.5
    again = [moves(opt, model.losses, torch.randn(4, 8)) for _ in range(4)]
    assert [sorted(step) for step in again] == [sorted(step) for step in cycle]
    assert abs(float((again[0]["layers.0.weight"].sign() * signs[0]).mean())) < 0.5


def test_modules_of_the_same_names_have_blocks_of_their_own() -> None:
    one, other = (nn.Sequential(OrderedDict(embed=nn.Linear(2, 2), tower=Tower(layers))) for layers in (3, 2))
    opt = made("block-wise", [{"params": one}, {"params": other}])
    blocks = opt.family.blocks
    assert len(set(blocks.values())) == (1 + 4) + (1 + 3)
    assert {slot.name for slot in opt.slots if blocks[slot.id] == 5} == {"group 1.embed.weight", "group 1.embed.bias"}


def test_what_is_logged_of_a_step_is_of_slopes_alone() -> None:
    """HiZOO's second number is a curvature."""
    model = Tower(2)
    infos = []
    for name in ("hizoo", "mezo"):
        opt = made(name, model, lr=0.0, distribution="gaussian")
        opt.step(model.losses, torch.ones(4, 8))
        infos.append(opt.info)
    assert infos[0].difference == pytest.approx(infos[1].difference, rel=1e-4)
    assert math.isnan(infos[0].spread)


@pytest.mark.parametrize("name", ["block-wise", "random-layers"])
def test_a_block_that_a_step_leaves_is_not_perturbed_either(name: str) -> None:
    model = Tower(3)
    reads = [block_of(slot.name) for slot in made(name, model).slots]
    differences = []
    for block in dict.fromkeys(reads):
        opt = made(name, model, lr=1e-6, distribution="gaussian", **({"share": 0.4} if name == "random-layers" else {}))
        for _ in range(4):
            own = {block_of(slot.name) for slot in opt.slots if opt.family.touches(slot, opt.seed, opt.steps)}
            moves(opt, model.reading(block), torch.ones(4, 8))
            assert (opt.info.difference != 0) == (block in own)
            differences.append(opt.info.difference)
    assert {difference != 0 for difference in differences} == {True, False}


def test_the_lots_of_a_step_are_drawn_once_for_all_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    opt = made("random-layers", nn.Sequential(*(nn.Linear(2, 2) for _ in range(6))), seed=987)
    drawn: list[Any] = []
    stream = noise.stream
    monkeypatch.setattr(noise, "stream", lambda address: drawn.append(address) or stream(address))
    for _ in range(2):
        for slot in opt.slots:
            for step in range(50):
                opt.family.touches(slot, opt.seed, step)
    assert len(drawn) == 50 * 6


@pytest.mark.parametrize(("share", "touched"), [(0.01, 1), (0.25, 2), (0.5, 4), (0.8, 6), (1.0, 7)])
def test_random_layers_move_their_share_of_the_blocks_and_all_of_them_over_time(share: float, touched: int) -> None:
    model = Tower(6)  # 7 blocks
    opt = made("random-layers", model, share=share, lr=1e-3, eps=0.01)
    counts: dict[str, int] = {}
    for _ in range(60):
        blocks = {block_of(name) for name in moves(opt, model.losses, torch.randn(3, 8))}
        assert len(blocks) == touched
        for block in blocks:
            counts[block] = counts.get(block, 0) + 1
    mean = 60 * touched / 7
    assert len(counts) == 7
    assert all(abs(count - mean) <= SIGMAS * math.sqrt(mean * (1 - touched / 7)) for count in counts.values())


# Spread.


def draws(opt: Any, count: int) -> Iterator[torch.Tensor]:
    """The directions of so many steps in the only tensor, a vector: float32 (directions, d)."""
    for step in range(count):
        yield Directions(opt.family, opt.seed, step).dense(opt.slots[0], range(opt.directions), torch.tensor([0]))[:, 0]


SPREAD: dict[str, tuple[str, str, int, Callable[[int, int], float]]] = {
    "two-sided, Rademacher, 1": ("mezo", "rademacher", 1, lambda d, n: (d + n - 1) / n),
    "two-sided, Rademacher, 4": ("mezo", "rademacher", 4, lambda d, n: (d + n - 1) / n),
    "two-sided, Gaussian, 1": ("mezo", "gaussian", 1, lambda d, n: (d + n + 1) / n),
    "two-sided, Gaussian, 4": ("mezo", "gaussian", 4, lambda d, n: (d + n + 1) / n),
    # the sample covariance of losses and directions, of n - 1 degrees of freedom; -2 is the fourth cumulant of a sign
    "leave-one-out, Gaussian, 4": ("leave-one-out", "gaussian", 4, lambda d, n: (d + n) / (n - 1)),
    "leave-one-out, Rademacher, 4": ("leave-one-out", "rademacher", 4, lambda d, n: (d + n) / (n - 1) - 2 / n),
    "leave-one-out, Rademacher, 2": ("leave-one-out", "rademacher", 2, lambda d, n: (d + n) / (n - 1) - 2 / n),
}


@pytest.mark.parametrize(("name", "distribution", "n", "factor"), SPREAD.values(), ids=SPREAD)
def test_the_spread_of_an_estimate_on_a_linear_model_is_the_known_multiple(
    name: str, distribution: str, n: int, factor: Callable[[int, int], float]
) -> None:
    torch.manual_seed(0)
    d, slope = 12, torch.randn(12)
    opt = made(name, [("w", nn.Parameter(torch.zeros(d)))], lr=1.0, eps=1.0, directions=n, distribution=distribution)
    squares, alongs = [], []
    for z in draws(opt, 4000):
        rise = z @ slope
        scores = torch.cat([rise, -rise]) if name == "mezo" else rise + 5
        estimate = opt.multipliers(opt.differences(scores), opt.param_groups[0]) @ z
        squares.append(float(estimate.square().sum() / slope.square().sum()))
        alongs.append(float(estimate @ slope / slope.square().sum()))
    assert off(alongs, 1) < SIGMAS
    assert off(squares, factor(d, n)) < SIGMAS
    assert np.std(squares) / math.sqrt(4000) < factor(d, n) / 20


@pytest.mark.parametrize(("examples", "s"), [(16, 0), (16, 4), (4, 12)])
@pytest.mark.parametrize("shape", [(48,), (6, 8)], ids=str)
def test_directions_of_each_examples_own_lower_the_error_by_the_known_factor(examples: int, s: int, shape: tuple[int, ...]) -> None:
    """Shared: d (1 + s / B) - 1, per example: (d (1 + s) - 1) / B, both times |g|^2, of sign directions in d dimensions."""
    d = math.prod(shape)
    generator = torch.Generator().manual_seed(7)
    slope = torch.randn(shape, generator=generator)
    size = float(slope.square().sum())
    weight = nn.Parameter(torch.zeros(shape))
    batches = []
    for _ in range(1600):  # of gradients, with tr Cov = s |slope|^2
        signs = torch.randint(2, (examples, *shape), generator=generator) * 2.0 - 1
        batches.append(slope + signs * math.sqrt(s * size / d))

    def objective(gradients: torch.Tensor) -> torch.Tensor:  # <gradient, weight>
        if weight.ndim == 1:
            return (gradients * weight).sum(1)
        return F.linear(gradients, weight).diagonal(dim1=1, dim2=2).sum(1)

    def errors(name: str, **settings: Any) -> list[float]:
        opt = made(name, [("w", weight)], lr=1.0, eps=1.0, distribution="rademacher", **settings)
        found = []
        for gradients in batches:
            weight.data.zero_()
            opt.step(objective, gradients)
            found.append(float((-weight.detach() - slope).square().sum()) / size)
        return found

    shared, own = errors("mezo"), errors("per-example", standardised=False)
    assert off(shared, d * (1 + s / examples) - 1) < SIGMAS
    assert off(own, (d * (1 + s) - 1) / examples) < SIGMAS
    gain, relative = np.mean(shared) / np.mean(own), math.hypot(*(np.std(e) / np.mean(e) / 40 for e in (shared, own)))
    assert relative < 0.045
    assert gain == pytest.approx((examples + s) / (1 + s), rel=SIGMAS * relative)


def test_kerzoos_radii_are_uniform_and_its_kernel_keeps_the_first_order_and_cancels_the_third() -> None:
    opt, radii = made("kerzoo", Layer("linear")), []
    for step in range(4000):
        opt.go_on(step, 0, 0)
        radii.append(opt.radius)
    r = np.array(radii)
    kernel = 15 / 4 * r * (5 - 7 * r**2)
    assert np.abs(r).max() <= 1
    for values, expected in ((r, 0), (r**2, 1 / 3), (r**4, 1 / 5), (r * kernel, 1), (r**3 * kernel, 0)):
        assert off(values, expected) < SIGMAS


# What is kept, and exact products.


KEPT: dict[str, tuple[dict[str, Any], Callable[[int, int], int]]] = {
    "momentum": ({}, lambda m, n: 4 * (m * n + m)),
    "adam": ({}, lambda m, n: 8 * (m * n + m) + 16),  # and two powers of the betas
    "hizoo": ({}, lambda m, n: 4 * (m * n + m)),
    "meazo": ({}, lambda m, n: 16),
    "adamezo": ({"history": 5, "directions": 3}, lambda m, n: 5 * (8 + 3 * 4)),
    "lozo-m": ({"rank": 3}, lambda m, n: 4 * (3 * m + m) + 8),
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
"""Bytes of losses and differences of the last step, which are in no count."""


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


@pytest.mark.parametrize("name", ["lozo", "lozo-m", "subzero", "zo-muon"])
def test_factors_last_a_period_and_bases_are_orthonormal(name: str) -> None:
    opt = made(name, nn.Linear(40, 30), rank=8, period=3)
    slot = opt.slots[0]
    lasting, fresh = [], []
    for step in range(6):
        left, right = Directions(opt.family, opt.seed, step).factors(slot, [0])
        lasting.append((left if name == "zo-muon" else right)[0].clone())
        fresh.append((right if name == "zo-muon" else left)[0].clone())
    for same in (lasting[:3], lasting[3:]):
        assert torch.equal(same[0], same[1])
        assert torch.equal(same[0], same[2])
    assert not torch.allclose(lasting[0], lasting[3], atol=0.1)
    assert all(not torch.allclose(fresh[0], other, atol=0.1) for other in fresh[1:])
    if name in ("subzero", "zo-muon"):
        basis = lasting[0].double() / (math.sqrt(30) if name == "zo-muon" else 1)
        torch.testing.assert_close(basis @ basis.T, torch.eye(8).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("m", "k", "n"), [(3, 1, 4), (5, 64, 7), (200, 1000, 90), (4, 1 << 16, 4)])
@pytest.mark.parametrize("unit", [1.0, 1e-20, 3e15])
@pytest.mark.parametrize("cancels", [True, False])  # sums that do not are the largest
def test_an_exact_product_is_that_of_float64_and_the_same_bits_for_any_order_and_threads(
    m: int, k: int, n: int, unit: float, cancels: bool
) -> None:
    generator = torch.Generator().manual_seed(8)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) if cancels else 1 - torch.rand(shape, generator=generator) / 8

    a, b = values(m, k) * unit, values(k, n)
    found = exact.matmul(a, b)
    sizes = a.double().norm(dim=1)[:, None] * b.double().norm(dim=0)
    assert found.dtype == torch.float64
    assert float(((found - a.double() @ b.double()) / sizes).abs().max()) < 1e-6
    order = torch.randperm(k, generator=generator)
    assert torch.equal(exact.matmul(a[:, order], b[order]), found)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(exact.matmul(a, b), found)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("r", "n"), [(1, 1), (2, 3), (32, 32), (8, 3000), (64, 256)])
def test_orthonormal_rows_are_orthonormal_and_span_what_they_were_made_of(r: int, n: int) -> None:
    a = torch.randn(r, n, generator=torch.Generator().manual_seed(9))
    rows = exact.orthonormal(a).double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(r).double(), rtol=0, atol=1e-6)
    made_again = (a.double() @ rows.T) @ rows
    torch.testing.assert_close(made_again, a.double(), rtol=0, atol=1e-5)


def test_rows_that_are_drawn_as_zero_have_a_basis_too() -> None:
    for zero in (torch.zeros(1, 1), torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])):
        rows = exact.orthonormal(zero)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(zero)))


def test_orthonormal_rows_survive_rows_that_nearly_depend_on_each_other() -> None:
    a = torch.randn(3, 50, generator=torch.Generator().manual_seed(9))
    a[1] = a[0] + 1e-3 * a[1]
    rows = exact.orthonormal(a).double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(3).double(), rtol=0, atol=1e-6)
