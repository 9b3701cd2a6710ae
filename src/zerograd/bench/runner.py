"""Runs a study: for each method a search on the dev split, then its rows on fresh seeds; what is there already is not run again."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zerograd.bench import process, prompts, rows, search
from zerograd.bench.search import Chosen
from zerograd.bench.study import Cell, Config, Study, named
from zerograd.machine import environment
from zerograd.machine.files import locked_folder, write_text
from zerograd.machine.format import percent, seconds
from zerograd.machine.provenance import provenance
from zerograd.runs.replayed import save_model
from zerograd.text.data import tasks
from zerograd.text.models import loading
from zerograd.tune.defaults import default_lr
from zerograd.tune.settings import TuneSettings

LEADERBOARD = "leaderboard.jsonl"

COLUMNS = ("model", "method", "scheme", "task", "seed", "out")
"""Settings of a run that its row has columns for, or that are of a machine."""


@dataclass(frozen=True)
class Progress:
    """How far a study is. phase: the method. done: the share of its runs. said: what is run now."""

    phase: str
    done: float
    said: str


class Runner:
    """A study and the folder of its results. listen hears how it goes, say of every row and search.

    The folder gets the leaderboard, and a folder of the study's name with each method's search, the tasks as they were put, and
    what untouched models answer.
    """

    def __init__(
        self,
        study: Study,
        out: Path,
        listen: Callable[[Progress], None] = lambda progress: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.study = study
        self.out = out
        self.listen = listen
        self.say = say
        self.folder = out / study.name
        self.leaderboard = out / LEADERBOARD

    def run(self, methods: Sequence[str] = ()) -> int:
        """Run what is missing, of some methods or of all. Returns the number of new rows.

        A method that fails does not stop the others. Raises JournalLocked when another process runs one of these methods, and
        ValueError at the end when some failed.
        """
        count, failed = 0, []
        for method in methods or self.study.methods:
            cells = [cell for cell in self.study.cells if cell.method == method]
            there = self._there()
            todo = [(cell, seed) for cell in cells for seed in self.study.seeds if not self._has(there, cell, seed)]
            if not todo:
                continue
            with locked_folder(self.folder / method):
                try:
                    for number, (cell, seed) in enumerate(todo):
                        chosen = self.chosen(cell)
                        where = f"{cell.task} {cell.prompt} {cell.scheme} seed {seed}, run {number + 1} of {len(todo)}"
                        tell = functools.partial(self._tell_run, method, number, len(todo), where)
                        row = self.row(cell, seed, chosen, tell)
                        rows.append(self.leaderboard, row)
                        self.say(f"{cell.key} seed {seed}: {_said(row)}")
                        count += 1
                except process.RunFailed as error:
                    failed.append(f"{cell.key} seed {seed}: {error}")
                    self.say(failed[-1])
                self._tell(method, 1.0, "")
        if failed:
            raise ValueError(f"{count} new rows; of {len(failed)} methods not all could be run, the first {failed[0]}")
        return count

    def again(self, key: str) -> tuple[rows.Row, rows.Row]:
        """(the row of a key, the same run anew); no row is added.

        Raises ValueError for a key that this study has no row of, JournalLocked when another process runs its method.
        """
        found = self._there().get(key)
        cells = {self.key(cell, seed): (cell, seed) for cell in self.study.cells for seed in self.study.seeds}
        if found is None or key not in cells:
            raise ValueError(f"{self.leaderboard} has no row {key!r} of this study; its keys are those like {next(iter(cells))}")
        cell, seed = cells[key]
        if found["grid"] != self._grid(cell):
            raise ValueError(f"the row {key!r} is of another grid, of other rates or of another task; run the study first")
        chosen = Chosen(found["config"], found["search"]["dev_loss"], [])
        with locked_folder(self.folder / cell.method):
            return found, self.row(cell, seed, chosen, lambda done: self._tell(cell.method, done, key))

    def chosen(self, cell: Cell) -> Chosen:
        """The settings of a cell, by its search."""
        where, count = self.study.searched(cell), len(self.study.grid(cell.method))

        def start(config: Config, looks: int) -> Any:
            return process.started(self._trial(where, config, looks))

        def listen(number: int, low: float, done: float) -> None:
            lowest = f", lowest dev loss {low:.3f}" if math.isfinite(low) else ""
            self._tell(cell.method, 0.0, f"search on {where.task}, run {number + 1} of {count}, {percent(done, 0)}{lowest}")

        path = self.folder / cell.method / "search.log"
        key, grid = self._search_key(where), self.study.grid(cell.method)
        return search.best(path, key, grid, self.study.search, self._tried, start, listen)

    def row(self, cell: Cell, seed: int, chosen: Chosen, listen: Callable[[float], None] = lambda done: None) -> rows.Row:
        """One run to the end of the budget, as its row."""
        study = self.study
        settings = self._settings(cell, chosen.config, seed, study.curve)
        began, source = time.time(), provenance()
        with process.started(settings, self.folder / "untouched") as lines:
            for line in lines:
                if "done" in line:
                    listen(line["done"])
                elif "result" in line:
                    result = line["result"]
        budget = {"evaluations": study.evaluations, "seconds": study.seconds}
        about = {"seed": study.search.seed, "dev_loss": chosen.dev_loss, "trials": len(chosen.trials)}
        defaults = {spec.name: spec.default for spec in dataclasses.fields(TuneSettings) if spec.name not in COLUMNS}
        return {
            "key": self.key(cell, seed),
            "study": study.name,
            "protocol": study.protocol,
            **dataclasses.asdict(cell),
            "seed": seed,
            **rows.fields(result),
            "budget": {name: limit for name, limit in budget.items() if limit},
            "reference": study.reference,
            "grid": self._grid(cell),
            "config": dict(chosen.config),
            "search": about | {"task": study.searched(cell).task},
            "settings": {name: value for name, value in dataclasses.asdict(settings).items() if value != defaults.get(name, value)},
            "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
            "seconds_total": time.time() - began,
            **source,
        }

    def key(self, cell: Cell, seed: int) -> str:
        """The name of a row among all of a leaderboard."""
        return f"{self.study.protocol}/{cell.key}/{seed}"

    def plan(self, methods: Sequence[str] = ()) -> Iterator[str]:
        """What a run of some methods, or of all, would do, in lines: missing searches and rows, and their evaluations at most."""
        study, there = self.study, self._there()
        cells = [cell for cell in study.cells if cell.method in (methods or study.methods)]
        todo = [(cell, seed) for cell in cells for seed in study.seeds if not self._has(there, cell, seed)]
        searches = {self._search_key(study.searched(cell)): len(study.grid(cell.method)) for cell, _ in todo}
        each = study.evaluations
        yield f"{len(cells) * len(study.seeds)} rows, of which {len(todo)} are missing; protocol {study.protocol}"
        yield (
            f"a row: {each:,} evaluations" * bool(each)
            + " and" * bool(each and study.seconds)
            + (f" {study.seconds:g} s of training" if study.seconds else "")
        )
        trials = sum(searches.values())
        most = f"at most {trials * self._tried:,} evaluations, about half of that with halving"
        yield f"{len(searches)} searches of {trials} runs: {most}"

    def _there(self) -> dict[str, rows.Row]:
        return {row["key"]: row for row in rows.read(self.leaderboard)} if self.leaderboard.exists() else {}

    def _has(self, there: dict[str, rows.Row], cell: Cell, seed: int) -> bool:
        row = there.get(self.key(cell, seed))
        return row is not None and row["grid"] == self._grid(cell)

    def _grid(self, cell: Cell) -> str:
        """A name of what its settings are chosen from, and of the task that they are for."""
        searched = prompts.varied(tasks.spec(self.study.searched(cell).task), self.study.searched(cell).prompt, self.study.rows)
        put = prompts.varied(tasks.spec(cell.task), cell.prompt, self.study.rows)
        return named([self.study.grid(cell.method), default_lr(cell.method, cell.scheme), searched.to_yaml(), put.to_yaml()])

    def _search_key(self, cell: Cell) -> str:
        return f"{self.study.protocol}/{cell.key}/{self._grid(cell)}"

    def _settings(self, cell: Cell, config: Config, seed: int, looks: int) -> TuneSettings:
        settings = self.study.run(cell, config, seed, self._task(cell), looks)
        return dataclasses.replace(settings, model=self._model(cell.model), out=str(self.folder / cell.method / "run"))

    def _trial(self, cell: Cell, config: Config, looks: int) -> TuneSettings:
        settings = self._settings(cell, config, self.study.search.seed, looks)
        return dataclasses.replace(settings, minutes=0.0, evaluations=self._tried)

    @property
    def _tried(self) -> int:
        """Evaluations of a run of a search that is not stopped."""
        return self.study.search.evaluations or self.study.evaluations

    def _model(self, name: str) -> str:
        """Where a model is loaded from: of a GGUF file, whose reading takes longer than a short run, a folder is made once."""
        path = loading.demo_file() if name == loading.DEMO else Path(name)
        if path.suffix != ".gguf" or not path.exists():
            return name
        settings = self.study.run(next(iter(self.study.cells)), {}, 0, self.study.tasks[0], 1)
        dtype = torch.float32 if settings.storage == "float32" else torch.bfloat16
        file = path.stat()
        which = named([str(path.resolve()), file.st_size, file.st_mtime_ns])
        out = self.folder / "models" / f"{path.stem}-{str(dtype).removeprefix('torch.')}-{which}"
        if not out.exists():
            self.listen(Progress("reading the model", 0.0, ""))
            environment.prepare()
            mine = out.with_name(f"{out.name}.{os.getpid()}")
            save_model(loading.load(name, dtype, settings.head), mine)
            try:
                mine.rename(out)
            except OSError:  # another process was first
                shutil.rmtree(mine)
        return str(out)

    def _task(self, cell: Cell) -> str:
        """The file of a cell's task, as it is put."""
        spec = prompts.varied(tasks.spec(cell.task), cell.prompt, self.study.rows)
        path = self.folder / "tasks" / f"{spec.name}-{cell.prompt}-{named(spec.to_yaml())}.yaml"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, spec.to_yaml())
        return str(path)

    def _tell_run(self, method: str, number: int, count: int, where: str, done: float) -> None:
        self._tell(method, (number + done) / count, where)

    def _tell(self, method: str, done: float, said: str) -> None:
        self.listen(Progress(method, done, said))


def _said(row: rows.Row) -> str:
    parts = []
    for budget in row["budget"]:
        found = rows.matched(row, budget)
        assert found is not None
        parts.append(f"{percent(found[0])} right after {found[1]:,} evaluations, {seconds(found[2])}")
    return "; ".join(dict.fromkeys(parts)) + (f"; {row['stopped']}" if row["stopped"] else "")
