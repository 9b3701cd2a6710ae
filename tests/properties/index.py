"""What every method promises: each property, the tests that show it, and what each test runs over. `tests/README.md` is made of it.

Most of these fail in at least one published program. A method that joins `oracles.methods.COMMON` is held to all of them.
"""

from __future__ import annotations

import importlib
from typing import Any

from tests import ROOT
from tests.oracles import methods

AXES = {
    "every method": methods.every_method,
    "every method in split, six in the other precisions": methods.every_method_in_split,
    "every method in split, every rule in the other precisions": methods.every_rule_in_every_precision,
    "every rule": methods.every_rule_in_split,
    "every family in every precision": methods.every_family_in_every_precision,
    "every family in split, two methods in the other precisions": methods.every_family_in_split,
    "every family": methods.every_family,
    "every query in every precision": methods.every_query_in_every_precision,
    "every query in split, two methods in the other precisions": methods.every_query_in_split,
    "every query": methods.every_query,
}
"""Family: a kind of directions. Query: a way to score them. Rule: what the estimate does to the weights."""

OWN = "cases of its own"

HEAD = """\
# Tests

`make test` runs the quick tier, in about a minute on two cores. `make check` runs everything, then lint and types.

Folders mirror `src/zerograd`: the tests of `optim/masks.py` are in `optim/test_masks.py`. Beside them:

- `properties/`: what every method promises, a property a file. The list below is made by `python -m tests.properties.index`.
- `oracles/`: what results are compared with. `published.py` writes every rule in float64 numpy, `perturb_in_place.py` sets the
  weights that the perturbed forward only imagines, `methods.py` lists the methods and the axes that properties run over.

**Two tiers.** A test marked `full` is left out of the quick tier. A quick test may take 1 s of CPU; one that takes more fails,
and the message says what to do. Over an axis of methods, six representatives in `split` are quick: mezo, per-example, fzoo,
adam, lozo-m, hizoo. A file whose tests are all `full` says `pytestmark = pytest.mark.full` and is not imported by the quick
tier; `cli/test_smoke.py` runs a case of what such files test. What a process does once, imports and compilation, is not counted.
Run one file whole with `pytest -m "" tests/tune/test_resume.py`.

**A new method** joins `COMMON` in `oracles/methods.py` with one line, and `CASES` in `oracles/published.py` with its rule. It
joins `FAMILIES`, `QUERIES` or `RULES` where it brings directions, scores or a rule of a new kind; a test says where it must.

## Properties

A *family* is a kind of directions, a *query* is a way to score them, a *rule* is what the estimate does to the weights.
"""

PROPERTIES: dict[str, dict[str, str]] = {
    "An evaluation leaves every bit of the weights, whatever ends it.": {
        "properties/test_safety.py::test_an_error_in_the_objective_at_any_call_leaves_weights_and_the_run_as_they_were": (
            "every query in split, two methods in the other precisions"
        ),
        "properties/test_safety.py::test_a_loss_that_is_not_finite_skips_the_step_and_is_counted": (
            "every query in split, two methods in the other precisions"
        ),
        "properties/test_zero_drift.py::test_attach_leaves_every_weight_as_it_was_and_the_first_step_as_it_would_be": (
            "every query in split, two methods in the other precisions"
        ),
    },
    "A learning rate of 0 leaves every bit, through the update's own path.": {
        "properties/test_zero_drift.py::test_a_learning_rate_of_0_leaves_every_bit_for_50_steps": (
            "every method in split, every rule in the other precisions"
        ),
    },
    "An update that has begun is completed.": {
        "properties/test_safety.py::test_ctrl_c_during_the_update_waits_for_its_end": "every rule",
    },
    "A direction depends on its address alone: not on rows, columns, chunks, threads, order or the other tensors.": {
        "noise/test_noise.py::test_noise_of_a_chunk_is_the_slice_of_the_whole": OWN,
        "noise/test_noise.py::test_noise_of_rows_follows_their_order": OWN,
        "noise/test_backends.py::test_the_number_of_threads_never_shows": OWN,
        "noise/test_backends.py::test_a_low_rank_update_does_not_depend_on_how_rows_are_chunked": OWN,
    },
    "Freezing a tensor leaves the noise of the others.": {
        "properties/test_tied_and_frozen.py::test_frozen_parameters_stay_and_leave_the_noise_of_the_others_as_it_was": (
            "every family in split, two methods in the other precisions"
        ),
    },
    "Every back end gives the same bits.": {
        "noise/test_backends.py::test_numba_updates_to_the_bits_of_the_reference": OWN,
        "noise/test_backends.py::test_numba_updates_low_rank_to_the_bits_of_the_reference": OWN,
        "noise/test_backends.py::test_without_numba_updates_give_the_same_weights_and_warns_exactly_once": OWN,
        "noise/test_gpu.py::test_update": OWN,
        "noise/test_gpu.py::test_update_low_rank": OWN,
    },
    "Recorded steps give the bits of the run, in any chunks, on any threads and back end.": {
        "properties/test_replay_is_bitwise.py::test_a_replay_has_the_bits_of_the_run": (
            "every method in split, every rule in the other precisions"
        ),
    },
    "A run is its seed and its scores, and touches no global generator.": {
        "properties/test_run_is_its_seed.py::test_a_run_is_reproducible_from_its_seed_whatever_the_global_generators_do": (
            "every method in split, six in the other precisions"
        ),
        "properties/test_run_is_its_seed.py::test_a_saved_and_loaded_run_continues_bit_for_bit": (
            "every method in split, six in the other precisions"
        ),
    },
    "The mean step is the gradient's, and its spread the known multiple.": {
        "properties/test_unbiased.py::test_the_mean_step_is_the_gradient_of_autograd": OWN,
        "properties/test_unbiased.py::test_the_second_moment_of_an_estimate_is_the_known_multiple": OWN,
        "properties/test_spread.py::test_the_spread_of_an_estimate_on_a_linear_model_is_the_known_multiple": OWN,
    },
    "Steps are the published ones.": {
        "properties/test_published_rules.py::test_three_steps_are_the_published_ones": OWN,
        "properties/test_published_rules.py::test_a_step_costs_as_many_forwards_as_its_rule_asks_for": OWN,
        "properties/test_published_rules.py::test_a_method_keeps_as_many_bytes_as_its_rule_asks_for": OWN,
    },
    "Updates follow float64, and 16 bits alone are right on average.": {
        "properties/test_unbiased.py::test_a_thousand_small_updates_follow_float64": OWN,
        "properties/test_unbiased.py::test_bfloat16_updates_below_half_an_ulp_add_up_on_average": OWN,
    },
    "Losses are told apart below the model's own precision.": {
        "properties/test_conformance.py::test_scores_are_float32_and_see_what_16_bits_would_lose": "every query in every precision",
    },
    "What is updated is what was evaluated.": {
        "properties/test_conformance.py::test_a_direction_is_the_same_in_its_evaluation_and_in_its_update": (
            "every family in every precision"
        ),
    },
    "A tied weight is perturbed once.": {
        "properties/test_tied_and_frozen.py::test_tied_weights_are_one_slot_perturbed_in_both_uses_and_updated_once": (
            "every family in split, two methods in the other precisions"
        ),
    },
    "Every trainable tensor moves.": {
        "properties/test_conformance.py::test_a_step_moves_every_trainable_tensor": (
            "every method in split, six in the other precisions"
        ),
        "properties/test_tied_and_frozen.py::test_every_vector_of_a_stack_moves": "every family",
    },
    "Steps go downhill.": {
        "properties/test_unbiased.py::test_forty_steps_go_downhill": "every method in split, six in the other precisions",
    },
    "Every setting has an effect.": {
        "properties/test_conformance.py::test_every_setting_has_an_effect": "every method",
    },
    "A loss that is not finite changes nothing.": {
        "properties/test_safety.py::test_a_loss_that_is_not_finite_skips_the_step_and_is_counted": (
            "every query in split, two methods in the other precisions"
        ),
    },
    "A batch in parts gives the step of the whole.": {
        "properties/test_batch_in_parts.py::test_a_batch_in_parts_gives_the_step_of_the_whole": "every query",
        "evaluate/test_micro_batch.py::test_out_of_memory_halves_the_examples_and_gives_the_same_step": "every query",
    },
    "A step holds no more than an evaluation of as many rows and its chunks.": {
        "properties/test_cost.py::test_the_tensors_of_a_step_exceed_those_of_an_evaluation_of_as_many_rows_by_the_chunks": (
            "every method in split, six in the other precisions"
        ),
    },
    "All that a step makes lies where the weights lie.": {
        "properties/test_one_device.py::test_scores_come_back_and_everything_else_stays_on_the_device": OWN,
    },
    "Nothing as large as the largest weight is made.": {
        "evaluate/test_forward.py::test_nothing_as_large_as_the_largest_weight_is_made": OWN,
    },
    "A direction is drawn once to evaluate and once to update, a weight written once.": {
        "properties/test_cost.py::test_a_dense_step_draws_each_matrix_once_for_both_signs_and_once_for_the_update": OWN,
        "properties/test_cost.py::test_a_population_draws_each_direction_once_for_its_branch_and_once_for_the_update": OWN,
        "properties/test_cost.py::test_a_low_rank_step_draws_factors_alone_and_writes_each_weight_once": OWN,
    },
}


def found(test: str) -> Any:
    """The function of a test's name."""
    file, _, function = test.partition("::")
    return getattr(importlib.import_module(f"tests.{file.removesuffix('.py').replace('/', '.')}"), function)


def page() -> str:
    """The text of `tests/README.md`."""
    lines = [HEAD]
    for name, tests in PROPERTIES.items():
        lines.append(f"- {name}")
        for test, axis in tests.items():
            file, _, function = test.partition("::")
            lines.append(f"  - [`{function}`]({file}): {axis}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "tests" / "README.md").write_text(page())
