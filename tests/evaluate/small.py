"""A small model with a parameter for each way of perturbing, and how it is scored and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.oracles import perturb_in_place
from zerograd.directions import Dense, Draws, LowRank
from zerograd.evaluate.evaluator import LocalBatch
from zerograd.evaluate.self_check import self_check
from zerograd.queries import Plan
from zerograd.queries import plan as plans


@dataclass
class Sampled(LocalBatch):
    """An evaluator that gives the self-check all of its examples, under a plan of the test's own."""

    plan: Plan | None = None

    def sample(self) -> tuple[LocalBatch, Plan]:
        assert self.plan is not None
        return self, self.plan


def check(model: nn.Module, objective: Any, batch: Any, count: int, each: bool = False) -> None:
    spaces = perturb_in_place.spaces_of(model)
    directions = Draws(LowRank("gaussian") if each else Dense("gaussian"), 5).at(3)
    plan = plans.example_pairs(count) if each else plans.shared_pairs(count)
    self_check(Sampled.of(spaces, lambda b: objective(model, b), batch, plan=plan), directions, spaces, every=True)


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
    spaces = perturb_in_place.spaces_of(model)
    return perturb_in_place.scores(spaces, Draws(kind, 5).at(3), make_plan(count), lambda b: objective(model, b), batch)
