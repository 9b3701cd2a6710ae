"""Recorded steps, done again, give the bits of the run."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zerograd as zg
from tests.oracles.methods import Net, batch, every_rule_in_every_precision, pass_sharing_only, same, stored
from zerograd import journal, noise
from zerograd.directions import Draws
from zerograd.journal import (
    Note,
    Restore,
    Skip,
    Step,
)
from zerograd.noise import reference
from zerograd.update import Memory


def a_run(method: Any, precision: str, steps: int = 7) -> tuple[Any, list[Any], list[list[torch.Tensor]]]:
    """(optimiser, records, weights before and after each step) of a run with a skipped step.

    It has two groups of their own radii, decay, and a schedule.
    """
    net = Net()
    named = dict(net.named_parameters())
    groups = [{"params": [(n, p) for n, p in named.items() if "norm" not in n], "weight_decay": 0.1}]
    groups += [{"params": [(n, p) for n, p in named.items() if "norm" in n], "lr": 0.02, "eps": 0.03}]
    opt = method(groups, lr=0.1, precision=precision, self_check=False)
    records: list[Any] = []
    opt.record = records.append
    weights = [stored(opt)]
    for step in range(steps):
        opt.param_groups[0]["lr"] = 0.1 / (1 + step)
        opt.param_groups[0]["weight_decay"] = 0.1 * (step % 3 > 0)
        bad = torch.tensor(torch.nan if step == 2 else 1.0)
        opt.step(lambda b, bad=bad: net.losses(b) * bad, batch(seed=step))
        weights.append(stored(opt))
    return opt, records, weights


def replayed(method: Any, precision: str, opt: Any, steps: list[Step]) -> list[torch.Tensor]:
    net = Net()
    fresh = method(net, precision=precision, self_check=False)
    names = [space.name for space in opt.spaces]
    fresh.spaces.sort(key=lambda space: names.index(space.name))
    groups = journal.fit(fresh.spaces, journal.table(opt.spaces, opt.group_of), 2)
    parts = fresh.settings.build()
    parts.draw.init(fresh.spaces)
    journal.replay(Memory(parts.rule, parts.query, Draws(parts.draw, opt.draws.seed), fresh.spaces, groups, 2), steps)
    return stored(fresh)


@every_rule_in_every_precision
def test_a_replay_has_the_bits_of_the_run(method, precision, monkeypatch, recwarn):
    opt, records, weights = a_run(method, precision)
    assert [type(record) for record in records] == [Step, Step, Skip, Step, Step, Step, Step]
    for at in range(len(weights)):
        assert same(replayed(method, precision, opt, journal.path(records, at)), weights[at])
    whole = replayed(method, precision, opt, journal.path(records))
    assert same(whole, weights[-1])
    for chunk in (1, 2, 3):
        monkeypatch.setattr(importlib.import_module("zerograd.journal.replay"), "STEPS_AT_A_TIME", chunk)
        assert same(replayed(method, precision, opt, journal.path(records)), whole)
    threads = torch.get_num_threads()
    try:
        for some in (1, 2, 4):
            torch.set_num_threads(some)
            assert same(replayed(method, precision, opt, journal.path(records)), whole)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(noise, "backend", lambda weight: reference)
    assert same(replayed(method, precision, opt, journal.path(records)), whole)


@pass_sharing_only
def test_many_steps_share_a_pass_over_a_tensor(method, monkeypatch, recwarn):
    """Without decay as many as a pass takes; each step of its own where weights decay in between or are rounded at random."""
    net = Net()
    opt = method(net, lr=0.1, precision="split", self_check=False)
    records: list[Any] = []
    opt.record = records.append
    for step in range(6):
        opt.step(net.losses, batch(seed=step))
    passes = []
    kernels = noise.backend(torch.empty(1, 1))
    for name in ("update", "update_low_rank"):
        real = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, real=real: (passes.append(1), real(*a)))
    journal.replay(opt.memory, records)
    assert len(passes) == len(opt.spaces)
    passes.clear()
    decayed = [dataclasses.replace(step, decays=np.float32([0.9])) for step in records]
    journal.replay(opt.memory, decayed)
    assert len(passes) == len(opt.spaces) * len(records)


@pytest.mark.full
@settings(max_examples=60)
@given(st.lists(st.sampled_from(["step", "skip", "back", "note"]), max_size=14), st.data())
def test_the_path_leads_to_the_weights_of_the_run(acts, data):
    """Steps, skipped steps and ways back, in any order: the weights after the n-th step, and at the end."""
    net = Net()
    opt = zg.optim.MeZO(net, lr=0.1, self_check=False)
    records: list[Any] = []
    opt.record = records.append
    at = [stored(opt)]
    for act in acts:
        if act == "note":
            records.append(Note({}))
        elif act == "back":
            step = data.draw(st.integers(0, opt.steps))
            records.append(Restore(step, {}))
            for space, bits in zip(opt.spaces, at[step], strict=True):
                space.parameter.data.copy_(bits.view(space.parameter.dtype))
        else:
            factor = torch.nan if act == "skip" else 1.0
            opt._skips_in_row = 0
            opt.step(lambda b, factor=factor: net.losses(b) * factor, batch(seed=opt.steps))
            at.append(stored(opt))
    assert same(replayed(zg.optim.MeZO, "float32", opt, journal.path(records)), stored(opt))
    some = data.draw(st.integers(0, opt.steps))
    assert same(replayed(zg.optim.MeZO, "float32", opt, journal.path(records, some)), at[some])
