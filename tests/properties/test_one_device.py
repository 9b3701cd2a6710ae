"""All that a step makes lies where the weights lie: shown on a device without values, with every operation's operands compared."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.oracles import perturb_in_place
from tests.oracles.methods import FAMILIES, QUERIES, Net, batch, pairs, update_space
from zerograd import noise
from zerograd.directions import Draws
from zerograd.noise import reference
from zerograd.queries.plan import branches

pytestmark = pytest.mark.full

BETWEEN = {"_to_copy", "copy_", "index", "index_put_"}
"""Operations that every device allows between itself and the CPU."""


class OneDevice(TorchDispatchMode):
    """Refuses what an accelerator would refuse, and counts what it runs there."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        devices = {t.device for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim}
        if func.overloadpacket.__name__ not in BETWEEN and len(devices) > 1:
            raise AssertionError(f"{func} meets tensors of {devices}")
        self.seen += devices == {torch.device("meta")}
        return func(*args, **(kwargs or {}))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The reference as the back end, and the devices of the low-rank updates, which it cannot make without values."""
    updated: list[torch.device] = []

    def update_low_rank(weight, remainder, left, right, decay, rounding, first):
        updated.extend(t.device for t in (weight, remainder, left, right) if t is not None)

    names = ("fill", "perturb", "perturber", "update")
    backend = SimpleNamespace(**{name: getattr(reference, name) for name in names}, update_low_rank=update_low_rank)
    monkeypatch.setattr(noise, "backend", lambda weight: backend)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # it knows real devices only
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.zeros(self.shape, dtype=self.dtype))
    return updated


@pairs(dict.fromkeys(FAMILIES + QUERIES))
def test_scores_come_back_and_everything_else_stays_on_the_device(method, precision, kernels, monkeypatch):
    monkeypatch.setattr("zerograd.noise.exact.orthonormal", lambda rows: rows)  # which looks at values
    net = Net(tied=True).to("meta")
    opt = method(net, relative=False, precision=precision, self_check=False)
    directions = opt.draws.at(opt.steps)
    plan, tokens = opt.method.query.plan(4, opt.draws.at(opt.steps)), batch().to("meta")
    everywhere = Draws(dataclasses.replace(opt.method.draw, activity=None), opt.draws.seed)
    one = branches(1, [1], [-1.0])
    with OneDevice() as mode:
        assert perturb_in_place.scores(opt.spaces, directions, plan, net.losses, tokens).shape == (len(plan),)
        assert perturb_in_place.scores(opt.spaces, directions, plan, net.losses, tokens, micro_batch=3).shape == (len(plan),)
        assert perturb_in_place.scores_of_closure(opt.spaces, directions, one, lambda: net.losses(tokens).mean()).shape == (1,)
        for space in opt.spaces:
            update_space(space, everywhere, opt.steps, [0.1, 0.2])
    assert mode.seen > 100
    assert set(kernels) == ({torch.device("meta")} if any(opt.method.draw.rank_in(space) for space in opt.spaces) else set())


def test_operands_of_two_devices_are_noticed():
    with OneDevice(), pytest.raises(AssertionError, match="meta"):
        torch.ones(3, 3, device="meta") @ torch.ones(3, 3)
