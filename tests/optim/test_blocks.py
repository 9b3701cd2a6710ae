"""Methods that train some layers at a step."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from tests.oracles.layer import SIGMAS, Tower, made
from zerograd import noise


def block_of(name: str) -> str:
    return name.rpartition(".")[0]


def moves(opt: Any, objective: Any, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a step adds to the tensors that it changes."""
    before = [space.exact().clone() for space in opt.spaces]
    opt.step(objective, batch)
    changes = {space.name: space.exact() - was for space, was in zip(opt.spaces, before, strict=True)}
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
    blocks = opt.method.draw.activity.block_of
    assert len(set(blocks.values())) == (1 + 4) + (1 + 3)
    assert {space.name for space in opt.spaces if blocks[space.id] == 5} == {"group 1.embed.weight", "group 1.embed.bias"}


@pytest.mark.parametrize("name", ["block-wise", "random-layers"])
def test_a_block_that_a_step_leaves_is_not_perturbed_either(name: str) -> None:
    model = Tower(3)
    reads = [block_of(space.name) for space in made(name, model).spaces]
    differences = []
    for block in dict.fromkeys(reads):
        opt = made(name, model, lr=1e-6, distribution="gaussian", **({"share": 0.4} if name == "random-layers" else {}))
        for _ in range(4):
            own = {block_of(space.name) for space in opt.spaces if opt.method.draw.is_active(space, opt.draws.seed, opt.steps)}
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
        for space in opt.spaces:
            for step in range(50):
                opt.method.draw.is_active(space, opt.draws.seed, step)
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
