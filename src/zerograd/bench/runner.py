"""Runs a study: for each method a search on the dev split, then rows with new seeds. Finished searches and rows are not
run again.
"""

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
from zerograd.bench.search import SearchResult
from zerograd.bench.study import Cell, Config, Study, short_hash
from zerograd.errors import RunFailed
from zerograd.machine import environment
from zerograd.machine.files import locked_folder, new_folder, write_text
from zerograd.machine.format import percent, seconds
from zerograd.machine.provenance import provenance
from zerograd.text.data import tasks
from zerograd.text.models import loading
from zerograd.tune.defaults import default_lr
from zerograd.tune.results import write_model
from zerograd.tune.settings import TuneSettings

LEADERBOARD = "leaderboard.jsonl"

ROW_COLUMNS = ("model", "method", "scheme", "task", "seed", "out")
"""Settings that a row has in columns of its own, or that belong to a machine."""


@dataclass(frozen=True)
class Progress:
    """Progress of a study. phase: the method. done: the share of its runs that is done. activity: the present run."""

    phase: str
    done: float
    activity: str


class Runner:
    """Runs a study and writes its results. listen: takes progress. say: takes a line about every row and failure.

    out: the folder of the leaderboard, and of a folder with the study's name. The latter has each method's search, the
    tasks with their prompts, and untrained models' answers.
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
        """Run the missing rows of some methods, by default of all. Returns the number of new rows.

        A method that fails does not stop the others.
        Raises FileLocked if another process runs one of the methods, and ValueError at the end if a method failed.
        """
        count, failed = 0, []
        for method in methods or self.study.methods:
            cells = [cell for cell in self.study.cells if cell.method == method]
            done_rows = self._rows_by_key()
            todo = [(cell, seed) for cell in cells for seed in self.study.seeds if not self._is_done(done_rows, cell, seed)]
            if not todo:
                continue
            with locked_folder(self.folder / method):
                try:
                    for number, (cell, seed) in enumerate(todo):
                        chosen = self.search_result(cell)
                        where = f"{cell.task} {cell.prompt} {cell.scheme} seed {seed}, run {number + 1} of {len(todo)}"
                        report = functools.partial(self._report_run, method, number, len(todo), where)
                        row = self.row(cell, seed, chosen, report)
                        rows.append(self.leaderboard, row)
                        self.say(f"{cell.key} seed {seed}: {_summary(row)}")
                        count += 1
                except RunFailed as error:
                    failed.append(f"{cell.key} seed {seed}: {error}")
                    self.say(failed[-1])
                self._report(method, 1.0, "")
        if failed:
            raise ValueError(f"{count} new rows; {len(failed)} methods failed, the first: {failed[0]}")
        return count

    def rerun(self, key: str) -> tuple[rows.Row, rows.Row]:
        """(the row of a key, the row of the same run repeated); no row is added.

        Raises ValueError for a key without a row in this study, and FileLocked if another process runs its method.
        """
        row = self._rows_by_key().get(key)
        cells = {self.key(cell, seed): (cell, seed) for cell in self.study.cells for seed in self.study.seeds}
        if row is None or key not in cells:
            raise ValueError(f"{self.leaderboard} has no row {key!r} of this study; a key looks like {next(iter(cells))}")
        cell, seed = cells[key]
        if row["grid"] != self._grid_hash(cell):
            raise ValueError(f"the row {key!r} has another grid, learning rate or task than the study; run the study first")
        chosen = SearchResult(row["config"], row["search"]["dev_loss"], [])
        with locked_folder(self.folder / cell.method):
            return row, self.row(cell, seed, chosen, lambda done: self._report(cell.method, done, key))

    def search_result(self, cell: Cell) -> SearchResult:
        """The result of a cell's search, which runs if it is not in the log."""
        where, count = self.study.search_cell(cell), len(self.study.grid(cell.method))

        def start(config: Config, dev_evaluations: int) -> Any:
            return process.start_run(self._trial_settings(where, config, dev_evaluations))

        def listen(number: int, low: float, done: float) -> None:
            lowest = f", lowest dev loss {low:.3f}" if math.isfinite(low) else ""
            self._report(cell.method, 0.0, f"search on {where.task}, run {number + 1} of {count}, {percent(done, 0)}{lowest}")

        path = self.folder / cell.method / "search.log"
        key, grid = self._search_key(where), self.study.grid(cell.method)
        return search.best(path, key, grid, self.study.search, self._trial_evaluations, start, listen)

    def row(self, cell: Cell, seed: int, chosen: SearchResult, listen: Callable[[float], None] = lambda done: None) -> rows.Row:
        """The row of one run to the end of the budget."""
        study = self.study
        settings = self._settings(cell, chosen.config, seed, study.curve)
        began, source = time.time(), provenance()
        with process.start_run(settings, self.folder / "untouched") as lines:
            for line in lines:
                if "done" in line:
                    listen(line["done"])
                elif "result" in line:
                    result = line["result"]
        budget = {"evaluations": study.evaluations, "seconds": study.seconds}
        about = {"seed": study.search.seed, "dev_loss": chosen.dev_loss, "trials": len(chosen.trials)}
        defaults = {name: value for name, value in dataclasses.asdict(TuneSettings()).items() if name not in ROW_COLUMNS}
        return {
            "key": self.key(cell, seed),
            "study": study.name,
            "protocol": study.protocol,
            **dataclasses.asdict(cell),
            "seed": seed,
            **rows.result_fields(result),
            "budget": {name: limit for name, limit in budget.items() if limit},
            "reference": study.reference,
            "grid": self._grid_hash(cell),
            "config": dict(chosen.config),
            "search": about | {"task": study.search_cell(cell).task},
            "settings": {name: value for name, value in dataclasses.asdict(settings).items() if value != defaults.get(name, value)},
            "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
            "seconds_total": time.time() - began,
            **source,
        }

    def key(self, cell: Cell, seed: int) -> str:
        """The key of a row in the leaderboard."""
        return f"{self.study.protocol}/{cell.key}/{seed}"

    def plan(self, methods: Sequence[str] = ()) -> Iterator[str]:
        """Lines about the missing rows and searches of some methods, by default of all, and their evaluations."""
        study, done_rows = self.study, self._rows_by_key()
        cells = [cell for cell in study.cells if cell.method in (methods or study.methods)]
        todo = [(cell, seed) for cell in cells for seed in study.seeds if not self._is_done(done_rows, cell, seed)]
        searches = {self._search_key(study.search_cell(cell)): len(study.grid(cell.method)) for cell, _ in todo}
        each = study.evaluations
        yield f"{len(cells) * len(study.seeds)} rows, of which {len(todo)} are missing; protocol {study.protocol}"
        yield (
            f"each row: {each:,} evaluations" * bool(each)
            + " and" * bool(each and study.seconds)
            + (f" {study.seconds:g} s of training" if study.seconds else "")
        )
        trials = sum(searches.values())
        most = f"at most {trials * self._trial_evaluations:,} evaluations, about half with halving"
        yield f"{len(searches)} searches with {trials} runs: {most}"

    def _rows_by_key(self) -> dict[str, rows.Row]:
        return {row["key"]: row for row in rows.read(self.leaderboard)} if self.leaderboard.exists() else {}

    def _is_done(self, done_rows: dict[str, rows.Row], cell: Cell, seed: int) -> bool:
        row = done_rows.get(self.key(cell, seed))
        return row is not None and row["grid"] == self._grid_hash(cell)

    def _grid_hash(self, cell: Cell) -> str:
        """A hash of a cell's grid and default learning rate, of its search's task and of its own task."""
        search_cell = self.study.search_cell(cell)
        search_spec = prompts.with_prompt(tasks.spec(search_cell.task), search_cell.prompt, self.study.rows)
        spec = prompts.with_prompt(tasks.spec(cell.task), cell.prompt, self.study.rows)
        return short_hash(
            [self.study.grid(cell.method), default_lr(cell.method, cell.scheme), search_spec.to_yaml(), spec.to_yaml()]
        )

    def _search_key(self, cell: Cell) -> str:
        return f"{self.study.protocol}/{cell.key}/{self._grid_hash(cell)}"

    def _settings(self, cell: Cell, config: Config, seed: int, dev_evaluations: int) -> TuneSettings:
        settings = self.study.run(cell, config, seed, self._task_file(cell), dev_evaluations)
        return dataclasses.replace(
            settings, model=self._model_path(cell.model, settings.packed), out=str(self.folder / cell.method / "run")
        )

    def _trial_settings(self, cell: Cell, config: Config, dev_evaluations: int) -> TuneSettings:
        settings = self._settings(cell, config, self.study.search.seed, dev_evaluations)
        return dataclasses.replace(settings, minutes=0.0, evaluations=self._trial_evaluations)

    @property
    def _trial_evaluations(self) -> int:
        """Evaluations of a complete run of a search."""
        return self.study.search.evaluations or self.study.evaluations

    def _model_path(self, name: str, packed: bool) -> str:
        """The path to load a model from. A GGUF file, which takes longer to read than a short run, is converted to a
        folder once, unless it stays packed.
        """
        path = loading.demo_file() if name == loading.DEMO else Path(name)
        if packed or path.suffix != ".gguf" or not path.exists():
            return name
        settings = self.study.run(next(iter(self.study.cells)), {}, 0, self.study.tasks[0], 1)
        dtype = torch.float32 if settings.precision == "float32" else torch.bfloat16
        file = path.stat()
        identity = short_hash([str(path.resolve()), file.st_size, file.st_mtime_ns])
        out = self.folder / "models" / f"{path.stem}-{str(dtype).removeprefix('torch.')}-{identity}"
        if not out.exists():
            self.listen(Progress("reading the model", 0.0, ""))
            environment.prepare()
            partial = out.with_name(f"{out.name}.{os.getpid()}")
            loaded = loading.load(name, dtype, settings.head)
            with new_folder(partial) as folder:
                write_model(loaded.model, loaded.tokenizer, (), folder, settings)
            try:
                partial.rename(out)
            except OSError:  # another process was first
                shutil.rmtree(partial)
        return str(out)

    def _task_file(self, cell: Cell) -> str:
        """The file of a cell's task with its prompt."""
        spec = prompts.with_prompt(tasks.spec(cell.task), cell.prompt, self.study.rows)
        path = self.folder / "tasks" / f"{spec.name}-{cell.prompt}-{short_hash(spec.to_yaml())}.yaml"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, spec.to_yaml())
        return str(path)

    def _report_run(self, method: str, number: int, count: int, where: str, done: float) -> None:
        self._report(method, (number + done) / count, where)

    def _report(self, method: str, done: float, activity: str) -> None:
        self.listen(Progress(method, done, activity))


def _summary(row: rows.Row) -> str:
    parts = []
    for budget in row["budget"]:
        end = rows.at_budget(row, budget)
        assert end is not None
        parts.append(f"{percent(end[0])} right after {end[1]:,} evaluations, {seconds(end[2])}")
    return "; ".join(dict.fromkeys(parts)) + (f"; {row['stopped']}" if row["stopped"] else "")
