"""Every method follows its published rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from published import CASES, EPS, LR, Layer, Run, data, flat, rule_of

from zerograd.optim import METHODS


def made(name: str, model: torch.nn.Module, **settings: Any) -> Any:
    return METHODS[name](model, **({"lr": LR, "eps": EPS, "relative": False, "seed": 6, "self_check": False} | settings))


def test_every_method_has_a_published_rule() -> None:
    assert {name for name, _, _ in CASES.values()} == set(METHODS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize(("relative", "decay"), [(False, 0.0), (True, 0.3)])
def test_three_steps_are_the_published_ones(case: str, kind: str, relative: bool, decay: float) -> None:
    model, batch = Layer(kind), data()
    name, settings, _ = CASES[case]
    opt = made(name, model, relative=relative, weight_decay=decay, **settings)
    run = Run(opt, lambda w: model.losses_in_float64(w, batch))
    rule, start = rule_of(case)(run), flat(opt)
    for run.step in range(3):
        change = next(rule)
        run.w = np.where(run.touched, (1 - LR * decay) * run.w, run.w) - change
        opt.step(model.losses, batch)
        np.testing.assert_allclose(flat(opt), run.w * run.scale, rtol=0, atol=1e-6)
    assert np.abs(run.w * run.scale - start).max() > 0.01
