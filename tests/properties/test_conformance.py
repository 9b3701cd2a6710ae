"""What every method keeps in every precision: one list, the tests that show each property, and those that no other file has.

Most of these fail in at least one published program. A method that joins `methods.COMMON` is held to all of them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import zerograd as zg
from tests import ROOT
from tests.oracles.methods import COMMON, STORAGES, Net, batch, every_method, every_storage, exact, same, stored
from zerograd.evaluate.score import score_batch
from zerograd.optim.base import Common
from zerograd.update import apply

EVERYWHERE = {"method": len(COMMON), "storage": len(STORAGES)}
METHODS = {"method": len(COMMON)}
KERNELS: dict[str, int] = {}

PROPERTIES: dict[str, tuple[dict[str, int], tuple[str, ...]]] = {
    "an evaluation leaves every bit of the weights, whatever ends it": (
        EVERYWHERE,
        (
            "properties/test_safety.py::test_an_error_in_the_objective_at_any_call_leaves_weights_and_the_run_as_they_were",
            "properties/test_safety.py::test_a_loss_that_is_not_finite_skips_the_step_and_is_counted",
            "properties/test_zero_drift.py::test_attach_leaves_every_weight_as_it_was_and_the_first_step_as_it_would_be",
        ),
    ),
    "a learning rate of 0 leaves every bit, through the update's own path": (
        EVERYWHERE,
        ("properties/test_zero_drift.py::test_a_learning_rate_of_0_leaves_every_bit_for_50_steps",),
    ),
    "an update that has begun is completed": (
        EVERYWHERE,
        ("properties/test_safety.py::test_ctrl_c_during_the_update_waits_for_its_end",),
    ),
    "a direction depends on its address alone: not on rows, columns, chunks, threads, order or the other tensors": (
        KERNELS,
        (
            "noise/test_noise.py::test_noise_of_a_chunk_is_the_slice_of_the_whole",
            "noise/test_noise.py::test_noise_of_rows_follows_their_order",
            "noise/test_backends.py::test_the_number_of_threads_never_shows",
            "noise/test_backends.py::test_a_low_rank_update_does_not_depend_on_how_rows_are_chunked",
        ),
    ),
    "freezing a tensor leaves the noise of the others": (
        EVERYWHERE,
        ("properties/test_tied_and_frozen.py::test_frozen_parameters_stay_and_leave_the_noise_of_the_others_as_it_was",),
    ),
    "every back end gives the same bits": (
        KERNELS,
        (
            "noise/test_backends.py::test_numba_updates_to_the_bits_of_the_reference",
            "noise/test_backends.py::test_numba_updates_low_rank_to_the_bits_of_the_reference",
            "noise/test_backends.py::test_without_numba_updates_give_the_same_weights_and_warns_exactly_once",
            "noise/test_gpu.py::test_update",
            "noise/test_gpu.py::test_update_low_rank",
        ),
    ),
    "what is recorded of the steps gives the bits of the run, in any chunks, on any threads and back end": (
        EVERYWHERE,
        ("properties/test_replay_is_bitwise.py::test_a_replay_has_the_bits_of_the_run",),
    ),
    "no global generator is touched": (
        EVERYWHERE,
        ("properties/test_cost.py::test_a_step_leaves_every_global_generator_as_it_was",),
    ),
    "the mean step is the gradient's, and its spread the known multiple": (
        KERNELS,
        (
            "properties/test_unbiased.py::test_the_mean_step_is_the_gradient_of_autograd",
            "properties/test_unbiased.py::test_the_second_moment_of_an_estimate_is_the_known_multiple",
        ),
    ),
    "updates follow float64, and 16 bits alone are right on average": (
        KERNELS,
        (
            "properties/test_unbiased.py::test_a_thousand_small_updates_follow_float64",
            "properties/test_unbiased.py::test_bfloat16_updates_below_half_an_ulp_add_up_on_average",
        ),
    ),
    "losses are told apart below the model's own precision": (
        EVERYWHERE,
        ("properties/test_conformance.py::test_scores_are_float32_and_see_what_16_bits_would_lose",),
    ),
    "what is updated is what was evaluated": (
        EVERYWHERE,
        ("properties/test_conformance.py::test_a_direction_is_the_same_in_its_evaluation_and_in_its_update",),
    ),
    "a tied weight is perturbed once": (
        EVERYWHERE,
        ("properties/test_tied_and_frozen.py::test_tied_weights_are_one_slot_perturbed_in_both_uses_and_updated_once",),
    ),
    "every trainable tensor moves": (EVERYWHERE, ("properties/test_conformance.py::test_a_step_moves_every_trainable_tensor",)),
    "every setting has an effect": (METHODS, ("properties/test_conformance.py::test_every_setting_has_an_effect",)),
    "a run is its seed and its scores": (
        EVERYWHERE,
        (
            "properties/test_run_is_its_seed.py::test_a_run_is_reproducible_from_its_seed_whatever_the_global_generator_does",
            "properties/test_run_is_its_seed.py::test_a_saved_and_loaded_run_continues_bit_for_bit",
        ),
    ),
    "a loss that is not finite changes nothing": (
        EVERYWHERE,
        ("properties/test_safety.py::test_a_loss_that_is_not_finite_skips_the_step_and_is_counted",),
    ),
    "a batch in parts gives the step of the whole": (
        METHODS,
        ("properties/test_batch_in_parts.py::test_a_batch_in_parts_gives_the_step_of_the_whole",),
    ),
    "a step holds no more than an evaluation of as many rows and its chunks": (
        METHODS,
        ("properties/test_cost.py::test_the_tensors_of_a_step_exceed_those_of_an_evaluation_of_as_many_rows_by_the_chunks",),
    ),
    "nothing as large as the largest weight is made": (
        KERNELS,
        ("evaluate/test_forward.py::test_nothing_as_large_as_the_largest_weight_is_made",),
    ),
    "a direction is drawn once to evaluate and once to update, a weight written once": (
        KERNELS,
        (
            "properties/test_cost.py::test_a_dense_step_draws_each_matrix_once_for_both_signs_and_once_for_the_update",
            "properties/test_cost.py::test_a_population_draws_each_direction_once_for_its_branch_and_once_for_the_update",
            "properties/test_cost.py::test_a_low_rank_step_draws_factors_alone_and_writes_each_weight_once",
        ),
    ),
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_every_property_is_shown_by_tests_that_exist_and_cover_it(name):
    scope, tests = PROPERTIES[name]
    assert tests
    for test in tests:
        file, _, function = test.partition("::")
        if file == "noise/test_gpu.py":
            pytest.importorskip("triton")
        found = getattr(importlib.import_module(f"tests.{file.removesuffix('.py').replace('/', '.')}"), function)
        for argument, count in scope.items():
            marks = [mark.args[1] for mark in found.pytestmark if mark.name == "parametrize" and mark.args[0] == argument]
            assert [len(list(values)) for values in marks] == [count], f"{test} is not run over every {argument}"


def optimiser(method: Callable[..., Any], storage: str | None = None, **settings: Any) -> tuple[Net, Any]:
    net = Net()
    return net, method(net, storage=storage, **({"lr": 0.05} | settings))


@every_method
@every_storage
def test_a_step_moves_every_trainable_tensor(method, storage):
    net, opt = optimiser(method, storage)
    before = exact(opt)
    for seed in range(24):  # some methods move a part of the layers at a time
        opt.step(net.losses, batch(seed=seed))
    assert {name for name, _ in net.named_parameters()} == {slot.name for slot in opt.slots}
    for slot, was, now in zip(opt.slots, before, exact(opt), strict=True):
        assert not torch.equal(was, now), slot.name


@every_method
@every_storage
def test_a_direction_is_the_same_in_its_evaluation_and_in_its_update(method, storage):
    """From weights of zero, where no precision hides it: a probe is eps z away, an update of one direction -z."""
    _, opt = optimiser(method, storage)
    directions = opt._directions()
    some = int(opt.plan(4).directions[-1])
    for slot in opt.slots:
        slot.parameter.data.zero_()
        if slot.remainder is not None:
            slot.remainder.zero_()
        probe = directions.perturbed(slot, some, [1.0], dtype=torch.float32)[0].view(slot.parameter.shape) / (slot.eps * slot.scale)
        apply.update(slot, directions, [some], [1.0], 1.0)
        torch.testing.assert_close(-slot.exact() / slot.scale, probe, rtol=2**-7, atol=1e-6)
        assert probe.abs().max() > 0.5


@every_method
@every_storage
def test_scores_are_float32_and_see_what_16_bits_would_lose(method, storage):
    """Probes so small that a model of 16 bits computes the same hidden values: its vectors and its losses still tell them apart."""
    net, opt = optimiser(method, storage, eps=1e-4)
    directions = opt._directions()
    plan = opt.plan(4)
    vectors = [slot for slot in opt.slots if not slot.is_matrix]

    def losses(tokens: torch.Tensor) -> torch.Tensor:
        x = net.norm(net.embed(tokens[:, 1:]).float().mean(1))
        return x.square().sum(1)

    scores = score_batch(vectors, directions, plan, losses, batch())
    assert scores.dtype == torch.float32
    perturbed = scores.view(plan.copies, -1)[plan.sign.view(plan.copies, -1)[:, 0] != 0]
    gaps = perturbed[0] - perturbed[1]
    assert bool(gaps.ne(0).any())
    assert float(gaps.abs().max()) < float(scores.abs().max()) * 2**-8  # half an ulp of bfloat16


OTHERS: dict[str, Any] = {
    "lr": 0.07,
    "eps": 0.01,
    "weight_decay": 0.3,
    "relative": False,
    "seed": 8,
    "storage": "bfloat16",
    "directions": 3,
    "rank": 3,
    "beta": 0.5,
    "betas": (0.5, 0.6),
    "zeta": 0.5,
    "history": 1,
    "period": 1,
    "keep": 0.6,
    "smoothing": 0.5,
    "share": 0.3,
    "sensitivity": {name: torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) for name, p in Net().named_parameters()},
}
FLIPPED = {"distribution": ("rademacher", "gaussian"), "standardised": (False, True), "sides": (1, 2)}
CHECKS = ("params", "self_check")
"""What has no effect on a run that is sound."""


@every_method
def test_every_setting_has_an_effect(method):
    def after(**changed: Any) -> list[torch.Tensor]:
        net, opt = optimiser(method, changed.pop("storage", None), **({"directions": 2} if many else {}) | {"eps": 1.0} | changed)
        opt.step(net.losses, batch())
        opt.step(net.losses, batch(seed=1))
        return stored(opt)

    settings = dict(inspect.signature(method).parameters)
    settings |= dict.fromkeys(Common.__annotations__, settings.pop("common"))
    many = "directions" in settings
    usual = after()
    assert same(after(), usual)
    for name, parameter in settings.items():
        if name in CHECKS:
            continue
        other = OTHERS[name] if name in OTHERS else next(v for v in FLIPPED[name] if v != parameter.default)
        assert not same(after(**{name: other}), usual), f"{name} = {other!r} changes nothing"


def test_the_table_of_methods_says_what_they_are():
    text = (ROOT / "docs" / "methods.md").read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:5]] for line in text.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == list(zg.optim.METHODS)
    for name, title, evaluations, state in rows:
        model = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(2)))
        opt = zg.optim.METHODS[name](model, self_check=False)
        opt.step(lambda x, model=model: model(x).square().mean(1), torch.randn(4, 256))
        assert (type(opt).__name__, opt.evaluations) == (title, float(evaluations))
        assert opt.state_bytes / sum(p.numel() for p in model.parameters()) == pytest.approx(float(state), abs=5e-3), name
