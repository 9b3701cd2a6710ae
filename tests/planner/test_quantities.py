"""Quantities as people write them."""

from __future__ import annotations

import pytest

from zerograd.machine.format import quantity
from zerograd.planner import quantities


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("8B", "", 8e9),
        ("135m", "", 135e6),
        ("24GB", "B", 24e9),
        ("24 GiB", "B", 24 * 2**30),
        ("1.5T", "B", 1.5e12),
        ("3.35TB/s", "B/s", 3.35e12),
        ("400TFLOPS", "FLOPS", 4e14),
        ("2 TFLOP/s", "FLOPS", 2e12),
        ("1000", "B", 1000),
    ],
)
def test_quantities_are_read_as_people_write_them(text, unit, value):
    assert quantities.read("x", text, unit) == pytest.approx(value)


def test_a_quantity_that_is_written_is_read_again():
    for value in (1.0, 999.0, 999.9, 1e6, 3.35e12, 999.6e9):
        assert quantities.read("x", quantity(value, "B"), "B") == pytest.approx(value, rel=5e-3)
