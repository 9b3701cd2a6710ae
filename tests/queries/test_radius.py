"""Coefficients of a group whose radius is not the first group's."""

from __future__ import annotations

import pytest
import torch

from zerograd import optim

QUERIES = {name: method.query for name in optim.METHODS if (method := optim.method_of(name)).perturbs}


@pytest.mark.parametrize("name", QUERIES)
@pytest.mark.parametrize(("first", "own"), [(0.01, 0.03), (1.0, 0.25), (0.5, 0.5)])
def test_coefficients_for_a_radius_are_those_that_it_would_have_given_as_the_first(name: str, first: float, own: float) -> None:
    query, differences = QUERIES[name], torch.tensor([0.7, -0.2])
    if query.branches == 2 and not query.per_example:
        differences = differences[:1]
    recorded = query.coefficients(differences, first)
    torch.testing.assert_close(query.at_radius(recorded, first / own), query.coefficients(differences, own))
    assert recorded.any()
    shown = not torch.equal(query.coefficients(differences, 0.01), query.coefficients(differences, 0.03))
    assert shown == (query.shaping == "radius")
