"""Gains in the perturbed forward: as really perturbed gains and as plain torch operations on them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.oracles import perturb_in_place
from tests.quantised.tiny import random_rows
from tests.tiers import tiers
from zerograd.directions import Draws
from zerograd.quantised import FORMATS, Gain, pack
from zerograd.quantised.matrix import unpacked

EPS = 0.05


class Small(nn.Module):
    """A table, a layer with a bias and one without, all packed and with gains; or the same by plain operations on them."""

    def __init__(self, format: str, dtype: torch.dtype, plain: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        own = FORMATS[format]
        width = max(64, own.weights)
        self.table, self.up, self.down = nn.Embedding(11, width), nn.Linear(width, 96), nn.Linear(96, 16, bias=False)
        self.plain = plain
        for module, one in ((self.table, own), (self.up, own), (self.down, FORMATS["Q8_0"])):
            rows, columns = module.weight.shape
            blocks = random_rows(one, rows, columns)
            pack(module, blocks, one, dtype).gain = Gain.of(blocks, one, dtype)
            with torch.no_grad():
                module.gain.normal_(0, 0.1)
        self.up.bias = nn.Parameter(self.up.bias.detach().to(dtype))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if not self.plain:
            return self.down(torch.tanh(self.up(self.table(ids)))).float()
        table, up, down = (self._weight(module) for module in (self.table, self.up, self.down))
        hidden = F.linear(F.embedding(ids, table), up, self.up.bias)
        return F.linear(torch.tanh(hidden), down).float()

    def _weight(self, module: Any) -> torch.Tensor:
        exact = unpacked(module.weight, FORMATS[module.format], torch.float32)
        return (exact.view(*module.gain.shape, -1) * (1 + module.gain)[..., None]).view(exact.shape).to(module.dtype)


families = tiers("family", ["dense-shared", "rank1-each"], ["dense-gaussian-each", "rank1-shared"])


@families
@tiers("format", ["Q4_1", "Q5_K"], ["Q4_0", "Q8_0", "Q6_K"])
def test_scores_are_those_of_really_perturbed_gains(format: str, family: str) -> None:
    model, ids = Small(format, torch.float32), torch.arange(12).view(4, 3) % 11
    kind, make_plan = perturb_in_place.FAMILIES[family]
    directions, plan, spaces = Draws(kind, 5).at(3), make_plan(4), perturb_in_place.spaces_of(model)

    def objective(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return model(ids).logsumexp((1, 2))

    real = perturb_in_place.losses(model, spaces, directions, plan, objective, ids, perturb_in_place.Twins(), EPS)
    mine = perturb_in_place.scores(spaces, directions, plan, lambda ids: objective(model, ids), ids, EPS)
    torch.testing.assert_close(mine, real, rtol=1e-5, atol=1e-5)


@families
def test_scores_are_those_of_plain_operations_on_the_gains(family: str) -> None:
    """Which the perturbed forward computes a variant at a time."""
    ids = torch.arange(12).view(4, 3) % 11
    kind, make_plan = perturb_in_place.FAMILIES[family]
    found = []
    for plain in (False, True):
        model = Small("Q4_0", torch.float32, plain)
        spaces = perturb_in_place.spaces_of(model)
        objective = lambda ids, model=model: model(ids).square().mean((1, 2))  # noqa: E731
        found.append(perturb_in_place.scores(spaces, Draws(kind, 5).at(3), make_plan(4), objective, ids, EPS))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@families
def test_a_bfloat16_model_rounds_perturbed_weights_once(family: str) -> None:
    """The effect of a perturbation is that of perturbed gains, up to bfloat16's rounding of the activations."""
    model, exact, ids = Small("Q8_0", torch.bfloat16), Small("Q8_0", torch.float32), torch.arange(12).view(4, 3) % 11
    kind, make_plan = perturb_in_place.FAMILIES[family]
    found = []
    for one in (model, exact):
        objective = lambda ids, one=one: one(ids).square().mean((1, 2))  # noqa: E731
        spaces = perturb_in_place.spaces_of(one)
        found.append(perturb_in_place.scores(spaces, Draws(kind, 5).at(3), make_plan(4), objective, ids, EPS))
    torch.testing.assert_close(found[0], found[1], rtol=0.03, atol=0.03)


def test_the_unit_of_a_gain_is_one_and_its_work_that_of_its_weights() -> None:
    spaces = {space.name: space for space in perturb_in_place.spaces_of(Small("Q4_1", torch.bfloat16))}
    gain = spaces["up.gain"]
    gain.set_scale(relative=True)
    assert gain.scale == 1.0
    assert gain.multiplied == 96 * 64
    assert gain.read_as == torch.bfloat16
    assert gain.dtype == torch.float32
