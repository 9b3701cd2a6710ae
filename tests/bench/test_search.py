"""The search for settings: rungs, halving, and a search that was cut off."""

from __future__ import annotations

import contextlib

import pytest

from zerograd.bench import search
from zerograd.bench.study import Search


def curves(losses):
    """Starts runs that look at dev as often as they are to, with a loss by config that falls with each look."""
    looked = []

    @contextlib.contextmanager
    def start(config, looks):
        def lines():
            for look in range(looks + 1):
                looked.append((config["lr"], look))
                yield {"dev": {"evaluations": 100 * look / looks, "dev_loss": losses[config["lr"]] + 1 / (look + 1)}}
            yield {"result": {"stopped": None}}

        yield lines()

    return start, looked


def test_a_run_of_large_steps_is_judged_where_it_passes_a_rung(tmp_path):
    """Its first look is at half of the evaluations, beyond the first rung: held against those that come to the rung."""

    @contextlib.contextmanager
    def start(config, looks):
        seen = {1: [(0, 0.9), (25, 0.5), (50, 0.4), (75, 0.3), (100, 0.2)], 2: [(0, 0.9), (54, 0.45), (108, 0.1)]}
        seen[3] = [(0, 0.9), (30, 0.48), (52, 0.39), (75, 0.2), (100, 0.15)]
        lines = [{"dev": {"evaluations": at, "dev_loss": loss}} for at, loss in seen[config["lr"]]]
        yield iter([*lines, {"result": {"stopped": None}}])

    found = search.best(tmp_path / "s.log", "a", [{"lr": 1}, {"lr": 2}, {"lr": 3}], Search(rungs=2, factor=2), 100, start)
    states = {config["lr"]: (state, loss) for config, state, loss in found.trials}
    assert states == {1: ("complete", 0.2), 2: ("pruned", 0.45), 3: ("pruned", 0.48)}


def test_halving_finds_the_best_stops_the_others_early_and_is_not_run_twice(tmp_path):
    losses = {1: 0.5, 2: 0.4, 3: 0.9, 4: 0.8, 5: 0.3, 6: 0.7}
    start, looked = curves(losses)
    grid = [{"lr": lr} for lr in losses]
    found = search.best(tmp_path / "search.log", "a", grid, Search(rungs=2, factor=2), 100, start)
    assert found.config == {"lr": 5}
    assert found.dev_loss == pytest.approx(0.3 + 1 / 5)
    assert {config["lr"]: state for config, state, _ in found.trials} | {4: ""} == {
        1: "complete", 2: "complete", 3: "pruned", 4: "", 5: "complete", 6: "pruned",
    }  # fmt: skip
    assert (3, 1) in looked
    assert (3, 2) not in looked, "a run that is stopped goes no further than the first rung"
    assert [lr for lr, look in looked if look == 0] == list(losses), "a promoted run goes on; it does not begin again"
    looked.clear()
    again = search.best(tmp_path / "search.log", "a", grid, Search(rungs=2, factor=2), 100, start)
    assert not looked
    assert again == found
    search.best(tmp_path / "search.log", "a", [*grid, {"lr": 1}], Search(rungs=2, factor=2), 100, start)
    assert looked, "another grid is another search"


def test_a_search_that_was_cut_off_chooses_as_one_that_was_not(tmp_path):
    """What a run said before it was cut off is no rival of itself when it runs again."""
    losses = {1: 0.2, 2: 0.9, 3: 0.8, 4: 0.1, 5: 0.5}
    grid = [{"lr": lr} for lr in losses]
    rule = Search(rungs=2, factor=2)
    start, _ = curves(losses)
    whole = search.best(tmp_path / "whole.log", "a", grid, rule, 100, start)

    for config, look in [(1, 3), (3, 0), (4, 1), (4, 2), (5, 0)]:

        @contextlib.contextmanager
        def dying(given, looks, config=config, look=look):
            with start(given, looks) as lines:
                yield (_cut(lines, look) if given["lr"] == config else lines)

        with pytest.raises(KeyboardInterrupt):
            search.best(tmp_path / "cut.log", "a", grid, rule, 100, dying)
    assert search.best(tmp_path / "cut.log", "a", grid, rule, 100, start) == whole
    assert {config["lr"] for config, state, _ in whole.trials if state == "complete"} == {1, 4}
    assert {config["lr"] for config, state, _ in whole.trials if state == "pruned"} == {2, 3, 5}


def _cut(lines, look):
    for number, line in enumerate(lines):
        yield line
        if number == look:
            raise KeyboardInterrupt


def test_a_diverging_config_never_wins(tmp_path):
    @contextlib.contextmanager
    def start(config, looks):
        stopped = "ended: the loss was not finite" if config["lr"] == 1 else None
        yield iter([{"dev": {"evaluations": 100, "dev_loss": 0.1 * config["lr"]}}, {"result": {"stopped": stopped}}])

    assert search.best(tmp_path / "s.log", "a", [{"lr": 1}, {"lr": 2}], Search(), 100, start).config == {"lr": 2}
