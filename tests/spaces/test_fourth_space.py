"""A space of the caller's own: integers on a grid, trained, replayed, saved and checked by code that knows nothing of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import zerograd as zg
from tests.oracles.methods import COMMON, Net, batch, exact, same
from zerograd import journal, noise
from zerograd.directions import Draws
from zerograd.evaluate.self_check import SelfCheckFailed
from zerograd.journal.snapshot import Snapshot
from zerograd.noise import Address
from zerograd.spaces import Rows, Space
from zerograd.update import Memory


class Grid(Space):
    """Multiples of 2^-12 as int16 codes, -8 to 8; the parameter shows codes * step. A value goes to the nearest."""

    precision = "grid"
    rounds = True
    step = 2.0**-12
    dtype_of_codes = torch.int16

    codes: torch.Tensor

    def adopt(self) -> None:
        values = self.parameter.detach().view(self.flat_rows, self.view[2])
        self.codes = self._within((values / self.step).round())
        self.parameter.data = (self.codes.float() * self.step).view(self.shape)

    def exact(self, rows: Rows = slice(None), columns: slice = slice(None)) -> torch.Tensor:
        return self.codes[rows, columns].float() * self.step

    def store(self, rows: slice, values: torch.Tensor, rounding: Address) -> None:
        self.codes[rows] = self._within(self.rounded(rows, values / self.step, rounding))
        self.weight(rows).copy_(self.exact(rows))

    def stored(self) -> dict[str, torch.Tensor]:
        return {"": self.parameter.detach(), ".codes": self.codes}

    def rounded(self, rows: slice, values: torch.Tensor, rounding: Address) -> torch.Tensor:
        return values.round()

    def _within(self, values: torch.Tensor) -> torch.Tensor:
        limits = torch.iinfo(self.dtype_of_codes)
        return values.clamp(limits.min, limits.max).to(self.dtype_of_codes)


class Coarse(Grid):
    """Multiples of 2^-5 as int8 codes, -4 to 4. A value goes to either neighbour, by chance, and is right on average."""

    precision = "coarse grid"
    step = 2.0**-5
    dtype_of_codes = torch.int8

    def rounded(self, rows: slice, values: torch.Tensor, rounding: Address) -> torch.Tensor:
        signs = torch.empty(8, len(values), values.shape[1])
        noise.backend(signs).fill(signs, "rademacher", rounding, range(8), torch.arange(rows.start, rows.stop), 0)
        chance = sum((bits + 1) * 2.0 ** -(i + 2) for i, bits in enumerate(signs))  # 0, 1 / 256, ..., 255 / 256
        return (values + chance).floor()


METHODS = {"mezo": zg.optim.MeZO, "per-example": zg.optim.PerExample, "adam": zg.optim.Adam}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_grid = pytest.mark.parametrize("grid", [pytest.param(Grid, marks=pytest.mark.full), Coarse])


def codes(opt: Any) -> list[torch.Tensor]:
    return [tensor.clone() for space in opt.spaces for tensor in space.stored().values()]


def run(method: Any, grid: type[Space], steps: int = 6, **settings: Any) -> tuple[Net, Any, list[Any]]:
    """(model, optimiser, records) after some steps."""
    net, records = Net(), list[Any]()
    opt = method(net, precision=grid, **({"lr": 0.05} | settings))
    opt.record = records.append
    for seed in range(steps):
        opt.step(net.losses, batch(seed=seed))
    return net, opt, records


@every_grid
def test_nothing_is_said_of_another_space(grid, recwarn):
    """The walk of bfloat16 is no matter of a grid's."""
    zg.optim.MeZO(Net(), precision=grid)
    assert not recwarn.list


@every_method
@every_grid
def test_it_is_trained(method, grid):
    net = Net()
    opt = method(net, precision=grid, lr=0.02)
    assert {type(space) for space in opt.spaces} == {grid}
    tokens = batch(8)
    before, first = codes(opt), float(opt.evaluate(net.losses, tokens).mean())
    for _ in range(60):
        opt.step(net.losses, tokens)
    assert float(opt.evaluate(net.losses, tokens).mean()) < first - 0.1
    assert not any(torch.equal(was, now) for was, now in zip(before, codes(opt), strict=True))
    for space in opt.spaces:
        assert space.codes.dtype == grid.dtype_of_codes
        assert torch.equal(space.parameter.detach().view_as(space.codes), space.codes * space.step)


@every_grid
def test_a_step_is_that_of_float32_rounded_once(grid):
    net, other = Net(), Net()
    opt = zg.optim.MeZO(net, precision=grid, lr=0.1, weight_decay=0.5, self_check=False)
    with torch.no_grad():
        for parameter, space in zip(other.parameters(), opt.spaces, strict=True):
            parameter.copy_(space.parameter)
    twin = zg.optim.MeZO(other, lr=0.1, weight_decay=0.5, self_check=False)
    opt.step(net.losses, batch())
    twin.step(other.losses, batch())
    reach = 0.5 if grid is Grid else 1.0
    for space, ours, whole in zip(opt.spaces, exact(opt), exact(twin), strict=True):
        assert float((ours - whole).abs().max()) <= reach * grid.step + 1e-5, space.name
    if grid is Coarse:  # which is right on average
        gaps = torch.cat([(ours - whole).flatten() for ours, whole in zip(exact(opt), exact(twin), strict=True)])
        assert abs(float(gaps.mean())) < 4.5 * float(gaps.std()) / len(gaps) ** 0.5


@every_method
@every_grid
def test_a_learning_rate_of_0_leaves_every_bit_for_50_steps(method, grid):
    net = Net()
    opt = method(net, precision=grid, lr=0.0, weight_decay=0.1)
    before = codes(opt)
    for seed in range(50):
        opt.step(net.losses, batch(seed=seed))
    assert opt.skipped == 0
    assert same(codes(opt), before)


@every_method
@every_grid
def test_recorded_steps_done_again_have_the_bits_of_the_run(method, grid):
    _, opt, records = run(method, grid, weight_decay=0.1)
    twin = method(Net(), precision=grid, lr=0.05)
    assert not same(codes(opt), codes(twin))
    parts = twin.settings.build()
    parts.draw.init(twin.spaces)
    groups = journal.fit(twin.spaces, journal.table(opt.spaces, opt.group_of), 1)
    journal.replay(Memory(parts.rule, parts.query, Draws(parts.draw, opt.draws.seed), twin.spaces, groups, 1), records)
    assert same(codes(opt), codes(twin))


@every_method
@every_grid
def test_a_saved_and_loaded_run_goes_on_bit_for_bit(method, grid):
    net, opt, _ = run(method, grid, steps=3)
    other, twin, _ = run(method, grid, steps=1, seed=7)
    saved = copy.deepcopy((net.state_dict(), opt.state_dict()))
    other.load_state_dict(saved[0])
    twin.load_state_dict(saved[1])
    assert same(codes(opt), codes(twin))
    for seed in range(3, 6):
        opt.step(net.losses, batch(seed=seed))
        twin.step(other.losses, batch(seed=seed))
    assert same(codes(opt), codes(twin))
    for precision in ("float32", Coarse if grid is Grid else Grid):
        with pytest.raises(ValueError, match=f"was saved in precision '{grid.precision}' and is here in"):
            method(Net(), precision=precision).load_state_dict(copy.deepcopy(saved[1]))


@every_grid
def test_a_snapshot_holds_it(grid, tmp_path: Path):
    net, opt, _ = run(zg.optim.Adam, grid, steps=2)
    snapshot, before = Snapshot(tmp_path / "snapshot", opt.spaces, opt.memory), codes(opt)
    kept = {name: tensor.clone() for name, tensor in opt.memory.tensors.items()}
    snapshot.take({"step": 2})
    opt.step(net.losses, batch(seed=9))
    assert not same(codes(opt), before)
    assert snapshot.about() == {"step": 2}
    snapshot.restore()
    assert same(codes(opt), before)
    assert all(torch.equal(opt.memory.tensors[name], tensor) for name, tensor in kept.items())


@every_grid
def test_a_journals_table_names_it_and_fits_no_other(grid):
    opt = zg.optim.MeZO(Net(), precision=grid)
    said = journal.table(opt.spaces, opt.group_of)
    assert {row["precision"] for row in said} == {grid.precision}
    assert journal.fit(zg.optim.MeZO(Net(), precision=grid).spaces, said, 1) == [0] * len(said)
    with pytest.raises(journal.WrongBase, match=f"in {grid.precision} in the journal and .* in float32 in this base"):
        journal.fit(zg.optim.MeZO(Net()).spaces, said, 1)


@pytest.mark.parametrize("method", [COMMON["mezo"], COMMON["rank1"], COMMON["sparse-mezo"]], ids=["dense", "low rank", "modulated"])
@every_grid
def test_the_self_check_compares_every_tensor_and_finds_a_fault(method, grid):
    net = Net()
    opt = method(net, precision=grid, self_check="full")
    before = codes(opt)
    opt.attach(net.losses, batch())
    assert same(codes(opt), before)
    other = method(net, precision=grid, self_check="full")
    hidden = net.hidden.weight.detach()  # which no perturbed forward sees

    def losses(tokens: torch.Tensor) -> torch.Tensor:
        return net.losses(tokens) + (net.embed(tokens).mean(1) @ hidden).square().sum(1)

    with pytest.raises(SelfCheckFailed, match=r"hidden\.weight"):
        other.step(losses, batch())
    assert same(codes(other), before)
