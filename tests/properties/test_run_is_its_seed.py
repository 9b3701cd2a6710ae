"""A run is a function of weights, seed and batches: run again, saved and loaded, copied, under another default dtype."""

from __future__ import annotations

import copy
import io
import random

import numpy as np
import torch

from tests.oracles.methods import (
    Net,
    batch,
    every_method,
    every_method_in_split,
    same,
    stored,
)


@every_method_in_split
def test_a_run_is_reproducible_from_its_seed_whatever_the_global_generators_do(method, precision):
    runs = []
    for noise_seed, global_seed in ((3, 1), (3, 2), (4, 1)):
        net = Net()
        opt = method(net, lr=0.01, precision=precision, seed=noise_seed)
        torch.manual_seed(global_seed), np.random.seed(global_seed), random.seed(global_seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        for step in range(3):
            opt.step(net.losses, batch(seed=step))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
        runs.append(stored(opt))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@every_method_in_split
def test_a_saved_and_loaded_run_continues_bit_for_bit(method, precision):
    net, other = Net(), Net()
    opt = method(net, lr=0.01, weight_decay=0.1, precision=precision, seed=5)
    for step in range(3):
        opt.step(net.losses, batch(seed=step))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, file)
    for step in range(3, 6):
        opt.step(net.losses, batch(seed=step))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3)  # what the new run starts from does not matter, not even its scale
    resumed = method(other, lr=1.0, precision=precision, seed=6)
    other.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["opt"])
    assert resumed.param_groups[0]["lr"] == 0.01
    for step in range(3, 6):
        resumed.step(other.losses, batch(seed=step))
    assert same(stored(resumed), stored(opt))
    assert (resumed.steps, resumed.draws.seed) == (opt.steps, opt.draws.seed) == (6, 5)


@every_method
def test_a_copied_run_continues_bit_for_bit(method):
    net = Net()
    opt = method(net, lr=0.1, precision="split")
    opt.step(net.losses, batch())
    other, twin = copy.deepcopy((net, opt))
    for o, n in ((opt, net), (twin, other)):
        o.step(n.losses, batch(seed=1))
    assert same(stored(opt), stored(twin))


@every_method_in_split
def test_torchs_default_dtype_changes_no_bit(method, precision):
    def trained(default: torch.dtype) -> list[torch.Tensor]:
        net = Net()
        opt = method(net, lr=0.05, precision=precision)
        torch.set_default_dtype(default)
        try:
            for seed in range(3):
                opt.step(net.losses, batch(seed=seed))
        finally:
            torch.set_default_dtype(torch.float32)
        return stored(opt)

    assert same(trained(torch.bfloat16), trained(torch.float32))
