"""Plans: which copies of a batch are scored, along which direction, with which sign."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from zerograd.queries import plan as plans
from zerograd.queries.plan import Plan


def test_a_part_of_a_plan_keeps_the_directions_of_its_examples():
    whole = plans.example_pairs(4, 2)
    part = whole.part(1, 3)
    assert part.examples == 2
    assert part.direction.tolist() == [1, 2, 5, 6, 1, 2, 5, 6]
    assert part.sign.tolist() == [1.0] * 4 + [-1.0] * 4


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-1.0, 0.0, 1.0])), min_size=1, max_size=12))
def test_variants_cover_each_example_once(pairs: list[tuple[int, float]]) -> None:
    plan = Plan(torch.tensor([d for d, _ in pairs]), torch.tensor([s for _, s in pairs]), 1)
    assert len(plan) == len(pairs)
    assert sorted(e for variant in plan.variants for e in variant.examples.tolist()) == list(range(len(pairs)))
    for variant in plan.variants:
        examples = variant.examples.tolist()
        assert all(pairs[e] == (variant.direction, variant.sign) for e in examples)
        assert examples == sorted(examples)
        assert (variant.span is None) == (examples != list(range(examples[0], examples[0] + len(examples))))
        assert variant.span in (None, (examples[0], examples[-1] + 1))
    assert list(plan.directions) == sorted({d for d, _ in pairs})
    assert [(plan.variants[i].direction, plan.variants[i].sign) for i in plan.variant_of.tolist()] == pairs
    assert [plan.only([i]).direction.tolist() for i in range(plan.copies)] == plan.direction.view(plan.copies, -1).tolist()
    drawn = [{d for d, s in pairs[i : i + plan.examples] if s} for i in range(0, len(pairs), plan.examples)]
    assert plan.is_separable == all(not a & b for a, b in itertools.combinations(drawn, 2))
    directions, signs = plan.variant_directions
    assert list(zip(directions.tolist(), signs.tolist(), strict=True)) == [(v.direction, v.sign) for v in plan.variants]
    assert [plan.directions[i] for i in plan.variant_places.tolist()] == directions.tolist()
    assert directions[plan.variant_order].tolist() == sorted(directions.tolist())
    blocks = [len(list(group)) for _, group in itertools.groupby(pairs)]
    assert plan.in_blocks == (len(blocks) == len(plan.variants) and len(set(blocks)) == 1)


def test_plans_of_the_methods() -> None:
    shared, each, clean, one = plans.shared_pairs(3), plans.example_pairs(3), plans.clean(3), plans.branch(7, -1)
    assert [(v.direction, v.sign, v.span) for v in shared.variants] == [(0, 1.0, (0, 3)), (0, -1.0, (3, 6))]
    assert each.direction.tolist() == [0, 1, 2] * 2
    assert each.sign.tolist() == [1] * 3 + [-1] * 3
    assert (shared.copies, each.copies, clean.copies, one.copies) == (2, 2, 1, 1)
    assert [(v.direction, v.sign) for v in one.variants] == [(7, -1.0)]
    assert [v.sign for v in clean.variants] == [0]
