"""Learning rate schedules."""

from __future__ import annotations

from zerograd.tune.schedule import schedule


def test_schedules_start_at_one_and_fall_to_zero_or_stay():
    assert [schedule(name, 0.0, 1.0) for name in ("constant", "linear", "cosine")] == [1, 1, 1]
    assert schedule("linear", 1.0, 0.0) == 0
    assert abs(schedule("cosine", 1.0, 0.0)) < 1e-12
    assert schedule("constant", 0.7, 0.3) == 1
