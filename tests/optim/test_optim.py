"""Every method is a torch optimiser whose step is a function of (weights, seed, step, batch)."""

from __future__ import annotations

import copy
import functools
import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zerograd as zg
from tests.oracles.methods import (
    Net,
    batch,
    every_method,
    every_storage,
    exact,
    mezo_only,
    per_example_only,
    same,
    shared_only,
    stored,
)
from zerograd.directions.family import Directions, Family
from zerograd.evaluate.score import score_batch
from zerograd.optim.base import SKIPS_BEFORE_ERROR, NotFinite
from zerograd.queries import plan as plans
from zerograd.spaces import weights
from zerograd.update import apply

# A step is a function of weights, seed, step and batch.


@every_method
@every_storage
def test_a_run_is_reproducible_from_its_seed_whatever_the_global_generator_does(method, storage):
    runs = []
    for noise_seed, global_seed in ((3, 1), (3, 2), (4, 1)):
        net = Net()
        opt = method(net, lr=0.01, storage=storage, seed=noise_seed)
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        for step in range(3):
            opt.step(net.losses, batch(seed=step))
        assert torch.equal(torch.get_rng_state(), before)
        runs.append(stored(opt))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@every_method
@every_storage
def test_a_saved_and_loaded_run_continues_bit_for_bit(method, storage):
    net, other = Net(), Net()
    opt = method(net, lr=0.01, weight_decay=0.1, storage=storage, seed=5)
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
    resumed = method(other, lr=1.0, storage=storage, seed=6)
    other.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["opt"])
    assert resumed.param_groups[0]["lr"] == 0.01
    for step in range(3, 6):
        resumed.step(other.losses, batch(seed=step))
    assert same(stored(resumed), stored(opt))
    assert (resumed.steps, resumed.seed) == (opt.steps, opt.seed) == (6, 5)


@every_storage
def test_a_run_over_groups_of_unnamed_parameters_is_saved_tensor_by_tensor(storage):
    runs = []
    for reload in (False, True):
        net = Net()
        opt = zg.optim.MeZO([{"params": [p]} for p in net.parameters()], lr=0.01, storage=storage)
        opt.step(net.losses, batch())
        if reload:
            opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        opt.step(net.losses, batch(seed=1))
        runs.append(stored(opt))
    assert same(*runs)


def test_groups_of_modules_with_the_same_names_are_saved_apart():
    torch.manual_seed(0)
    parts = [nn.Linear(3, 3), nn.Linear(3, 3)]
    opt = zg.optim.MeZO([{"params": part} for part in parts], storage="split")
    assert [slot.name for slot in opt.slots] == ["weight", "bias", "group 1.weight", "group 1.bias"]
    for i, slot in enumerate(opt.slots):
        slot.remainder.fill_(i)
    before, saved = stored(opt), copy.deepcopy(opt.state_dict())
    for slot in opt.slots:
        slot.remainder.zero_()
    opt.load_state_dict(saved)
    assert same(stored(opt), before)


def test_a_state_of_other_groups_is_refused_and_changes_nothing():
    opt = zg.optim.MeZO(Net(), storage="split")
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["zerograd"]["slots"].values():
        entry["remainder"] += 1
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
    with pytest.raises(ValueError, match="of other tensors; build the optimiser as it was"):
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
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


def test_a_parameter_in_two_groups_is_refused_before_it_is_stored_anew():
    net = Net()
    with pytest.raises(ValueError, match=r"head\.weight is in two parameter groups"):
        zg.optim.MeZO([{"params": net}, {"params": [("head.weight", net.head.weight)]}], storage="split")
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_loading_a_state_that_lacks_a_tensor_names_it_and_changes_nothing():
    opt = zg.optim.MeZO(Net(), storage="split")
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["zerograd"]["slots"].values():
        entry["remainder"] += 1
    del saved["zerograd"]["slots"]["norm.weight"]
    before = stored(opt)
    with pytest.raises(KeyError, match=r"norm\.weight"):
        opt.load_state_dict(saved)
    assert same(stored(opt), before)


@pytest.mark.parametrize(("saved", "loaded"), [("float32", "split"), ("split", "float32"), ("split", "bfloat16")])
def test_a_state_of_another_storage_is_refused(saved, loaded):
    state = zg.optim.MeZO(Net(), storage=saved).state_dict()
    opt = zg.optim.MeZO(Net(), storage=loaded)
    with pytest.raises(ValueError, match=r"storage|remainder"):
        opt.load_state_dict(copy.deepcopy(state))


@every_method
def test_a_copied_run_continues_bit_for_bit(method):
    net = Net()
    opt = method(net, lr=0.1, storage="split")
    opt.step(net.losses, batch())
    other, twin = copy.deepcopy((net, opt))
    for o, n in ((opt, net), (twin, other)):
        o.step(n.losses, batch(seed=1))
    assert same(stored(opt), stored(twin))


# The update is the documented formula.


def moved(opt: Any, net: Net, **step: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    before = exact(opt)
    opt.step(net.losses, batch(), **step)
    return before, exact(opt)


@mezo_only
@pytest.mark.parametrize("relative", [True, False])
def test_mezo_subtracts_lr_times_the_projected_gradient_times_the_direction(method, relative):
    net = Net()
    groups = [
        {"params": net.embed, "lr": 0.3, "eps": 1e-2},
        {"params": [*net.hidden.named_parameters(), *net.norm.named_parameters(prefix="norm")], "weight_decay": 0.5},
        {"params": net.head.parameters(), "eps": 3e-3},
    ]
    opt = method(groups, lr=0.1, eps=1e-3, relative=relative, seed=9)
    before, after = moved(opt, net)
    directions = Directions(opt.family, 9, 0)
    settings = dict(zip(range(6), [(0.3, 1e-2, 0), *[(0.1, 1e-3, 0.5)] * 4, (0.1, 3e-3, 0)], strict=True))
    for i, slot in enumerate(opt.slots):
        lr, eps, decay = settings[i]
        z = directions.z(slot, 0)
        expected = (1 - lr * decay) * before[i] - lr / eps * opt.info.difference * slot.scale * z
        torch.testing.assert_close(after[i], expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(after[i], before[i])


@per_example_only
def test_a_per_example_update_is_the_weighted_mean_of_directions(method):
    net = Net()
    opt = method(net, lr=0.1, eps=1e-2, seed=9)
    directions = Directions(opt.family, 9, 0)
    for slot in opt.slots:
        slot.eps = 1e-2
    scores = score_batch(opt.slots, directions, plans.example_pairs(4), net.losses, batch())
    d = (scores[:4] - scores[4:]) / 2
    a = d / d.std() if opt.standardised else d / 1e-2
    before, after = moved(opt, net)
    for i, slot in enumerate(opt.slots):
        mean = sum(a[b] * directions.z(slot, b) for b in range(4)) / 4
        torch.testing.assert_close(after[i], before[i] - 0.1 * slot.scale * mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", [Family(), Family("gaussian"), Family(rank=1), Family("gaussian", 3)], ids=str)
@pytest.mark.parametrize("shape", [(), (7,), (5, 9), (3, 5, 9), (40, 3)], ids=str)
@pytest.mark.parametrize("rows", [8192, 16])
def test_an_update_subtracts_the_directions_that_z_gives_in_every_shape(family, shape, rows, monkeypatch):
    monkeypatch.setattr(apply, "ROWS", rows)
    slot = weights.collect([("w", nn.Parameter(torch.randn(shape)))], None)[0]
    slot.scale = 0.7
    directions = Directions(family, 1, 2)
    expected = slot.exact() * 0.9
    for direction, multiplier in ((4, 0.25), (1, -2.0)):
        expected = expected - multiplier * 0.7 * directions.z(slot, direction)
    apply.update(slot, directions, [4, 1], [0.25, -2.0], 0.9)
    torch.testing.assert_close(slot.exact(), expected, rtol=1e-5, atol=1e-6)


@every_storage
def test_weight_decay_is_decoupled_from_the_loss(storage):
    net = Net()
    opt = zg.optim.MeZO(net, lr=0.5, weight_decay=0.25, storage=storage)
    before = exact(opt)
    opt.step(lambda tokens: net.losses(tokens) * 0, batch())  # no slope: decay is all that is left
    for a, b in zip(exact(opt), before, strict=True):
        expected = b * 0.875
        torch.testing.assert_close(a, expected, rtol=2**-7 if storage == "bfloat16" else 1e-6, atol=0)


@every_method
def test_a_group_with_a_learning_rate_of_0_stays_and_the_others_move_as_they_would(method):
    net, other = Net(), Net()
    still = method([{"params": net.embed, "lr": 0.0}, {"params": [net.hidden.weight, net.head.weight]}], lr=0.1)
    every = method([{"params": other.embed}, {"params": [other.hidden.weight, other.head.weight]}], lr=0.1)
    before = exact(still)
    still.step(net.losses, batch())
    every.step(other.losses, batch())
    assert torch.equal(exact(still)[0], before[0])
    assert same(exact(still)[1:], exact(every)[1:])
    for seed in range(8):  # a step need not touch every layer
        every.step(other.losses, batch(seed=seed))
    assert not torch.equal(exact(every)[0], before[0])


@every_method
def test_a_learning_rate_schedule_acts_on_the_steps_after_it(method):
    net, other = Net(), Net()
    opt, twin = method(net, lr=0.1), method(other, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    for step in range(3):
        opt.step(net.losses, batch(seed=step))
        schedule.step()
        twin.param_groups[0]["lr"] = 0.1 * 0.5**step
        twin.step(other.losses, batch(seed=step))
    assert same(stored(opt), stored(twin))


def test_a_parameter_group_that_is_added_later_is_refused():
    net = Net()
    opt = zg.optim.MeZO(net.embed, lr=0.1)
    opt.step(net.losses, batch())
    with pytest.raises(ValueError, match="build a new optimiser"):
        opt.add_param_group({"params": [net.head.weight]})
    assert len(opt.param_groups) == 1


# Evaluation.


def test_fzoo_subtracts_the_mean_of_its_directions_weighted_by_standardised_losses():
    net = Net()
    opt = zg.optim.FZOO(net, lr=0.1, eps=1e-2, directions=5, seed=9)
    directions = Directions(opt.family, 9, 0)
    for slot in opt.slots:
        slot.eps = 1e-2
    plan = plans.population(4, 5)
    assert len(plan) == 24
    assert plan.variants[-1].sign == 0
    losses = score_batch(opt.slots, directions, plan, net.losses, batch()).view(6, 4).mean(1)
    torch.testing.assert_close(losses[5], net.losses(batch()).mean())
    a = (losses[:5] - losses[5]) / (losses[:5] - losses[5]).std()
    before, after = moved(opt, net)
    for i, slot in enumerate(opt.slots):
        mean = sum(a[n] * directions.z(slot, n) for n in range(5)) / 5
        torch.testing.assert_close(after[i], before[i] - 0.1 * slot.scale * mean, rtol=1e-4, atol=1e-6)


@shared_only
@pytest.mark.parametrize("relative", [True, False])
def test_a_closure_and_a_batch_give_the_same_step(method, relative):
    net, other = Net(), Net()
    opt, twin = (method(n, lr=0.1, eps=1e-2, relative=relative) for n in (net, other))
    for seed in range(3):
        before = exact(opt)
        loss = opt.step(net.losses, batch(seed=seed))
        same_loss = twin.step(lambda seed=seed: other.losses(batch(seed=seed)).mean())
        assert math.isclose(loss, same_loss, rel_tol=1e-5)
        assert math.isclose(opt.info.difference, twin.info.difference, rel_tol=1e-3, abs_tol=1e-6)
        for a, b, w in zip(exact(opt), exact(twin), before, strict=True):
            torch.testing.assert_close(a - w, b - w, rtol=2e-3, atol=4e-6)


def test_sums_and_weights_give_the_step_of_their_quotient():
    net, other = Net(), Net()
    counts = torch.tensor([1.0, 2.0, 5.0, 0.5])

    def objective(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        many = counts.repeat(len(tokens) // 4)[: len(tokens)]
        return net.losses(tokens) * many, many

    opt, twin = (zg.optim.MeZO(n, lr=0.1, eps=1e-2, self_check=False) for n in (net, other))
    loss = opt.step(objective, batch())
    same_loss = twin.step(lambda: (other.losses(batch()) * counts).sum() / counts.sum())
    assert math.isclose(loss, same_loss, rel_tol=1e-5)
    assert math.isclose(opt.info.difference, twin.info.difference, rel_tol=1e-3)


def opt_copies(method: Any) -> int:
    """How often a method's plan repeats the batch."""
    return method(Net()).copies


@every_method
def test_a_step_evaluates_the_batch_as_often_as_it_says(method):
    net, seen = Net(), []

    def objective(tokens: torch.Tensor) -> torch.Tensor:
        seen.append(len(tokens))
        return net.losses(tokens)

    opt = method(net, self_check=False)
    opt.step(objective, batch())
    before = opt.forwards
    seen.clear()
    opt.step(objective, batch(seed=1))
    assert opt.forwards - before == opt.evaluations == sum(seen) / 4
    assert max(seen) == 4 * opt.copies


@every_method
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_in_parts_gives_the_step_of_the_whole(method, weighted):
    def trained(micro_batch):
        net, rows = Net(), []

        def objective(examples):
            rows.append(len(examples["ids"]))
            losses = net.losses(examples["ids"])
            return (losses * examples["weight"], examples["weight"]) if weighted else losses

        opt = method(net, lr=0.1, eps=1e-2)
        given = {"ids": batch(), "weight": torch.tensor([1.0, 2.0, 5.0, 0.5])}
        loss = opt.step(objective, given, micro_batch=micro_batch)
        return loss, opt.info, exact(opt), rows

    whole_loss, whole, whole_weights, _ = trained(None)
    loss, info, weights_in_parts, rows = trained(3)
    copies = opt_copies(method)
    assert max(rows) <= 3 * copies
    assert rows[-2] == 3 * rows[-1]
    assert math.isclose(loss, whole_loss, rel_tol=1e-6)
    assert math.isclose(info.difference, whole.difference, rel_tol=1e-3)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights_in_parts, whole_weights, strict=True))


@every_method
@pytest.mark.parametrize("micro_batch", [None, 1, 2])
def test_settings_in_a_batch_reach_the_objective_as_they_are(method, micro_batch):
    """Whatever their length: class weights, a size, names of options; alone, in micro-batches and in the checks."""
    net = Net()
    given = {"ids": batch(), "size": (2, 2, 2), "options": ["bad", "good", "so-so"], "weights": torch.ones(11, 1)[:3]}

    def objective(examples):
        assert examples["size"] == (2, 2, 2)
        assert examples["options"] == ["bad", "good", "so-so"]
        assert examples["weights"].shape == (3, 1)
        return net.losses(examples["ids"]) * examples["weights"].mean()

    opt = method(net, lr=0.1, eps=1e-2)
    opt.step(objective, given, examples=4, micro_batch=micro_batch)
    assert opt.info.loss > 0


def test_a_part_of_a_plan_keeps_the_directions_of_its_examples():
    whole = plans.example_pairs(4, 2)
    part = whole.part(1, 3)
    assert part.examples == 2
    assert part.direction.tolist() == [1, 2, 5, 6, 1, 2, 5, 6]
    assert part.sign.tolist() == [1.0] * 4 + [-1.0] * 4


@every_method
@every_storage
def test_attach_leaves_every_weight_as_it_was_and_the_first_step_as_it_would_be(method, storage):
    (net, opt), (other, fresh) = ((n, method(n, lr=0.1, eps=1e-2, storage=storage)) for n in (Net(), Net()))
    before = stored(opt)
    opt.attach(net.losses, batch())
    assert same(stored(opt), before)
    opt.step(net.losses, batch())
    fresh.step(other.losses, batch())
    assert same(stored(opt), stored(fresh))


@every_method
@every_storage
def test_the_returned_loss_is_near_that_of_the_clean_model_and_evaluate_gives_it(method, storage):
    net = Net()
    opt = method(net, lr=0.0, eps=1e-3, storage=storage)
    with torch.no_grad():
        clean = net.losses(batch())
    torch.testing.assert_close(opt.evaluate(net.losses, batch()), clean, rtol=2e-2 if storage != "float32" else 1e-5, atol=1e-5)
    assert math.isclose(opt.step(net.losses, batch()), float(clean.mean()), rel_tol=2e-2 if storage != "float32" else 1e-3)


def test_a_step_reads_every_batch_structure_alike():
    results = []
    for wrap, unwrap in (
        (lambda t: t, lambda b: b),
        (lambda t: {"tokens": t, "name": "x"}, lambda b: b["tokens"]),
        (lambda t: (t[:, :1], {"rest": [t[:, 1:]]}), lambda b: torch.cat([b[0], b[1]["rest"][0]], 1)),
    ):
        net = Net()
        opt = zg.optim.PerExample(net, lr=0.1)
        opt.step(lambda b, net=net, unwrap=unwrap: net.losses(unwrap(b)), wrap(batch()))
        results.append(stored(opt))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


# Which tensors are optimised.


class Reused(Net):
    """Tied, by a forward that uses one parameter twice."""

    def __init__(self) -> None:
        super().__init__(tied=True)
        del self.head

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens).mean(1)
        return F.linear(self.norm(x + F.gelu(self.hidden(x))), self.embed.weight)


@every_method
@every_storage
def test_tied_weights_are_one_slot_perturbed_in_both_uses_and_updated_once(method, storage):
    net = Net(tied=True)
    opt = method(net, lr=0.1, eps=1e-2, storage=storage, self_check="full")
    names = {slot.name: slot.aliases for slot in opt.slots}
    assert names["embed.weight"] == ("head.weight",)
    assert "head.weight" not in names
    assert net.head.weight is net.embed.weight
    other = Reused()
    twin = method(other, lr=0.1, eps=1e-2, storage=storage)
    for seed in range(2):  # the full self-check compares both uses with really perturbed weights
        opt.step(net.losses, batch(seed=seed))
        twin.step(other.losses, batch(seed=seed))
    assert len(opt.slots) == len(twin.slots)
    assert same(stored(opt), stored(twin))


@every_method
@every_storage
def test_frozen_parameters_stay_and_leave_the_noise_of_the_others_as_it_was(method, storage):
    free, partly = Net(), Net()
    if storage != "float32":
        free, partly = free.bfloat16(), partly.bfloat16()
    for parameter in (partly.embed.weight, partly.hidden.bias):
        parameter.requires_grad_(False)
    before = partly.embed.weight.detach().clone(), partly.hidden.bias.detach().clone()
    every, some = method(free, storage=storage), method(partly, lr=0.1, storage=storage)
    ids = {slot.name: slot for slot in every.slots}
    assert {slot.name for slot in some.slots} == set(ids) - {"embed.weight", "hidden.bias"}
    directions = Directions(some.family, 0, 0)
    for slot in some.slots:
        assert slot.id == ids[slot.name].id
        assert torch.equal(directions.z(slot, 1), directions.z(ids[slot.name], 1))
    some.step(partly.losses, batch())
    assert torch.equal(partly.embed.weight.float(), before[0].to(partly.embed.weight.dtype).float())
    assert torch.equal(partly.hidden.bias.float(), before[1].to(partly.hidden.bias.dtype).float())


def test_a_unit_of_direction_is_the_rms_of_a_tensor_when_relative():
    zero = {"matrix": nn.Parameter(torch.zeros(4, 25)), "vector": nn.Parameter(torch.zeros(9))}
    named = [
        ("w", nn.Parameter(torch.tensor([[3.0, -4.0], [0.0, 5.0]]))),
        ("v", nn.Parameter(torch.full((3,), -2.0))),
        *zero.items(),
    ]
    scales = [slot.scale for slot in zg.optim.MeZO(named).slots]
    assert scales == pytest.approx([math.sqrt(50 / 4), 2.0, 1 / 5, 0.02], rel=1e-6)
    assert [slot.scale for slot in zg.optim.MeZO(named, relative=False).slots] == [1.0] * 4


@pytest.mark.parametrize("name", [name for name, method in zg.optim.METHODS.items() if method.perturbs])
def test_what_perturbs_does_so_in_units_of_each_tensors_rms_unless_told_otherwise(name):
    """`zerograd tune` gives all of them the same eps."""
    opt = zg.optim.METHODS[name](Net())
    for slot in opt.slots:
        assert slot.scale == pytest.approx(float(slot.exact().square().mean().sqrt()) or 0.02), slot.name


@every_method
def test_every_vector_of_a_stack_moves(method):
    """As the weight of a depthwise convolution has them, when its parameters are given without it."""
    torch.manual_seed(0)
    model = nn.Conv1d(4, 4, 3, groups=4, bias=False)
    opt = method(model.named_parameters(), lr=0.05)
    assert opt.slots[0].view == (4, 1, 3)
    before = model.weight.detach().clone()
    opt.step(lambda x: (F.conv1d(x, model.weight, groups=4) - 1).square().mean((1, 2)), torch.randn(3, 4, 8))
    assert bool((model.weight != before).any(2).all())


def test_a_standardised_relative_step_changes_a_weight_by_lr_over_root_batch():
    weight = nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 3)
    opt = zg.optim.PerExample([("w", weight)], lr=1e-3, eps=1e-2, rank=1)
    before = weight.detach().clone()
    inputs = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    opt.step(lambda x: nn.functional.linear(x, weight).sum(1), inputs)
    change = (weight.detach() - before).square().mean().sqrt() / before.square().mean().sqrt()
    assert float(change) == pytest.approx(1e-3 / 8, rel=0.1)


@pytest.mark.parametrize(("optimiser", "closure"), [(zg.optim.MeZO, False), (zg.optim.MeZO, True), (zg.optim.PerExample, False)])
def test_a_compiled_module_is_perturbed_as_it_is_written(optimiser: Any, closure: bool) -> None:
    """A graph captured before a step knows nothing of a perturbation: it must not be what is evaluated."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    batch = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    weights, calls = [], []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append("captured")

        def run(*arguments: Any) -> Any:
            calls.append("run")
            return graph.forward(*arguments)

        return run

    for compile_it in (False, True):
        ours = copy.deepcopy(model)
        called = torch.compile(ours, backend=backend) if compile_it else ours
        opt = optimiser(called, lr=1e-2)
        assert [slot.name for slot in opt.slots][:2] == ["0.weight", "0.bias"]

        def objective(batch: Any, called: Any = called) -> torch.Tensor:
            return F.cross_entropy(called(batch[0]), batch[1], reduction="none")

        def mean(objective: Any = objective) -> torch.Tensor:
            return objective(batch).mean()

        with torch.no_grad():
            objective(batch)
        taken = len(calls)
        for _ in range(3):
            opt.step(mean) if closure else opt.step(objective, batch)
        assert calls.count("captured") == compile_it
        weights.append([p.detach().clone() for p in ours.parameters()])
    assert taken == len(calls) == 2, "a graph ran in a step"
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@every_method
@pytest.mark.parametrize("storage", ["float32", "split"])
def test_torchs_default_dtype_changes_no_bit(method, storage):
    def trained(default: torch.dtype) -> list[torch.Tensor]:
        net = Net()
        opt = method(net, lr=0.05, storage=storage)
        torch.set_default_dtype(default)
        try:
            for seed in range(3):
                opt.step(net.losses, batch(seed=seed))
        finally:
            torch.set_default_dtype(torch.float32)
        return stored(opt)

    assert same(trained(torch.bfloat16), trained(torch.float32))
