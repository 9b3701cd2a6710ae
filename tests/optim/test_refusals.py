"""Bad input gives one clear error that names the field, and leaves the model as it was."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn

import zerograd as zg
from tests.oracles.methods import COMMON, Net, batch, methods, same, shared_and_own, stored
from zerograd.evaluate.self_check import NotPure
from zerograd.evaluate.trace import UnresolvedOperation

MeZO, PerExample = zg.optim.MeZO, zg.optim.PerExample


# Settings.


@shared_and_own
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("eps", value) for value in (0.0, -1e-3, math.nan, math.inf)),
        *((name, value) for name in ("lr", "weight_decay") for value in (-1e-6, math.nan, math.inf)),
        ("seed", -1),
        ("seed", 2**64),
        ("precision", "float8"),
        ("distribution", "uniform"),
    ],
)
def test_a_setting_outside_its_range_raises_an_error_with_its_name_and_value(method, field, value):
    if field == "distribution" and field not in inspect.signature(method).parameters:
        pytest.skip("the method has one distribution")
    with pytest.raises(ValueError, match=rf"{field} .*{value}"):
        method(Net(), **{field: value})


@methods("mezo")
@pytest.mark.parametrize(("field", "value"), [("eps", 0.0), ("eps", math.nan), ("lr", -1.0), ("weight_decay", math.nan)])
def test_a_group_setting_outside_its_range_raises_as_the_default_would(method, field, value):
    net = Net()
    with pytest.raises(ValueError, match=rf"{field} .*{value}"):
        method([{"params": net.embed}, {"params": net.head, field: value}])


def test_two_parameters_of_one_name_are_refused():
    """Their State would be one."""
    one, other = Net(), Net()
    with pytest.raises(ValueError, match=r"embed\.weight names two parameters; give them names that differ"):
        MeZO([*one.named_parameters(), *other.named_parameters()])
    assert len(MeZO([{"params": one}, {"params": other}]).spaces) == 2 * len(MeZO(Net()).spaces)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_1_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank is {rank}"):
        PerExample(Net(), rank=rank)


@pytest.mark.parametrize("value", ["ful", "none"])
def test_an_unknown_self_check_is_refused(value):
    with pytest.raises(ValueError, match=f"self_check .*{value}"):
        zg.optim.MeZO(Net(), self_check=value)


# Parameters.


@methods("mezo")
def test_nothing_trainable_is_refused(method):
    with pytest.raises(ValueError, match="nothing is trainable"):
        method(Net().requires_grad_(False))


@methods("mezo")
@pytest.mark.parametrize("params", [[], nn.Identity()], ids=["none", "module without parameters"])
def test_no_parameters_at_all_are_refused(method, params):
    with pytest.raises(ValueError, match=r"no parameters|nothing is trainable"):
        method(params)


# Batches and objectives. Weights and the step counter stay as they were.


def refused(opt: Any, error: type[Exception], match: str, *arguments: Any) -> None:
    before = stored(opt)
    with pytest.raises(error, match=match):
        opt.step(*arguments)
    assert same(stored(opt), before)
    assert opt.steps == 0


@shared_and_own
@pytest.mark.parametrize(
    ("data", "match"),
    [
        (torch.zeros(0, 4, dtype=torch.int64), "0 examples"),
        ({"tokens": torch.zeros(0, 4, dtype=torch.int64)}, "0 examples"),
        ({}, "no tensor with a leading dimension"),
        (["text"], "no tensor with a leading dimension"),
        ((torch.zeros(4), torch.zeros(6)), "leading dimension 4 and 6"),
    ],
    ids=["empty", "empty in a dict", "nothing", "text", "uneven"],
)
def test_a_batch_without_whole_examples_is_refused(method, data, match):
    refused(method(Net()), ValueError, match, Net().losses, data)


@shared_and_own
@pytest.mark.parametrize(
    "reshape",
    [
        lambda losses: losses.mean(),
        lambda losses: losses[:-1],
        lambda losses: losses[:, None],
        lambda losses: losses[: len(losses) // 2],
        lambda losses: (losses.sum(), torch.ones(())),
        lambda losses: (losses[:3], losses[:3]),
        lambda losses: (losses, torch.ones(())),
    ],
    ids=["mean", "one less", "column", "half", "totals", "three pairs", "one weight"],
)
def test_an_objective_that_does_not_return_one_loss_an_example_is_refused(method, reshape):
    net = Net()
    refused(method(net), ValueError, "one loss an example", lambda tokens: reshape(net.losses(tokens)), batch())


@shared_and_own
def test_a_first_run_that_differs_from_the_next_two_is_forgiven(method):
    """Libraries choose their kernels in it."""
    net, calls = Net(), []

    def objective(tokens: torch.Tensor) -> torch.Tensor:
        calls.append(len(tokens))
        return net.losses(tokens) + (len(calls) == 1)

    opt = method(net, lr=0.01)
    opt.step(objective, batch())
    assert opt.steps == 1
    assert calls[:3] == [4, 4, 4]


@shared_and_own
def test_an_objective_that_is_not_pure_is_refused_at_the_first_step(method):
    net, dropout = Net(), nn.Dropout(0.5)
    refused(method(net), NotPure, "not pure", lambda tokens: dropout(net.losses(tokens)), batch(32))


@methods("mezo", "fzoo")
def test_a_closure_that_draws_new_data_is_refused_at_the_first_step(method):
    net, seeds = Net(), iter(range(100))
    refused(method(net), NotPure, "not pure", lambda: net.losses(batch(seed=next(seeds))).mean())


@methods("mezo", "fzoo")
def test_a_closure_that_returns_a_vector_is_refused(method):
    net = Net()
    refused(method(net), ValueError, r"closure returned shape \(4,\)", lambda: net.losses(batch()))


@methods("rank1", "grzo")
def test_per_example_directions_refuse_a_closure(method):
    net = Net()
    refused(method(net), ValueError, r"step\(objective, batch\)", lambda: net.losses(batch()).mean())


@pytest.mark.parametrize("method", [COMMON["rank1"], COMMON["rank2-gaussian"]], ids=["rank1", "rank2-gaussian"])
def test_standardised_coefficients_refuse_a_batch_of_one(method):
    net = Net()
    refused(method(net), ValueError, "batch of at least 2", net.losses, batch(1))


def test_a_population_of_one_is_refused():
    with pytest.raises(ValueError, match="directions is 1; it must be at least 2"):
        zg.optim.FZOO(Net(), directions=1)


@pytest.mark.parametrize("name", ["examples", "micro_batch"])
def test_counts_of_examples_are_refused_when_they_cannot_be(name):
    net = Net()
    opt = MeZO(net)
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        opt.step(net.losses, batch(), **{name: 0})
    with pytest.raises(ValueError, match=f"{name} is 2, but a closure has no examples"):
        opt.step(lambda: net.losses(batch()).mean(), **{name: 2})


def test_plain_per_example_coefficients_take_a_batch_of_one():
    net = Net()
    opt = PerExample(net, lr=0.1, standardised=False)
    before = stored(opt)
    opt.step(net.losses, batch(1))
    assert not same(stored(opt), before)


@shared_and_own
def test_a_batch_whose_examples_do_not_lead_is_refused(method):
    net = Net()
    message = "one loss an example|leading dimension"
    refused(method(net), (ValueError, UnresolvedOperation), message, lambda t: net.losses(t.T.contiguous()), batch(4)[:, :3])
