"""A small model with a parameter for each way of perturbing, and how it is scored and checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.oracles import perturb_in_place
from zerograd.directions.family import Directions, Family
from zerograd.evaluate.score import score_batch
from zerograd.evaluate.self_check import self_check
from zerograd.queries import plan as plans


def check(model: nn.Module, objective: Any, batch: Any, count: int, each: bool = False) -> None:
    slots = perturb_in_place.slots_of(model)
    directions = Directions(Family("gaussian", 1 if each else 0), 5, 3)
    plan = plans.example_pairs(count) if each else plans.shared_pairs(count)
    self_check(
        slots,
        directions,
        plan,
        lambda chosen: score_batch(chosen, directions, plan, lambda b: objective(model, b), batch),
        lambda: score_batch([], directions, plans.clean(count), lambda b: objective(model, b), batch),
        every=True,
    )


WIDTH = 8


class Small(nn.Module):
    """A model with a parameter for each way of perturbing: looked up, multiplied, convolved, scaled, added, and derived from."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 5)
        self.temperature = nn.Parameter(torch.tensor(0.3))
        self.decay = nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("seen", torch.zeros(3))
        with torch.no_grad():
            self.norm.bias.normal_()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y = self.table(ids) * -torch.exp(self.decay)
        y = y + self.mix(y.transpose(1, 2)).transpose(1, 2)
        y = torch.tanh(self.norm(y))
        return self.out(y) * self.temperature.exp()


def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def some_ids(examples: int, tokens: int = 6) -> dict[str, torch.Tensor]:
    return {"ids": torch.randint(0, 11, (examples, tokens), generator=torch.Generator().manual_seed(1))}


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch["ids"]).logsumexp((1, 2))


def score(model: nn.Module, objective: Any, batch: Any, count: int, family: str = "dense-shared") -> torch.Tensor:
    kind, make_plan = perturb_in_place.FAMILIES[family]
    slots = perturb_in_place.slots_of(model)
    return score_batch(slots, Directions(kind, 5, 3), make_plan(count), lambda b: objective(model, b), batch)
