"""Intervals of shares and of differences, and thresholds."""

from __future__ import annotations

from zerograd.text import intervals as statistics


def test_wilson_matches_a_known_value():
    low, high = statistics.wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_the_paired_interval_covers_the_difference_and_shrinks_when_rows_agree():
    before, after = [True] * 50 + [False] * 50, [True] * 55 + [False] * 45
    low, high = statistics.paired(before, after)
    assert low < 0.05 < high
    assert high - low < 0.1
    assert statistics.paired(before, before) == [0, 0]


def test_the_threshold_gets_the_most_rows_right():
    margins, labels = [-3.0, -1.0, -0.5, 0.2, 2.0], [0, 0, 1, 1, 1]
    assert statistics.best_threshold(margins, labels) == -0.75
    assert statistics.best_threshold([1.0, 2.0], [1, 1]) == 0.0
