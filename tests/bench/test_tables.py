"""Tables of a leaderboard, and intervals of a few seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.bench.leaderboard import row
from zerograd.bench import rows, tables
from zerograd.text import intervals as statistics


def test_tables_of_a_leaderboard_made_by_hand():
    half = "01" * 100
    most, few = half[:100] + "1" * 100, "0" * 100 + half[100:]
    found = [
        *(row("mezo", seed, half) for seed in range(3)),
        *(row("good", seed, most) for seed in range(3)),
        *(row("bad", seed, few) for seed in range(3)),
        row("near", 0, half[:-2] + "11"),
        row("near", 1, half[:-2] + "00"),
        row("elsewhere", 0, most, test="y"),
    ]
    (table,) = tables.tables(found)
    assert (table.budget, table.limit, table.reference, table.before, table.test_rows) == ("evaluations", 100, "mezo", 0.5, 200)
    lines = {line.method: line for line in table.lines}
    assert [line.method for line in table.lines] == ["elsewhere", "good", "mezo", "near", "bad"], "the losers are named"
    assert {name: line.verdict for name, line in lines.items()} == {
        "elsewhere": "", "good": "above", "mezo": "", "near": "even", "bad": "below",
    }  # fmt: skip
    assert lines["good"].value == pytest.approx(0.75)
    assert lines["good"].gain == pytest.approx(0.25)
    assert lines["good"].seconds == pytest.approx(21)
    assert lines["near"].interval == pytest.approx([max(0, 0.5 - 12.706 * 0.005), 0.5 + 12.706 * 0.005])
    assert lines["near"].gain == pytest.approx(0)
    assert lines["elsewhere"].interval is None
    assert lines["elsewhere"].gain is None, "other test rows are no pairs"
    text = tables.markdown(table)
    assert "| good | upper | 75.0 | 75.0, 75.0 | +25.0 (" in text
    assert "| bad | upper | 25.0 |" in text
    assert "| below |" in text


def test_a_table_for_each_budget_and_none_mixes_protocols():
    both = {
        "budget": {"evaluations": 100, "seconds": 30},
        "accuracy_seconds": 0.5,
        "evaluations_seconds": 150,
        "seconds_seconds": 30.5,
    }
    found = [row("mezo", 0, "01", **both, right_seconds=rows.pack("11")), row("mezo", 0, "00", key="q", protocol="q")]
    made = tables.tables(found)
    places = [(t.place.protocol, t.budget, t.limit) for t in made]
    assert places == [("p", "evaluations", 100), ("p", "seconds", 30), ("q", "evaluations", 100)]
    assert made[1].lines[0].evaluations == 150
    only = row("mezo", 0, "01", budget={"seconds": 30}, accuracy_seconds=0.5, evaluations_seconds=9, seconds_seconds=30)
    assert [t.budget for t in tables.tables([only])] == ["seconds"], "a budget that was not given has no table"


def test_a_table_of_all_tasks_is_of_the_seeds_that_have_them_all():
    """Means over tasks; the answers of all of them are paired; a scheme without the reference is held against that of another."""
    half, most = "01" * 50, "01" * 25 + "1" * 50
    found = [row(method, seed, right, task=task, accuracy_before=before, key=f"{method}{scheme}{seed}{task}", scheme=scheme)
             for method, scheme, right in (("mezo", "upper", half), ("good", "upper", most), ("good", "lora", most))
             for seed in range(2) for task, before in (("t", 0.5), ("u", 0.25))]  # fmt: skip
    found.append(row("partial", 0, most, task="t"))
    made = tables.tables(found)
    assert [t.place.task for t in made] == [tables.ALL_TASKS, "t", "u"]
    table = made[0]
    assert (table.before, table.test_rows) == (0.375, 200)
    lines = {(line.method, line.scheme): line for line in table.lines}
    assert set(lines) == {("mezo", "upper"), ("good", "upper"), ("good", "lora")}
    assert lines["good", "upper"].gain == lines["good", "lora"].gain == pytest.approx(0.25)
    assert [line.method for line in made[1].lines if line.method == "partial"], "of one task there is what it ran"


def test_the_reference_at_the_end_of_its_evaluations_is_what_others_reach_in_fewer_seconds():
    budget = {"evaluations": 100, "seconds": 10}
    timed = {"budget": budget, "evaluations_seconds": 40, "seconds_seconds": 10.5}
    half, most, few = "01" * 50, "1" * 100, "0" * 100
    found = [row("mezo", seed, half, **timed, accuracy_seconds=0.0, right_seconds=rows.pack(few)) for seed in range(2)]
    found += [row("fast", seed, few, **timed, accuracy_seconds=1.0, right_seconds=rows.pack(most)) for seed in range(2)]
    *_, table = tables.tables(found)
    assert table.title.endswith("after 10 s, against mezo after 20 s")
    lines = {line.method: line for line in table.lines}
    assert lines["mezo"].value == 0.5
    assert lines["fast"].value == 1.0
    assert lines["fast"].gain == pytest.approx(0.5)
    assert lines["fast"].seconds == 10.5
    slow = [one | {"budget": {"evaluations": 100, "seconds": 30}} for one in found]
    assert [t.budget for t in tables.tables(slow)] == ["evaluations", "seconds"], (
        "where it takes no longer there is nothing to show"
    )


def test_seconds_of_two_machines_are_never_in_one_table():
    timed = {
        "budget": {"evaluations": 100, "seconds": 10},
        "accuracy_seconds": 0.5,
        "evaluations_seconds": 40,
        "seconds_seconds": 10.5,
    }
    here, there = {"machine": {"cpu": "A", "cores": 2}, "settings": {"threads": 1}}, {"machine": {"cpu": "B", "cores": 2}}
    found = [row(method, 0, "01", **timed, **here, right_seconds=rows.pack("01")) for method in ("mezo", "near")]
    found.append(row("far", 0, "11", **timed, **there, right_seconds=rows.pack("11")))
    at_evaluations, *at_seconds = tables.tables(found)
    assert {line.method: line.verdict for line in at_evaluations.lines} == {"mezo": "", "near": "even", "far": "even"}
    assert (
        "Measured on A, 2 cores, 1 thread and B, 2 cores; seconds of different machines are not comparable. " in at_evaluations.note
    )
    said = [(table.title.rpartition(": ")[2], [line.method for line in table.lines]) for table in at_seconds]
    assert said == [
        ("at matched seconds (10), on A, 2 cores, 1 thread", ["mezo", "near"]),
        ("at matched seconds (10), on B, 2 cores", ["far"]),
        ("after 10 s, against mezo after 20 s, on A, 2 cores, 1 thread", ["mezo", "near"]),
    ]


def test_seeds_are_paired_on_one_set_of_test_rows(tmp_path):
    """Where a task's rows are others now, under the same protocol, those of before are no pairs."""
    found = [row(method, seed, "01" * 50) for method in ("mezo", "near") for seed in range(3)]
    found += [row(method, seed, right, test="y") for method, right in (("mezo", "01" * 60), ("near", "11" * 60)) for seed in (1, 0)]
    path = tmp_path / "l.jsonl"
    for one in found:
        rows.append(path, one)
    (table,) = tables.tables(rows.read(path))
    (line,) = (line for line in table.lines if line.method == "near")
    assert (line.gain, line.seeds) == (0.5, 3)


@pytest.mark.full
def test_the_interval_of_a_few_seeds_holds_the_truth_as_often_as_it_says():
    """Where seeds decide, as where rows do."""
    draw = np.random.default_rng(0)
    for across, within in ((0.05, 0.0), (0.05, 0.4), (0.0, 0.4)):
        held = 0
        for trial in range(200):
            values = draw.normal(0, across, (3, 1)) + draw.normal(0, within, (1, 40)) + draw.normal(0, within, (3, 40))
            low, high = statistics.crossed_bootstrap(values.tolist(), resamples=400, seed=trial)
            held += low <= 0 <= high
        assert held / 200 >= 0.92, (across, within)


def test_an_interval_is_as_wide_as_chance_and_no_wider():
    """Seeds that agree in every row leave the chance of rows."""
    values = (np.random.default_rng(1).random(500) < 0.3).astype(float)
    low, high = statistics.crossed_bootstrap([values.tolist()] * 3)
    half = 1.96 * values.std() / math.sqrt(500)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_tasks_weigh_the_same_however_many_rows_they_have():
    low, high = statistics.crossed_bootstrap([[1.0] * 4 + [0.0] * 400] * 3, [4, 400])
    assert (low, high) == pytest.approx((0.5, 0.5))
    few, many = "1" * 4, "0" * 400
    found = [row(method, seed, right if method == "good" else "0" * len(right), task=task, key=f"{method}{seed}{task}")
             for method in ("mezo", "good") for seed in range(2) for task, right in (("few", few), ("many", many))]  # fmt: skip
    table = tables.tables(found)[0]
    (line,) = (line for line in table.lines if line.method == "good")
    assert (line.value, line.gain) == pytest.approx((0.5, 0.5))
    assert line.gain_interval == pytest.approx([0.5, 0.5])


def test_intervals_of_a_few_seeds():
    assert statistics.student([1.0, 2.0, 3.0]) == pytest.approx([2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)])
    assert statistics.crossed_bootstrap([[0.5] * 40] * 3) == pytest.approx([0.5, 0.5])
    low, high = statistics.crossed_bootstrap([[0.0, 1.0] * 100, [1.0, 1.0] * 100])
    assert low < 0.75 < high
    assert high - low > 0.25, "seeds that differ widen the interval however many rows there are"
