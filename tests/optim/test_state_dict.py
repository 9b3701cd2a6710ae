"""`state_dict` and `load_state_dict`: tensor by tensor, and what is refused changes nothing."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

import zerograd as zg
from tests.oracles.methods import (
    Net,
    batch,
    every_precision,
    same,
    stored,
)
from zerograd.optim.base import SKIPS_BEFORE_ERROR, NotFinite


@every_precision
def test_a_run_over_groups_of_unnamed_parameters_is_saved_tensor_by_tensor(precision):
    runs = []
    for reload in (False, True):
        net = Net()
        opt = zg.optim.MeZO([{"params": [p]} for p in net.parameters()], lr=0.01, precision=precision)
        opt.step(net.losses, batch())
        if reload:
            opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        opt.step(net.losses, batch(seed=1))
        runs.append(stored(opt))
    assert same(*runs)


def test_groups_of_modules_with_the_same_names_are_saved_apart():
    torch.manual_seed(0)
    parts = [nn.Linear(3, 3), nn.Linear(3, 3)]
    opt = zg.optim.MeZO([{"params": part} for part in parts], precision="split")
    assert [space.name for space in opt.spaces] == ["weight", "bias", "group 1.weight", "group 1.bias"]
    for i, space in enumerate(opt.spaces):
        space.remainder.fill_(i)
    before, saved = stored(opt), copy.deepcopy(opt.state_dict())
    for space in opt.spaces:
        space.remainder.zero_()
    opt.load_state_dict(saved)
    assert same(stored(opt), before)


def test_a_state_of_other_groups_is_refused_and_changes_nothing():
    opt = zg.optim.MeZO(Net(), precision="split")
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["zerograd"]["spaces"].values():
        entry["saved"][".remainder"] += 1
    saved["param_groups"].append(saved["param_groups"][0])
    before = stored(opt)
    with pytest.raises(ValueError, match="group"):
        opt.load_state_dict(saved)
    with pytest.raises(KeyError, match="not of a zerograd optimiser"):
        opt.load_state_dict(torch.optim.SGD(Net().parameters(), lr=0.1).state_dict())
    assert same(stored(opt), before)


def bare(opt: Any) -> dict[str, Any]:
    """What an optimiser would save, as texts."""
    saved = copy.deepcopy(opt.state_dict())
    return {name: repr(value) for name, value in (saved | saved.pop("zerograd")).items()}


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        (zg.optim.Momentum, zg.optim.MeZO),
        (zg.optim.SubZero, functools.partial(zg.optim.SubZero, period=2)),
        (functools.partial(zg.optim.RandomLayers, share=0.5), zg.optim.RandomLayers),
        (functools.partial(zg.optim.PerExample, rank=2), zg.optim.PerExample),
    ],
)
def test_a_state_of_other_settings_is_refused_and_changes_nothing(saved, loaded):
    net = Net()
    opt, other = saved(net, lr=0.5, seed=3), loaded(Net())
    opt.step(net.losses, batch())
    had = bare(other)
    with pytest.raises(ValueError, match="build the optimiser as it was"):
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert bare(other) == had


def test_a_state_of_other_shapes_is_refused_and_changes_nothing():
    opt, other = (zg.optim.Momentum(nn.Linear(width, 3), lr=lr, seed=width) for width, lr in ((3, 0.1), (4, 0.2)))
    had = bare(other)
    with pytest.raises(ValueError, match=r"weight was saved with view \(1, 3, 3\), .* and has \(1, 3, 4\) here; build"):
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert bare(other) == had


@pytest.mark.parametrize("spoil", [lambda memory: memory.pop("path"), lambda memory: memory.update(path=torch.zeros(3).long())])
def test_a_memory_of_other_tensors_is_refused_and_changes_nothing(spoil):
    opt, other = (zg.optim.Momentum(nn.Linear(3, 3), lr=lr) for lr in (0.1, 0.2))
    saved, had = copy.deepcopy(opt.state_dict()), bare(other)
    spoil(saved["zerograd"]["memory"])
    with pytest.raises(ValueError, match="of other tensors; build the optimiser as it was"):
        other.load_state_dict(saved)
    assert bare(other) == had


def test_a_loaded_run_has_skipped_as_many_steps_in_a_row_as_the_saved_one():
    net = Net()
    opt, other = zg.optim.MeZO(net, self_check=False), zg.optim.MeZO(Net())
    clean = copy.deepcopy(opt.state_dict())
    for _ in range(SKIPS_BEFORE_ERROR - 1):
        opt.step(lambda tokens: net.losses(tokens) * torch.nan, batch())
    with pytest.raises(NotFinite):
        opt.step(lambda tokens: net.losses(tokens) * torch.nan, batch())
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert opt.is_stuck
    assert other.is_stuck
    opt.load_state_dict(clean)
    assert not opt.is_stuck


def test_loading_a_state_that_lacks_a_tensor_names_it_and_changes_nothing():
    opt = zg.optim.MeZO(Net(), precision="split")
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["zerograd"]["spaces"].values():
        entry["saved"][".remainder"] += 1
    del saved["zerograd"]["spaces"]["norm.weight"]
    before = stored(opt)
    with pytest.raises(KeyError, match=r"norm\.weight"):
        opt.load_state_dict(saved)
    assert same(stored(opt), before)


@pytest.mark.parametrize(("saved", "loaded"), [("float32", "split"), ("split", "float32"), ("split", "bfloat16")])
def test_a_state_of_another_precision_is_refused(saved, loaded):
    state = zg.optim.MeZO(Net(), precision=saved).state_dict()
    opt = zg.optim.MeZO(Net(), precision=loaded)
    with pytest.raises(ValueError, match=r"precision|remainder"):
        opt.load_state_dict(copy.deepcopy(state))
