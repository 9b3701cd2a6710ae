"""Studies: what they refuse, that a search sees no test row, that they go on where they were stopped, that rows repeat."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests import ROOT
from tests.cli.test_cli import folder  # noqa: F401  # a fixture
from tests.text.data.test_sources import write
from zerograd import journal
from zerograd.bench import page, process, prompts, rows, search, study, tables
from zerograd.bench.runner import Runner
from zerograd.bench.search import Chosen
from zerograd.bench.study import Cell, Search
from zerograd.cli import main
from zerograd.optim import METHODS
from zerograd.text import evaluation
from zerograd.text import intervals as statistics
from zerograd.text.data import tasks
from zerograd.text.models import loading as models
from zerograd.tune import resume as recording

FEW = {"evaluations": 8, "rows": {"dev": 8, "test": 10}, "settings": {"batch_size": 4, "threads": 1}, "search": {"rungs": 1}}


@pytest.fixture
def task(tmp_path) -> Path:
    """A task of forty rows in a file."""
    given = [{"text": f"{'good' if i % 2 else 'bad'} film, number {i}", "label": i % 2} for i in range(40)]
    data = write(tmp_path / "mine.jsonl", given)
    fields = {"prompt": "Film: {{ text }} It was", "options": [" n", " p"], "label": "label", "data": str(data)}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def written(tmp_path, folder, task, **more: Any) -> Path:  # noqa: F811
    fields = {"methods": ["mezo", "momentum"], "models": [str(folder)], "tasks": [str(task)], "schemes": ["upper"], "seeds": [0, 1]}
    fields |= {"grids": {"default": {"lr": [1, 4]}}} | FEW | more
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture
def here(monkeypatch) -> list[Any]:
    """Runs in this process. Gets the settings of each, with whether it was tested."""
    ran: list[Any] = []

    @contextlib.contextmanager
    def started(settings, untouched=None):
        ran.append((settings, untouched is not None))

        def lines():
            said: list[dict[str, Any]] = []
            result = process.train(settings, untouched, said.append)
            yield from said
            yield {"result": result}

        yield lines()

    monkeypatch.setattr(process, "started", started)
    return ran


@pytest.fixture
def scored(monkeypatch) -> list[set[str]]:
    """The texts of the rows that the plain model was asked of, call by call."""
    found: list[set[str]] = []
    answers = evaluation.answers

    def listening(scorer, examples, *more):
        found.append({example.row["text"] for example in examples})
        return answers(scorer, examples, *more)

    monkeypatch.setattr(evaluation, "answers", listening)
    return found


def splits_of(path: Path, tmp_path: Path) -> dict[str, set[str]]:
    made = Runner(study.read(path), tmp_path / "out")
    cell = next(iter(made.study.cells))
    from zerograd.tune.run import task_of
    from zerograd.tune.settings import TuneSettings

    whole = task_of(TuneSettings(task=made._task(cell)))
    return {name: {example.row["text"] for example in getattr(whole, name)} for name in ("train", "dev", "test")}


def test_a_search_scores_dev_rows_alone_and_a_row_the_test_rows_once_a_budget(folder, task, tmp_path, here, scored):  # noqa: F811
    path = written(tmp_path, folder, task, methods=["mezo"], seeds=[0, 1], seconds=0.05)
    splits = splits_of(path, tmp_path)
    assert [len(splits[name]) for name in ("dev", "test")] == [8, 10]
    runner = Runner(study.read(path), tmp_path / "out")
    cell = next(iter(runner.study.cells))
    chosen = runner.chosen(cell)
    assert scored
    assert all(some <= splits["dev"] for some in scored), "the search has looked at other rows"
    assert not any(tested for _, tested in here)
    assert {settings.seed for settings, _ in here} == {100}
    looks = []
    for seed, untouched in ((0, 1), (1, 0)):
        scored.clear()
        row = runner.row(cell, seed, chosen)
        looks.append({look["evaluations"]: look["dev_loss"] for look in row["curve"]}[8])
        tested = [some for some in scored if some & splits["test"]]
        assert all(some == splits["test"] for some in tested)
        both = row["evaluations"] != row["evaluations_seconds"]
        assert len(tested) == untouched + 1 + both, "the untouched model is asked once, for all rows"
    assert not any(some & splits["train"] for some in scored)
    assert [settings.seed for settings, tested in here if tested] == [0, 1]
    assert looks[0] != looks[1], "a seed is a run of its own"


def test_rows_are_of_what_their_search_has_found(folder, task, tmp_path, here):  # noqa: F811
    factors = [1e-9, 1, 2e-9]  # of which the second alone moves weights, down the loss or up
    runner = Runner(
        study.read(written(tmp_path, folder, task, methods=["mezo"], grids={"mezo": {"lr": factors}})), tmp_path / "out"
    )
    cell = next(iter(runner.study.cells))
    chosen = runner.chosen(cell)
    ended = {loss: config for config, state, loss in chosen.trials if state == "complete"}
    assert (chosen.dev_loss, chosen.config) == min(ended.items())
    for lr in factors:
        row = runner.row(cell, 0, Chosen({"lr": lr}, 0.0, []))
        assert here[-1][0].lr == row["lr"] == row["settings"]["lr"] == pytest.approx(lr * METHODS["mezo"].RATE)
    runner.run()
    assert {row["lr"] for row in rows.read(tmp_path / "out" / "leaderboard.jsonl")} == {chosen.config["lr"] * METHODS["mezo"].RATE}


def test_a_stopped_study_goes_on_and_ends_as_one_that_was_not(folder, task, tmp_path, here, monkeypatch):  # noqa: F811
    path = written(tmp_path, folder, task)
    assert Runner(study.read(path), tmp_path / "whole").run() == 4
    count = len(here)
    assert count == 2 * (2 + 2)  # of each method, a search of two runs and two rows
    here.clear()
    working = process.started

    def dying_at(number):
        @contextlib.contextmanager
        def started(settings, untouched=None):
            with working(settings, untouched) as lines:
                if len(here) == number:
                    next(lines)
                    raise KeyboardInterrupt
                yield lines

        return started

    out = tmp_path / "stopped"
    for number in (2, 1, 2, 2):
        here.clear()
        monkeypatch.setattr(process, "started", dying_at(number))
        with pytest.raises(KeyboardInterrupt):
            Runner(study.read(path), out).run()
    monkeypatch.setattr(process, "started", working)
    here.clear()
    Runner(study.read(path), out).run()
    assert here
    both = [rows.read(where / "leaderboard.jsonl") for where in (tmp_path / "whole", out)]
    same = ("key", "config", "accuracy", "right", "evaluations", "lr", "search")
    one, other = ([{name: row[name] for name in same} for row in sorted(some, key=lambda row: row["key"])] for some in both)
    assert one == other
    here.clear()
    assert Runner(study.read(path), out).run() == 0
    assert not here, "what is there is not run again"
    more = study.read(written(tmp_path, folder, task, methods=["mezo", "momentum", "sign"], seeds=[0, 1, 2]))
    assert Runner(more, out).run() == 2 + 3
    assert len(here) == 2 + 3 + 2, "a new method and a new seed leave the others' searches and rows"


def test_rows_at_matched_evaluations_do_not_depend_on_the_seconds_that_follow(folder, task, tmp_path, monkeypatch):  # noqa: F811
    ticks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks) / 16, process_time=time.process_time)  # 16 steps a second
    monkeypatch.setattr("zerograd.tune.loop.time", clock)

    def right(seconds):
        made = study.read(written(tmp_path, folder, task, evaluations=8, seconds=seconds))
        runner = Runner(made, tmp_path / "out")
        cell = next(iter(made.cells))
        settings = made.run(cell, {"lr": 20}, 0, runner._task(cell), 2)
        return process.train(settings, tmp_path / "untouched", lambda said: None)

    short, long = right(0), right(1.0)
    assert set(short["at"]) == {"evaluations"}
    assert set(long["at"]) == {"evaluations", "seconds"}
    assert [long["at"][budget]["evaluations"] for budget in ("evaluations", "seconds")] == [8, 32]
    assert long["at"]["evaluations"]["right"] == short["at"]["evaluations"]["right"] != short["right_before"]
    assert long["at"]["seconds"]["right"] != long["at"]["evaluations"]["right"]
    assert long["curve"][-1]["evaluations"] == long["at"]["seconds"]["evaluations"]
    assert short["steps"] == 4
    assert (short["state_bytes"], short["lr"]) == (0, 20 * METHODS["mezo"].RATE)


def test_from_the_command_line_to_the_tables_in_processes_of_their_own(folder, task, tmp_path, capsys):  # noqa: F811
    path = written(tmp_path, folder, task, methods=["momentum"], seeds=[0], grids={"momentum": {"lr": [2], "beta": [0.5]}})
    out = tmp_path / "out"
    assert main(["bench", "run", str(path), "--out", str(out), "--dry-run"]) == 0
    assert "1 rows, of which 1 are missing" in capsys.readouterr().out
    assert not out.exists()
    assert main(["bench", "run", str(path), "--out", str(out)]) == 0
    (row,) = rows.read(out / "leaderboard.jsonl")
    assert {
        "accuracy",
        "evaluations",
        "seconds",
        "peak_bytes",
        "state_bytes",
        "commit",
        "dirty",
        "versions",
        "machine",
    } <= row.keys()
    assert (row["evaluations"], row["method"], row["prompt"], row["seed"]) == (8, "momentum", "aligned", 0)
    assert row["settings"]["method_options"] == ["beta=0.5"]
    assert row["settings"]["lr"] == 2 * METHODS["momentum"].RATE
    assert row["state_bytes"] > 0 < row["peak_bytes"]
    before = (out / "leaderboard.jsonl").read_bytes()
    with recording.alone(out / "tiny" / row["method"]), pytest.raises(journal.JournalLocked):
        Runner(study.read(path), out).again(row["key"])
    assert main(["bench", "run", str(path), "--out", str(out), "--again", row["key"]]) == 0
    assert "the same answers and dev losses" in " ".join(capsys.readouterr().out.split())
    assert (out / "leaderboard.jsonl").read_bytes() == before
    other = json.loads(before) | {"curve": [look | {"dev_loss": look["dev_loss"] + 1e-6} for look in row["curve"]]}
    (out / "leaderboard.jsonl").write_text(json.dumps(other) + "\n")
    assert main(["bench", "run", str(path), "--out", str(out), "--again", row["key"]]) == 1
    assert "other answers or dev losses" in " ".join(capsys.readouterr().out.split())
    (out / "leaderboard.jsonl").write_bytes(before)
    assert rows.same(row, row)
    assert not rows.same(row, row | {"curve": [{"evaluations": look["evaluations"]} for look in row["curve"]]}), "it diverged"
    assert main(["bench", "table", str(out / "leaderboard.jsonl")]) == 0
    assert "| momentum |" in capsys.readouterr().out


def test_a_run_that_fails_ends_the_study_in_one_line(folder, task, tmp_path, capsys):  # noqa: F811
    path = written(tmp_path, folder, task, settings={"batch_size": 4, "threads": 1, "layers": 50})
    assert main(["bench", "run", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert "of 2 methods not all could be run, the first " in error
    assert "/mezo/upper/" in error
    assert "layers is 50" in error
    assert len(error.splitlines()) == 1
    assert not list((tmp_path / "out").glob("**/hidden.*")), "nothing of a run stays"


def test_another_scheme_answers_the_same_test_rows_of_another_model(folder, task, tmp_path):  # noqa: F811
    """So that its rows are paired with those of the reference."""
    made = study.read(written(tmp_path, folder, task, methods=["mezo"], schemes=["upper", "lora"]))
    runner = Runner(made, tmp_path / "out")
    found = {cell.scheme: runner.row(cell, 0, Chosen({"lr": 1}, 0.0, [])) for cell in made.cells}
    assert found["upper"]["test"] == found["lora"]["test"]
    assert found["upper"]["settings"] == {"batch_size": 4, "threads": 1, **{
        name: found["upper"]["settings"][name] for name in ("lr", "eps", "evals", "evaluations", "minutes", "keep", "schedule")
    }}  # fmt: skip
    assert found["upper"]["cpu_seconds"] > 0
    assert str(tmp_path) not in json.dumps(found["upper"]["settings"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"methods": ["nadam"]}, "methods has 'nadam'; choose of mezo, "),
        ({"methods": []}, "methods is []; give at least one"),
        ({"reference": "mezzo"}, "reference is 'mezzo'; choose of mezo, "),
        ({"grids": {"momentum": {"beta": [0.9, 2]}}}, "method momentum, scheme upper: beta is 2"),
        ({"methods": ["adam"], "grids": {"adam": {"betas": [["0.9", 0.5]]}}}, "betas are ['0.9', 0.5]; they must be two numbers"),
        ({"methods": "mezo"}, "methods is 'mezo'; it must be a list of names"),
        ({"tasks": ["nowhere"]}, "task 'nowhere' is not one of"),
        ({"tasks": ["squad"]}, "task squad has free answers"),
        ({"prompts": ["polite"]}, "prompts has 'polite'; choose of aligned, plain"),
        ({"schemes": ["half"]}, "schemes has 'half'"),
        ({"seeds": [0, 100]}, "search.seed is 100, one of the seeds that are reported"),
        ({"seeds": [0, 0]}, "seeds is [0, 0]; give at least one, each once"),
        ({"seeds": [0, -1]}, "seeds has -1"),
        ({"evaluations": 0}, "evaluations and seconds are both 0"),
        ({"evaluations": 0, "seconds": 5}, "search.evaluations is 0"),
        ({"evaluations": 1.5}, "evaluations is 1.5; it must be a number"),
        ({"seconds": 5, "settings": {"schedule": "linear"}}, "a schedule that falls to one end"),
        ({"settings": {"seed": 3}}, "settings has 'seed'"),
        ({"settings": {"batch": 3}}, "settings has 'batch'"),
        ({"settings": {"batch_size": 0}}, "batch_size is 0"),
        ({"grids": {"nadam": {}}}, "grids has 'nadam'"),
        ({"grids": {"default": {"lr": 1}}}, "lr of mezo is 1; it must be a list of values"),
        ({"grids": {"default": {"lr": ["x"]}}}, "lr is 'x' in a grid"),
        ({"grids": {"default": {"beta": [0.5]}}}, "method mezo, scheme upper: method_options has 'beta=0.5'"),
        ({"search": {"factor": 1}}, "search.factor is 1"),
        ({"search": {"task": "rte"}}, "search.task is 'rte'; it must be one of the tasks"),
        ({"search": {"rung": 1}}, "search has a field 'rung'"),
        ({"rows": {"tset": 5}}, "rows has 'tset'"),
        ({"rows": {"test": 0}}, "rows.test is 0"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"budget": 3}, "it has a field 'budget'; the fields are name, methods"),
    ],
)
def test_what_is_wrong_with_a_study_is_one_line_and_exit_two(folder, task, tmp_path, capsys, fields, says):  # noqa: F811
    path = written(tmp_path, folder, task, **fields)
    assert main(["bench", "run", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert error.startswith("zerograd bench: ")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_no_study_and_no_leaderboard_are_one_line(tmp_path, capsys):
    broken = write_lines(tmp_path / "broken.jsonl", ["{", "{}"])
    for command, says in (
        (["run", str(tmp_path / "none.yaml")], "is not there"),
        (["table", str(tmp_path / "none.jsonl")], "is not there"),
        (["table", str(broken)], "line 1: not JSON"),
        (["page", str(write_lines(tmp_path / "half.jsonl", ["{}", ""]))], "line 1: it has no method"),
    ):
        assert main(["bench", *command]) == 2
        assert says in capsys.readouterr().err


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_the_studies_in_the_repository_are_compared():
    place = ROOT / "benchmarks"
    found, faced = study.read(place / "sentiment.yaml"), study.read(place / "sentiment-lora.yaml")
    assert set(found.methods) == set(METHODS)
    assert len(found.seeds) >= 3
    assert faced.protocol == found.protocol
    assert (faced.tasks, faced.seeds, faced.prompts) == (found.tasks, found.seeds, found.prompts)


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


def row(method: str, seed: int, right: str, **more: Any) -> dict[str, Any]:
    fields = {
        "key": f"p/m/{method}/upper/t/aligned/{seed}", "study": "s", "protocol": "p", "model": "m", "method": method,
        "scheme": "upper", "task": "t", "prompt": "aligned",
        "seed": seed, "accuracy": rows.share(right), "evaluations": 100, "seconds": 20.0 + seed,
        "peak_bytes": 3e6, "state_bytes": 1e6, "right": rows.packed(right), "test": "x", "test_rows": len(right), "lr": 0.1,
        "accuracy_before": 0.5, "budget": {"evaluations": 100}, "reference": "mezo", "commit": "c", "curve": [],
    }  # fmt: skip
    return fields | more


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
    found = [row("mezo", 0, "01", **both, right_seconds=rows.packed("11")), row("mezo", 0, "00", key="q", protocol="q")]
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
    assert [t.place.task for t in made] == [tables.ALL, "t", "u"]
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
    found = [row("mezo", seed, half, **timed, accuracy_seconds=0.0, right_seconds=rows.packed(few)) for seed in range(2)]
    found += [row("fast", seed, few, **timed, accuracy_seconds=1.0, right_seconds=rows.packed(most)) for seed in range(2)]
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
    found = [row(method, 0, "01", **timed, **here, right_seconds=rows.packed("01")) for method in ("mezo", "near")]
    found.append(row("far", 0, "11", **timed, **there, right_seconds=rows.packed("11")))
    at_evaluations, *at_seconds = tables.tables(found)
    assert {line.method: line.verdict for line in at_evaluations.lines} == {"mezo": "", "near": "even", "far": "even"}
    assert "Measured on A, 2 cores, 1 thread and B, 2 cores; their seconds are not alike. " in at_evaluations.note
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


def test_the_page_draws_seconds_of_one_machine(tmp_path):
    timed = {
        "budget": {"evaluations": 100, "seconds": 10}, "accuracy_seconds": 0.5, "evaluations_seconds": 40, "seconds_seconds": 10.5,
        "right_seconds": rows.packed("01"),
    }  # fmt: skip
    curve = [{"evaluations": 0, "seconds": 0.0, "dev_loss": 0.7}, {"evaluations": 100, "seconds": 9.0, "dev_loss": 0.6}]
    found = [
        row(method, 0, "01", **timed, curve=curve, machine={"cpu": cpu, "cores": 2})
        for method, cpu in (("mezo", "A"), ("adam", "A"), ("elsewhere", "B"))
    ]
    page.write(tmp_path / "page.html", found)
    by_seconds, by_memory, curves = (tmp_path / "page.html").read_text().split("<svg")[1:]
    assert "elsewhere" in by_memory
    assert "adam" in by_seconds
    assert "elsewhere" not in by_seconds + curves.partition("</figure>")[0]


def test_the_page_needs_nothing_else_and_names_the_losers(tmp_path):
    curve = [{"evaluations": 0, "seconds": 0.0, "dev_loss": 0.7}, {"evaluations": 100, "seconds": 9.0, "dev_loss": 0.6}]
    found = [row("mezo", seed, "01" * 50, curve=curve) for seed in range(2)] + [row("<b>", seed, "00" * 50) for seed in range(2)]
    leaderboard = write_lines(tmp_path / "l.jsonl", [json.dumps(one) for one in found])
    assert main(["bench", "page", str(leaderboard), "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "below mezo: &lt;b&gt;" in text
    assert "<b>" not in text.replace('<b class="after">', "")
    assert "http" not in text.replace("http://www.w3.org", "")
    assert text.count("<svg") == 3


def test_figures_show_where_most_stand_and_names_that_have_room(tmp_path):
    most, before = "0" * 10 + "1" * 90, {"accuracy_before": 0.8}
    found = [row("mezo", 0, most, **before), row("worst", 0, "0" * 99 + "1", **before)]
    found += [row(f"alike-{number}", 0, most, **before) for number in range(12)]
    found.append(row("mezo", 0, "0" + most[1:-1] + "1", **before, scheme="lora", peak_bytes=9e6))
    page.write(tmp_path / "page.html", found)
    figure = (tmp_path / "page.html").read_text().split("<svg")[2].partition("</svg>")[0]
    written = re.findall(r">([^<>]+)</text>", figure)
    assert "worst 1.0" in written, "where it stands is off the figure, which is drawn for the others"
    assert {"mezo on lora", "mezo on upper"} <= set(written)
    assert 1 <= sum(name.startswith("alike-") for name in written) <= 4, "of those that stand in one place few have room"
    assert min(float(name) for name in written if name.isdigit() and float(name) > 20) >= 60


def test_a_row_that_was_cut_short_is_left_out_and_written_over(tmp_path):
    path = tmp_path / "l.jsonl"
    rows.append(path, row("mezo", 0, "01"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert len(rows.read(path)) == 1
    rows.append(path, row("mezo", 1, "01"))
    rows.append(path, row("mezo", 1, "11"))
    assert [one["accuracy"] for one in rows.read(path)] == [0.5, 1.0], "the last row of a key counts"
    assert path.read_bytes().startswith(whole)
    path.write_bytes(path.read_bytes().rstrip())
    rows.append(path, row("mezo", 2, "01"))
    assert [one["seed"] for one in rows.read(path)] == [0, 1, 2], "a last line that lacks nothing but its end is a row"


def test_a_row_for_which_there_is_no_room_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "l.jsonl"
    rows.append(path, row("mezo", 0, "01"))
    before = path.read_bytes()
    kept, write = [], os.write

    def short(handle, data):
        if kept:
            raise OSError("no space left")
        kept.append(write(handle, data[:40]))
        return kept[0]

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OSError, match="no space left"):
        rows.append(path, row("mezo", 1, "01"))
    monkeypatch.undo()
    assert path.read_bytes().startswith(before)
    rows.append(path, row("mezo", 1, "01"))
    assert [one["seed"] for one in rows.read(path)] == [0, 1]


def test_answers_are_packed_without_loss():
    for right in ("0", "1", "0001", "1" * 700, "0" * 9 + "1"):
        assert rows.unpacked(rows.packed(right)) == [int(bit) for bit in right]


def test_a_plain_prompt_is_the_text_alone_with_the_same_options():
    for name in tasks.TASKS:
        spec = tasks.spec(name)
        if spec.kind == "answer":
            continue
        plain = prompts.varied(spec, "plain", {"test": 7})
        assert (plain.options, plain.label, plain.data, plain.rows["test"]) == (spec.options, spec.label, spec.data, 7)
        assert not "".join(part.partition("}}")[2] for part in plain.prompt.split("{{")).strip(), "no word but the columns'"
    assert prompts.varied(tasks.spec("sentiment-movies"), "plain", {}).prompt == "{{ text | trim }}"
    rte = prompts.varied(tasks.spec("rte"), "plain", {})
    assert rte.prompt == "{{ premise | trim }}\n{{ hypothesis | trim }}"
    assert prompts.varied(tasks.spec("rte"), "aligned", {}).prompt == tasks.spec("rte").prompt


def test_searches_are_shared_where_the_study_says_so(folder, task, tmp_path):  # noqa: F811
    more = {"tasks": [str(task), "sentiment-movies"], "prompts": ["plain", "aligned"]}
    apart = study.read(written(tmp_path, folder, task, **more))
    assert len({apart.searched(cell) for cell in apart.cells}) == 8
    shared = dataclasses.replace(apart, search=Search(task="sentiment-movies"))
    assert {cell.prompt for cell in map(shared.searched, shared.cells)} == {"plain"}
    assert len({shared.searched(cell) for cell in shared.cells}) == 2
    assert shared.protocol != apart.protocol
    assert dataclasses.replace(apart, seeds=(7,), methods=("sign",)).protocol == apart.protocol, "more of it is the same study"


def test_keys_tell_rows_apart(folder, task, tmp_path):  # noqa: F811
    made = Runner(study.read(written(tmp_path, folder, task, prompts=["plain", "aligned"])), tmp_path)
    keys = [made.key(cell, seed) for cell in made.study.cells for seed in made.study.seeds]
    assert len(set(keys)) == 8
    assert Cell("demo", "mezo", "upper", "rte", "plain").key == "demo/mezo/upper/rte/plain"
    with pytest.raises(ValueError, match="has no row 'x'"):
        made.again("x")
    assert Chosen({}, 0.0, []).trials == []


def test_the_interval_of_a_few_seeds_holds_the_truth_as_often_as_it_says():
    """Where seeds decide, as where rows do."""
    draw = np.random.default_rng(0)
    for across, within in ((0.05, 0.0), (0.05, 0.4), (0.0, 0.4)):
        held = 0
        for trial in range(200):
            values = draw.normal(0, across, (3, 1)) + draw.normal(0, within, (1, 40)) + draw.normal(0, within, (3, 40))
            low, high = statistics.crossed(values.tolist(), resamples=400, seed=trial)
            held += low <= 0 <= high
        assert held / 200 >= 0.92, (across, within)


def test_an_interval_is_as_wide_as_chance_and_no_wider():
    """Seeds that agree in every row leave the chance of rows."""
    values = (np.random.default_rng(1).random(500) < 0.3).astype(float)
    low, high = statistics.crossed([values.tolist()] * 3)
    half = 1.96 * values.std() / math.sqrt(500)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_tasks_weigh_the_same_however_many_rows_they_have():
    low, high = statistics.crossed([[1.0] * 4 + [0.0] * 400] * 3, [4, 400])
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
    assert statistics.crossed([[0.5] * 40] * 3) == pytest.approx([0.5, 0.5])
    low, high = statistics.crossed([[0.0, 1.0] * 100, [1.0, 1.0] * 100])
    assert low < 0.75 < high
    assert high - low > 0.25, "seeds that differ widen the interval however many rows there are"


def test_a_gguf_file_is_read_once_and_its_folder_is_the_same_model(folder, task, tmp_path, monkeypatch):  # noqa: F811
    runner = Runner(study.read(written(tmp_path, folder, task)), tmp_path / "out")
    assert runner._model(str(folder)) == str(folder), "what is a folder stays where it is"
    file = tmp_path / "some.gguf"
    file.touch()
    loaded = models.load(str(folder))
    read = []
    monkeypatch.setattr(models, "load", lambda name, *more: read.append(name) or loaded)
    made = [runner._model(str(file)) for _ in range(2)]
    monkeypatch.undo()
    other = tmp_path / "more" / "some.gguf"
    other.parent.mkdir()
    other.touch()
    assert read == [str(file)]
    assert made[0] == made[1]
    monkeypatch.setattr(models, "load", lambda name, *more: read.append(name) or loaded)
    assert runner._model(str(other)) not in made, "another file of that name is another model"
    monkeypatch.undo()
    assert journal.identity(models.load(made[0]).model) == journal.identity(loaded.model)
