"""Plans: which copies of a batch are scored, along which direction, with which coefficient."""

from __future__ import annotations

import dataclasses
import gc
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zerograd.queries import plan as plans
from zerograd.queries.plan import Plan, Variant


def seen(plan: Plan) -> list[tuple[int, float]]:
    """(direction, coefficient) of each expanded example."""
    return list(zip(plan.example_directions.tolist(), plan.example_coefficients.tolist(), strict=True))


def test_a_part_of_a_plan_keeps_the_directions_of_its_examples():
    whole = plans.example_pairs(4, 2)
    part = whole.part(1, 3)
    assert part.examples == 2
    assert part.example_directions.tolist() == [1, 2, 5, 6, 1, 2, 5, 6]
    assert part.example_coefficients.tolist() == [1.0] * 4 + [-1.0] * 4
    shared = plans.shared_pairs(4, 2).part(1, 3)
    assert shared.example_directions.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-1.0, 0.0, 0.5, 1.0])), min_size=1, max_size=12),
    st.integers(1, 3),
    st.booleans(),
)
def test_variants_cover_each_example_once(pairs: list[tuple[int, float]], examples: int, own: bool) -> None:
    plan = plans.branches(examples, [d for d, _ in pairs], [c for _, c in pairs], own_directions=own)
    expected = [(d + b * own, c) for d, c in pairs for b in range(examples)]
    assert (len(plan), plan.branches) == (len(expected), len(pairs))
    assert seen(plan) == expected
    variants = list(plan.variants())
    assert [plan.variant(i) for i in range(len(variants))] == variants
    assert [e for variant in variants for e in range(variant.first, variant.stop)] == list(range(len(plan)))
    assert {variant.examples for variant in variants} == {1 if own else examples}
    for variant in variants:
        assert set(expected[variant.first : variant.stop]) == {(variant.direction, variant.coefficient)}
    assert plan.directions == sorted({d for d, _ in expected})
    assert [(variants[i].direction, variants[i].coefficient) for i in plan.variant_of.tolist()] == expected
    assert [plan.directions[i] for i in plan.example_places.tolist()] == [d for d, _ in expected]
    parts = [plan.only(slice(i, i + 1)) for i in range(plan.branches)]
    assert [one for part in parts for one in seen(part)] == expected
    assert plan.is_separable == all(a != b for (a, _), (b, _) in itertools.combinations([p for p in pairs if p[1]], 2))
    of_variants = [v.direction for v in variants]
    assert plan.variant_directions.tolist() == of_variants
    assert plan.variant_coefficients.tolist() == [v.coefficient for v in variants]
    assert [plan.directions[i] for i in plan.variant_places.tolist()] == of_variants
    assert plan.variant_directions[plan.variant_order].tolist() == sorted(of_variants)


def test_plans_of_the_methods() -> None:
    shared, each, clean, one = plans.shared_pairs(3), plans.example_pairs(3), plans.clean(3), plans.branches(1, [7], [-1])
    assert list(shared.variants()) == [Variant(0, 1.0, 0, 3), Variant(0, -1.0, 3, 6)]
    assert each.example_directions.tolist() == [0, 1, 2] * 2
    assert each.example_coefficients.tolist() == [1] * 3 + [-1] * 3
    assert (shared.branches, each.branches, clean.branches, one.branches) == (2, 2, 1, 1)
    assert list(one.variants()) == [Variant(7, -1.0, 0, 1)]
    assert [v.coefficient for v in clean.variants()] == [0]
    assert [v.coefficient for v in plans.population(2, 3).variants()] == [1.0, 1.0, 1.0, 0.0]
    assert plans.population(2, 3, clean=False).directions == [0, 1, 2]


COUNT = 10_000


@pytest.mark.parametrize("own", [False, True], ids=["coordinates", "examples"])
def test_a_large_plan_makes_no_python_object_for_each_of_its_parts(own: bool) -> None:
    """A branch a coordinate, and a direction an example: made, cut and split into tensors, and nothing is counted in Python."""
    gc.collect()
    gc.disable()
    before = len(gc.get_objects())
    try:
        plan = plans.example_pairs(COUNT) if own else plans.population(1, COUNT)
        part = plan.part(0, plan.examples) if own else plan.only(slice(0, COUNT // 2))
        tensors = [
            getattr(some, name)
            for some in (plan, part)
            for name in (
                *("variant_directions", "variant_coefficients", "variant_of", "variant_order", "variant_places"),
                *("example_directions", "example_places", "example_coefficients"),
            )
        ]
        made = len(gc.get_objects()) - before
    finally:
        gc.enable()
    assert made < 200
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors)
    fields = [getattr(plan, field.name) for field in dataclasses.fields(plan)]
    held = [value for value in fields if not isinstance(value, (int, bool, torch.device))]
    assert [(type(value), len(value)) for value in held] == [(torch.Tensor, 2 if own else COUNT + 1)] * 2
    assert plan.variant(COUNT - 1) == Variant(COUNT - 1, 1.0, COUNT - 1, COUNT)


def test_variants_are_made_one_at_a_time() -> None:
    variants = plans.example_pairs(COUNT).variants()
    assert iter(variants) is variants
    assert next(variants) == Variant(0, 1.0, 0, 1)
