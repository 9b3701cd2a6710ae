"""Numbers as people read them: one text for a number, on the screen and, typeset, on a page."""

from __future__ import annotations

import pytest

from zerograd.machine import format as text
from zerograd.machine.format import Measure
from zerograd.report.document import typeset


@pytest.mark.parametrize(
    ("is_share", "value", "gain", "interval", "gain_interval"),
    [
        (True, "88.3 %", "-1.2 points", "86.9, 89.7", "-2.2, +0.2"),
        (False, "0.8831", "-0.0123", "0.8689, 0.8972", "-0.0221, +0.002"),
    ],
)
def test_a_share_is_in_percent_and_any_other_metric_a_plain_number(is_share, value, gain, interval, gain_interval):
    measure = Measure(is_share)
    assert measure.value(0.88312, unit=True) == value
    assert measure.value(0.88312) == value.removesuffix(" %")
    assert measure.gain(-0.0123, unit=True) == gain
    assert measure.gain(-0.0123) == gain.removesuffix(" points")
    assert measure.interval((0.86891, 0.89721)) == interval
    assert measure.gain_interval((-0.0221, 0.002)) == gain_interval


def test_percents_have_the_digits_and_the_sign_that_are_asked_for():
    assert (text.percent(0.8831), text.percent(0.8831, 2), text.percent(0.5, 0)) == ("88.3 %", "88.31 %", "50 %")
    assert (text.percent(0.051, sign="+"), text.percent(-0.051, sign="+")) == ("+5.1 %", "-5.1 %")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0421, "42 ms"), (1.0, "1.0 s"), (9.94, "9.9 s"), (10.0, "10 s"), (7199.0, "7,199 s"), (7200.0, "2.0 h"), (9000.0, "2.5 h")],
)
def test_a_duration_has_the_unit_that_suits_it(seconds, said):
    assert text.duration(seconds) == said


def test_seconds_are_written_as_such_as_minutes_and_as_a_clock():
    assert (text.seconds(299.6), text.seconds(2.345, 2), text.minutes(246.0), text.clock(245.9)) == (
        "300 s",
        "2.35 s",
        "4.1 minutes",
        "4:05",
    )


def test_bytes_are_decimal_unless_they_are_said_to_be_binary():
    assert text.megabytes(1_312_000_000) == "1,312 MB"
    assert text.mebibytes(1024 * 2**20) == "1024 MB"


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(0, "B", "0 B"), (999, "B", "999 B"), (999.6, "B", "1 KB"), (1.312e9, "B", "1.31 GB"), (4e14, "FLOP/s", "400 TFLOP/s")],
)
def test_a_quantity_has_three_digits_and_the_prefix_that_suits_it(value, unit, said):
    assert text.quantity(value, unit) == said


def test_nouns_follow_their_numbers():
    assert [text.count(n, "row") for n in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]
    assert text.passes(1) == "1 forward pass, no backward pass"
    assert text.passes(1200) == "1,200 forward passes, no backward pass"
    assert "150 backward passes" in text.passes(450, 150)


def test_a_page_sets_minus_signs_and_keeps_percent_signs_beside_their_numbers():
    assert typeset("-1.2 %") == "\u22121.2\u00a0%"
