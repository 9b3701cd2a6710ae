"""Studies: what they refuse, that a search sees no test row, that they go on where they were stopped, that rows repeat."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import time
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import ROOT
from tests.bench.leaderboard import write_lines
from tests.text.data.files import write
from zerograd import journal
from zerograd.bench import process, prompts, rows, study
from zerograd.bench.runner import Runner
from zerograd.bench.search import SearchResult
from zerograd.bench.study import Cell, Search
from zerograd.cli import main
from zerograd.machine.files import locked_folder
from zerograd.optim import METHODS
from zerograd.text import evaluation
from zerograd.text.data import tasks
from zerograd.text.models import loading as models

pytestmark = pytest.mark.full

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


def written(tmp_path, folder, task, **more: Any) -> Path:
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

    monkeypatch.setattr(process, "start_run", started)
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
    from zerograd.tune.settings import TuneSettings
    from zerograd.tune.task import task_of

    whole = task_of(TuneSettings(task=made._task_file(cell)))
    return {name: {example.row["text"] for example in getattr(whole, name)} for name in ("train", "dev", "test")}


def test_a_search_scores_dev_rows_alone_and_a_row_the_test_rows_once_a_budget(folder, task, tmp_path, here, scored):
    path = written(tmp_path, folder, task, methods=["mezo"], seeds=[0, 1], seconds=0.05)
    splits = splits_of(path, tmp_path)
    assert [len(splits[name]) for name in ("dev", "test")] == [8, 10]
    runner = Runner(study.read(path), tmp_path / "out")
    cell = next(iter(runner.study.cells))
    chosen = runner.search_result(cell)
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


def test_rows_are_of_what_their_search_has_found(folder, task, tmp_path, here):
    factors = [1e-9, 1, 2e-9]  # of which the second alone moves weights, down the loss or up
    runner = Runner(
        study.read(written(tmp_path, folder, task, methods=["mezo"], grids={"mezo": {"lr": factors}})), tmp_path / "out"
    )
    cell = next(iter(runner.study.cells))
    chosen = runner.search_result(cell)
    ended = {loss: config for config, state, loss in chosen.trials if state == "complete"}
    assert (chosen.dev_loss, chosen.config) == min(ended.items())
    for lr in factors:
        row = runner.row(cell, 0, SearchResult({"lr": lr}, 0.0, []))
        assert here[-1][0].lr == row["lr"] == row["settings"]["lr"] == pytest.approx(lr * METHODS["mezo"].default_lr)
    runner.run()
    assert {row["lr"] for row in rows.read(tmp_path / "out" / "leaderboard.jsonl")} == {
        chosen.config["lr"] * METHODS["mezo"].default_lr
    }


def test_a_stopped_study_goes_on_and_ends_as_one_that_was_not(folder, task, tmp_path, here, monkeypatch):
    path = written(tmp_path, folder, task)
    assert Runner(study.read(path), tmp_path / "whole").run() == 4
    count = len(here)
    assert count == 2 * (2 + 2)  # of each method, a search of two runs and two rows
    here.clear()
    working = process.start_run

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
        monkeypatch.setattr(process, "start_run", dying_at(number))
        with pytest.raises(KeyboardInterrupt):
            Runner(study.read(path), out).run()
    monkeypatch.setattr(process, "start_run", working)
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


def test_rows_at_matched_evaluations_do_not_depend_on_the_seconds_that_follow(folder, task, tmp_path, monkeypatch):
    ticks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks) / 16, process_time=time.process_time)  # 16 steps a second
    monkeypatch.setattr("zerograd.tune.loop.time", clock)

    def right(seconds):
        made = study.read(written(tmp_path, folder, task, evaluations=8, seconds=seconds))
        runner = Runner(made, tmp_path / "out")
        cell = next(iter(made.cells))
        settings = made.run(cell, {"lr": 20}, 0, runner._task_file(cell), 2)
        return process.train(settings, tmp_path / "untouched", lambda said: None)

    short, long = right(0), right(1.0)
    assert set(short["at"]) == {"evaluations"}
    assert set(long["at"]) == {"evaluations", "seconds"}
    assert [long["at"][budget]["evaluations"] for budget in ("evaluations", "seconds")] == [8, 32]
    assert long["at"]["evaluations"]["right"] == short["at"]["evaluations"]["right"] != short["right_before"]
    assert long["at"]["seconds"]["right"] != long["at"]["evaluations"]["right"]
    assert long["curve"][-1]["evaluations"] == long["at"]["seconds"]["evaluations"]
    assert short["steps"] == 4
    assert (short["state_bytes"], short["lr"]) == (0, 20 * METHODS["mezo"].default_lr)


def test_from_the_command_line_to_the_tables_in_processes_of_their_own(folder, task, tmp_path, capsys):
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
    assert row["settings"]["lr"] == 2 * METHODS["momentum"].default_lr
    assert row["state_bytes"] > 0 < row["peak_bytes"]
    before = (out / "leaderboard.jsonl").read_bytes()
    with locked_folder(out / "tiny" / row["method"]), pytest.raises(journal.FileLocked):
        Runner(study.read(path), out).rerun(row["key"])
    assert main(["bench", "run", str(path), "--out", str(out), "--again", row["key"]]) == 0
    assert "the same answers and dev losses" in " ".join(capsys.readouterr().out.split())
    assert (out / "leaderboard.jsonl").read_bytes() == before
    other = json.loads(before) | {"curve": [look | {"dev_loss": look["dev_loss"] + 1e-6} for look in row["curve"]]}
    (out / "leaderboard.jsonl").write_text(json.dumps(other) + "\n")
    assert main(["bench", "run", str(path), "--out", str(out), "--again", row["key"]]) == 1
    assert "different answers or dev losses" in " ".join(capsys.readouterr().out.split())
    (out / "leaderboard.jsonl").write_bytes(before)
    assert rows.same_outcome(row, row)
    assert not rows.same_outcome(row, row | {"curve": [{"evaluations": look["evaluations"]} for look in row["curve"]]}), (
        "it diverged"
    )
    assert main(["bench", "table", str(out / "leaderboard.jsonl")]) == 0
    assert "| momentum |" in capsys.readouterr().out


def test_a_run_that_fails_ends_the_study_in_one_line(folder, task, tmp_path, capsys):
    path = written(tmp_path, folder, task, settings={"batch_size": 4, "threads": 1, "layers": 50})
    assert main(["bench", "run", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert "2 methods failed, the first: " in error
    assert "/mezo/upper/" in error
    assert "layers is 50" in error
    assert len(error.splitlines()) == 1
    assert not list((tmp_path / "out").glob("**/hidden.*")), "nothing of a run stays"


def test_another_scheme_answers_the_same_test_rows_of_another_model(folder, task, tmp_path):
    """So that its rows are paired with those of the reference."""
    made = study.read(written(tmp_path, folder, task, methods=["mezo"], schemes=["upper", "lora"]))
    runner = Runner(made, tmp_path / "out")
    found = {cell.scheme: runner.row(cell, 0, SearchResult({"lr": 1}, 0.0, [])) for cell in made.cells}
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
        ({"methods": "mezo"}, "methods is 'mezo'; it must be a list of texts"),
        ({"tasks": ["nowhere"]}, "task 'nowhere' is not one of"),
        ({"tasks": ["squad"]}, "task squad has free answers"),
        ({"prompts": ["polite"]}, "prompts has 'polite'; choose of aligned, plain"),
        ({"schemes": ["half"]}, "schemes has 'half'"),
        ({"seeds": [0, 100]}, "search.seed is 100, one of the seeds that are reported"),
        ({"seeds": [0, 0]}, "seeds is [0, 0]; give at least one, each once"),
        ({"seeds": [0, -1]}, "seeds has -1"),
        ({"evaluations": 0}, "evaluations and seconds are both 0"),
        ({"evaluations": 0, "seconds": 5}, "search.evaluations is 0"),
        ({"evaluations": 1.5}, "evaluations is 1.5; it must be a whole number"),
        ({"seconds": 5, "settings": {"schedule": "linear"}}, "a schedule that ends with the run"),
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
def test_what_is_wrong_with_a_study_is_one_line_and_exit_two(folder, task, tmp_path, capsys, fields, says):
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


def test_the_studies_in_the_repository_are_compared():
    place = ROOT / "benchmarks"
    found, faced = study.read(place / "sentiment.yaml"), study.read(place / "sentiment-lora.yaml")
    assert set(found.methods) == set(METHODS)
    assert len(found.seeds) >= 3
    assert faced.protocol == found.protocol
    assert (faced.tasks, faced.seeds, faced.prompts) == (found.tasks, found.seeds, found.prompts)


def test_a_plain_prompt_is_the_text_alone_with_the_same_options():
    for name in tasks.TASKS:
        spec = tasks.spec(name)
        if spec.kind == "answer":
            continue
        plain = prompts.with_prompt(spec, "plain", {"test": 7})
        assert (plain.options, plain.label, plain.data, plain.rows["test"]) == (spec.options, spec.label, spec.data, 7)
        assert not "".join(part.partition("}}")[2] for part in plain.prompt.split("{{")).strip(), "no word but the columns'"
    assert prompts.with_prompt(tasks.spec("sentiment-movies"), "plain", {}).prompt == "{{ text | trim }}"
    rte = prompts.with_prompt(tasks.spec("rte"), "plain", {})
    assert rte.prompt == "{{ premise | trim }}\n{{ hypothesis | trim }}"
    assert prompts.with_prompt(tasks.spec("rte"), "aligned", {}).prompt == tasks.spec("rte").prompt


def test_searches_are_shared_where_the_study_says_so(folder, task, tmp_path):
    more = {"tasks": [str(task), "sentiment-movies"], "prompts": ["plain", "aligned"]}
    apart = study.read(written(tmp_path, folder, task, **more))
    assert len({apart.search_cell(cell) for cell in apart.cells}) == 8
    shared = dataclasses.replace(apart, search=Search(task="sentiment-movies"))
    assert {cell.prompt for cell in map(shared.search_cell, shared.cells)} == {"plain"}
    assert len({shared.search_cell(cell) for cell in shared.cells}) == 2
    assert shared.protocol != apart.protocol
    assert dataclasses.replace(apart, seeds=(7,), methods=("sign",)).protocol == apart.protocol, "more of it is the same study"


def test_keys_tell_rows_apart(folder, task, tmp_path):
    made = Runner(study.read(written(tmp_path, folder, task, prompts=["plain", "aligned"])), tmp_path)
    keys = [made.key(cell, seed) for cell in made.study.cells for seed in made.study.seeds]
    assert len(set(keys)) == 8
    assert Cell("demo", "mezo", "upper", "rte", "plain").key == "demo/mezo/upper/rte/plain"
    with pytest.raises(ValueError, match="has no row 'x'"):
        made.rerun("x")
    assert SearchResult({}, 0.0, []).trials == []


def test_a_gguf_file_is_read_once_and_its_folder_is_the_same_model(folder, task, tmp_path, monkeypatch):
    runner = Runner(study.read(written(tmp_path, folder, task)), tmp_path / "out")
    assert runner._model_path(str(folder), False) == str(folder), "what is a folder stays where it is"
    file = tmp_path / "some.gguf"
    file.touch()
    loaded = models.load(str(folder))
    read = []
    monkeypatch.setattr(models, "load", lambda name, *more: read.append(name) or loaded)
    assert runner._model_path(str(file), True) == str(file), "what stays packed stays a file"
    made = [runner._model_path(str(file), False) for _ in range(2)]
    monkeypatch.undo()
    other = tmp_path / "more" / "some.gguf"
    other.parent.mkdir()
    other.touch()
    assert read == [str(file)]
    assert made[0] == made[1]
    monkeypatch.setattr(models, "load", lambda name, *more: read.append(name) or loaded)
    assert runner._model_path(str(other), False) not in made, "another file of that name is another model"
    monkeypatch.undo()
    assert journal.identity(models.load(made[0]).model) == journal.identity(loaded.model)
