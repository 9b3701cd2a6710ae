"""The mean of many estimates is the gradient, their spread is the known one, and steps go downhill."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zerograd as zg
from tests.oracles import perturb_in_place
from tests.oracles.methods import Net, batch, every_method_in_split, exact, plain_only, update_space
from tests.tiers import full, tiers
from zerograd.directions import Dense, Draws, LowRank
from zerograd.queries import plan as plans
from zerograd.spaces import collect

LIMIT = 4.5  # standard errors; seeds are fixed, so no test is flaky
FAMILIES = [make(d) for make in (Dense, LowRank, lambda d: LowRank(d, 2)) for d in ("rademacher", "gaussian")]


class Llama:
    """A random transformer of two thousand weights, its per-example losses, and its gradient by autograd in float64."""

    def __init__(self) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=32,
            max_position_embeddings=16,
            initializer_range=0.2,
            attention_bias=True,
            tie_word_embeddings=True,
        )
        self.model = LlamaForCausalLM(config).eval()
        self.tokens = torch.randint(32, (2, 5)).repeat(8, 1)  # many directions an example
        self.gradients = [self._gradient(example) for example in self.tokens]  # one an example
        self.gradient = [sum(parts) / len(self.tokens) for parts in zip(*self.gradients, strict=True)]

    def losses(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=tokens, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)

    def _gradient(self, example: torch.Tensor) -> list[torch.Tensor]:
        self.model.double().zero_grad()
        self.losses(example[None]).mean().backward()
        gradient = [p.grad.clone() for p in self.model.parameters()]
        self.model.zero_grad(set_to_none=True)
        self.model.float()
        return gradient


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama()


def dot(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def estimates(opt: Any, objective: Any, data: torch.Tensor, steps: int) -> list[list[torch.Tensor]]:
    """What single steps of lr=1 subtract, each from the same weights."""
    start = exact(opt)
    results = []
    for _ in range(steps):
        opt.step(objective, data)
        results.append([before.double() - after.double() for before, after in zip(start, exact(opt), strict=True)])
        for space, before in zip(opt.spaces, start, strict=True):
            space.parameter.data.copy_(before)
    return results


def z_score(samples: list[float], expected: float) -> tuple[float, float]:
    """(standard errors from the expectation, standard error)."""
    values = torch.tensor(samples, dtype=torch.float64)
    error = float(values.std()) / math.sqrt(len(samples))
    return (float(values.mean()) - expected) / error, error


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("relative", [True, False])
def test_a_central_difference_is_the_directional_derivative_of_its_example(llama, family, relative):
    spaces = collect(llama.model)
    for space in spaces:
        space.set_scale(relative)
    directions = Draws(family, 11).at(0)
    scores = perturb_in_place.scores(spaces, directions, plans.example_pairs(4), llama.losses, llama.tokens[:4], 1e-3).double()
    for b in range(4):
        z = [space.scale * directions.z(space, b) for space in spaces]
        derivative = dot(z, llama.gradients[b])
        assert float(scores[b] - scores[4 + b]) / 2e-3 == pytest.approx(derivative, rel=0.01, abs=0.01)


METHODS = {
    "mezo-rademacher": (zg.optim.MeZO, {"distribution": "rademacher"}, 170),
    "mezo-gaussian": (zg.optim.MeZO, {"distribution": "gaussian"}, 170),
    "rank1-rademacher": (zg.optim.PerExample, {"rank": 1, "distribution": "rademacher", "standardised": False}, 60),
    "rank1-gaussian": (zg.optim.PerExample, {"rank": 1, "distribution": "gaussian", "standardised": False}, 60),
    "rank2-rademacher": (zg.optim.PerExample, {"rank": 2, "distribution": "rademacher", "standardised": False}, 60),
    "rank2-gaussian": (zg.optim.PerExample, {"rank": 2, "distribution": "gaussian", "standardised": False}, 60),
}


@pytest.mark.full
@pytest.mark.parametrize(("method", "settings", "steps"), METHODS.values(), ids=METHODS)
def test_the_mean_step_is_the_gradient_of_autograd(llama, method, settings, steps):
    opt = method(llama.model, lr=1.0, eps=1e-3, relative=False, seed=2, **settings)
    samples = estimates(opt, llama.losses, llama.tokens, steps)
    gradient = llama.gradient
    size = math.sqrt(dot(gradient, gradient))
    torch.manual_seed(1)
    noise = [torch.randn(g.shape, dtype=torch.float64) for g in gradient]
    probes = {
        "gradient": gradient,
        "random": noise,
        "signs": [g.sign() for g in gradient],
        **{
            f"gradient of {space.name}": [g if i == j else torch.zeros_like(g) for j, g in enumerate(gradient)]
            for i, space in enumerate(opt.spaces)
        },
    }
    for name, probe in probes.items():
        unit = math.sqrt(dot(probe, probe))
        if unit == 0:
            continue
        z, error = z_score([dot(s, probe) / unit for s in samples], dot(gradient, probe) / unit)
        assert abs(z) < LIMIT, f"{name}: {z:.1f} standard errors off"
        assert error < 0.12 * size, f"{name}: too few steps to see a bias"


# Spread: E|estimate|^2 over |gradient|^2 for a linear function of d dimensions and n directions.

ROWS, COLUMNS = 2, 3
SPREAD = {
    "vector-rademacher-1": ((6,), 1, "rademacher", 1, lambda d, n: (d + n - 1) / n),
    "vector-rademacher-4": ((6,), 1, "rademacher", 4, lambda d, n: (d + n - 1) / n),
    "vector-gaussian-1": ((6,), 1, "gaussian", 1, lambda d, n: (d + n + 1) / n),
    "vector-gaussian-4": ((6,), 1, "gaussian", 4, lambda d, n: (d + n + 1) / n),
    "rank1-rademacher-4": ((ROWS, COLUMNS), 1, "rademacher", 4, lambda d, n: (d + n - 1) / n),
    "rank1-gaussian-4": ((ROWS, COLUMNS), 1, "gaussian", 4, lambda d, n: ((ROWS + 2) * (COLUMNS + 2) + n - 1) / n),
}


@pytest.mark.full
@pytest.mark.parametrize(("shape", "rank", "distribution", "n", "factor"), SPREAD.values(), ids=SPREAD)
def test_the_second_moment_of_an_estimate_is_the_known_multiple(shape, rank, distribution, n, factor):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(shape))
    slope = torch.randn(ROWS * COLUMNS)
    opt = zg.optim.PerExample(
        [("w", weight)], lr=1.0, eps=1.0, rank=rank, standardised=False, relative=False, distribution=distribution
    )

    def objective(x: torch.Tensor) -> torch.Tensor:  # <slope, w> for every example
        rows = x.view(-1, ROWS, COLUMNS)
        product = rows * weight if weight.ndim == 2 else x * weight
        return product.reshape(len(x), -1).sum(1)

    samples = estimates(opt, objective, slope.repeat(n, 1), 700)
    ratios = [float(s[0].square().sum() / slope.double().square().sum()) for s in samples]
    z, error = z_score(ratios, factor(ROWS * COLUMNS, n))
    assert abs(z) < LIMIT
    assert error < factor(ROWS * COLUMNS, n) / 6


# Precision of many small updates.


@tiers("family", [Dense()], [Dense("gaussian"), LowRank()], ids=str)
@tiers("precision", ["split"], ["float32"])
def test_a_thousand_small_updates_follow_float64(family, precision):
    torch.manual_seed(0)
    space = collect([("w", nn.Parameter(torch.randn(16, 24)))], precision)[0]
    start = space.exact().detach().double().clone()
    expected = torch.zeros_like(start)
    for step in range(1000):
        draws = Draws(family, 3)
        expected -= 1e-5 * draws.at(step).z(space, 0)
        update_space(space, draws, step, [1e-5])
    change = space.exact().detach().double() - start
    assert float(F.cosine_similarity(change.view(1, -1), expected.view(1, -1))) > 0.9999
    assert float(change.norm() / expected.norm()) == pytest.approx(1, abs=5e-3)


def test_bfloat16_updates_below_half_an_ulp_add_up_on_average():
    space = collect([("w", nn.Parameter(torch.ones(64, 64)))], "bfloat16")[0]
    for step in range(200):
        update_space(space, Draws(Dense(), 3), step, [], decay=1 - 1e-4)  # the ulp is 0.004
    z, error = z_score(space.exact().detach().flatten().tolist(), (1 - 1e-4) ** 200)
    assert abs(z) < LIMIT
    assert error < 1e-3


# Learning.


@every_method_in_split
def test_forty_steps_go_downhill(method, precision):
    net, tokens = Net(), batch(8)
    opt = method(net, precision=precision)
    opt.param_groups[0]["lr"] = 0.01 if opt.method.per_example else 0.03
    first = float(opt.evaluate(net.losses, tokens).mean())
    for _ in range(200 if method is zg.optim.BlockWise else 40):  # of which a tensor sees a few
        opt.step(net.losses, tokens)
    assert float(opt.evaluate(net.losses, tokens).mean()) < first - 0.03


@full  # 300 steps: near the second that a quick test may take
@plain_only
@pytest.mark.parametrize(("precision", "left"), [("float32", 1e-3), ("split", 3e-2)])
def test_a_quadratic_of_25_dimensions_is_solved_within_600_queries(method, precision, left):
    generator = torch.Generator().manual_seed(0)
    matrix, vector = (nn.Parameter(torch.randn(s, generator=generator)) for s in ((4, 5), (5,)))
    opt = method([("m", matrix), ("v", vector)], lr=1 / 27, eps=1e-2, relative=False, precision=precision)

    def objective(x: torch.Tensor) -> torch.Tensor:  # (|m|^2 + |v|^2) / 2 for every example. x: (examples, 5, 5) identities
        rows = F.linear(x.to(matrix.dtype), matrix)
        return (rows.float().square().sum((1, 2)) + (x[:, :, 0] * 0 + 1).mul(vector).float().square().sum(1)) / 2

    x = torch.eye(5).repeat(4, 1, 1)
    first = float(opt.evaluate(objective, x)[0])
    while opt.forwards < 600:
        opt.step(objective, x)
    assert sum(float(w.square().sum()) for w in exact(opt)) / 2 < left * first
