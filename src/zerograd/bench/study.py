"""A study: a YAML file of the methods and tasks to compare, the search for settings, and the budget of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from zerograd.bench import prompts
from zerograd.machine.yaml_files import read_yaml
from zerograd.optim import METHODS
from zerograd.settings.fields import check_fields, from_mapping, require_at_least
from zerograd.text.data import tasks
from zerograd.text.models.schemes import SCHEMES
from zerograd.tune.defaults import default_lr
from zerograd.tune.settings import TuneSettings

LR_FACTORS = (1, 0.25, 0.5, 2, 4)
"""Factors of the default learning rate in a grid, where a study names none."""

SET_BY_STUDY = (
    *(
        "model",
        "method",
        "scheme",
        "task",
        "data",
        "dev",
        "test",
        "text",
        "label",
        "template",
        "options",
        "seed",
        "lr",
        "objective",
    ),
    *("method_options", "metric", "shots", "minutes", "steps", "evaluations", "evals", "keep", "patience", "trackers", "out"),
)
"""Settings of a run that a study sets itself, or that would treat runs differently."""

GRID_SETTINGS = ("eps", "weight_decay")
"""Settings that a grid may name beside lr and a method's own settings."""

Config = Mapping[str, Any]
"""A point of a grid: `lr`, a factor of `tune.defaults.default_lr`, and settings by name."""


@dataclass(frozen=True)
class Cell:
    """A cell of the comparison: everything but the seed of a run."""

    model: str
    method: str
    scheme: str
    task: str
    prompt: str

    @property
    def key(self) -> str:
        """The name of the cell; of files and hub ids it has the last part, with a hash of the whole."""
        return "/".join(f"{Path(part).stem}-{short_hash(part)}" if "/" in part else part for part in dataclasses.astuple(self))


@dataclass(frozen=True)
class Study:
    """The fields of a study.

    Raises ValueError naming what is wrong.

    methods: names, or "all". grids: by method, with `default` for other methods: values by setting, tried in all
    combinations; `lr` in factors of `tune.defaults.default_lr`. prompts: see `prompts.PROMPTS`. seeds: of the reported
    runs. evaluations, seconds: the budget of a run, in evaluations of the batch and in seconds of training; 0 for no
    budget. A run continues until both are spent, and is tested at each. search: see `Search`. curve: evaluations on the
    dev split in a run. rows: the most rows of each split. settings: more settings of `zerograd tune`, for all runs.
    reference: the method that others are compared with.
    """

    name: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    models: tuple[str, ...] = ("demo",)
    schemes: tuple[str, ...] = (TuneSettings.scheme,)
    prompts: tuple[str, ...] = ("aligned",)
    seeds: tuple[int, ...] = (0, 1, 2)
    evaluations: int = 0
    seconds: float = 0.0
    grids: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    search: Search = field(default_factory=lambda: Search())
    curve: int = 4
    rows: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: str = "mezo"

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"name is {self.name!r}; it names a folder: letters, digits, - and _")
        for name in ("methods", "tasks", "models", "schemes", "prompts", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} is {list(given)}; give at least one, each once")
        known = {"methods": tuple(METHODS), "schemes": tuple(SCHEMES), "prompts": prompts.PROMPTS}
        for name, choices in known.items():
            for given in getattr(self, name):
                if given not in choices:
                    raise ValueError(f"{name} has {given!r}; choose of {', '.join(choices)}")
        for name, least in (("evaluations", 0), ("seconds", 0), ("curve", 1)):
            require_at_least(name, getattr(self, name), least)
        if not self.evaluations and not self.seconds:
            raise ValueError("evaluations and seconds are both 0: the runs would not end; give one of them, or both")
        if self.reference not in METHODS:
            raise ValueError(f"reference is {self.reference!r}; choose of {', '.join(METHODS)}")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds has {min(self.seeds)}; they must be at least 0")
        if self.search.seed in self.seeds:
            raise ValueError(f"search.seed is {self.search.seed}, one of the seeds that are reported; choose another")
        if self.search.task and self.search.task not in self.tasks:
            raise ValueError(f"search.task is {self.search.task!r}; it must be one of the tasks")
        if not self.search.evaluations and not self.evaluations:
            raise ValueError("search.evaluations is 0, and so is evaluations; say for how many a setting is tried")
        if self.settings.get("schedule", "constant") != "constant" and self.evaluations and self.seconds:
            raise ValueError("settings has a schedule that ends with the run, and there are two budgets; give one budget")
        self._require_settings()

    def _require_settings(self) -> None:
        for name in self.settings:
            if name in SET_BY_STUDY or name not in TuneSettings.__dataclass_fields__:
                raise ValueError(f"settings has {name!r}, which is none of zerograd tune's, or one that the study sets itself")
        for name in self.grids:
            if name not in ("default", *METHODS):
                raise ValueError(f"grids has {name!r}; it must be a method, or default")
        for name, grid in self.grids.items():
            if not isinstance(grid, Mapping):
                raise ValueError(f"grids.{name} is {grid!r}; it must be lists of values by setting")
        for name, count in self.rows.items():
            if name not in ("train", "dev", "test"):
                raise ValueError(f"rows has {name!r}; the splits are train, dev and test")
            if isinstance(count, bool) or not isinstance(count, int) or count < 2:
                raise ValueError(f"rows.{name} is {count!r}; it must be a whole number of at least 2")
        for task, prompt in itertools.product(self.tasks, self.prompts):
            prompts.with_prompt(tasks.spec(task), prompt, self.rows)
        for model, method, scheme in itertools.product(self.models, self.methods, self.schemes):
            for config in self.grid(method):
                try:
                    cell = Cell(model, method, scheme, self.tasks[0], self.prompts[0])
                    options = self.run(cell, config, self.seeds[0], self.tasks[0], 1).own_options()
                    METHODS[method](nn.Linear(2, 2), **{name: value for name, value in options.items() if name != "checkpointing"})
                except (ValueError, TypeError) as error:
                    raise ValueError(f"method {method}, scheme {scheme}: {error}") from None

    @property
    def cells(self) -> Iterator[Cell]:
        """All cells; cells with the same search follow each other."""
        for model, method, scheme in itertools.product(self.models, self.methods, self.schemes):
            for task, prompt in itertools.product(self.tasks, self.prompts):
                yield Cell(model, method, scheme, task, prompt)

    def search_cell(self, cell: Cell) -> Cell:
        """The cell whose search finds a cell's settings."""
        return dataclasses.replace(cell, task=self.search.task, prompt=self.prompts[0]) if self.search.task else cell

    def grid(self, method: str) -> list[Config]:
        """The configs to try for a method, in order."""
        values = self.grids.get(method, self.grids.get("default", {"lr": LR_FACTORS}))
        for name, some in values.items():
            if not isinstance(some, (list, tuple)) or not some:
                raise ValueError(f"grids: {name} of {method} is {some!r}; it must be a list of values")
        return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]

    def run(self, cell: Cell, config: Config, seed: int, task: str, evals: int) -> TuneSettings:
        """The settings of a run. task: a built-in task, or a task's file. Raises ValueError for wrong settings."""
        factor = config.get("lr", 1)
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            raise ValueError(f"lr is {factor!r} in a grid; it must be a number, a factor of the default rate")
        direct = {name: config[name] for name in GRID_SETTINGS if name in config}
        options = tuple(f"{name}={_text(value)}" for name, value in config.items() if name not in ("lr", *GRID_SETTINGS))
        fields = {"schedule": "constant"} | dict(self.settings) | direct
        return TuneSettings(
            model=cell.model, method=cell.method, scheme=cell.scheme, task=task, seed=seed,
            lr=float(factor * default_lr(cell.method, cell.scheme)), method_options=options,
            minutes=self.seconds / 60, evaluations=self.evaluations, evals=evals, keep="last", **fields,
        ).resolved()  # fmt: skip

    @property
    def protocol(self) -> str:
        """A hash of everything that comparable rows must have in common, beside the columns of a table."""
        protocol = {
            "evaluations": self.evaluations, "seconds": self.seconds, "search": dataclasses.asdict(self.search),
            "rows": dict(self.rows), "settings": dict(self.settings), "curve": self.curve,
        }  # fmt: skip
        return short_hash(protocol)


@dataclass(frozen=True)
class Search:
    """The search for a method's settings: successive halving on the dev loss.

    seed: of the search's runs. task: the task of the search, with the first prompt; when empty, each task has its own
    search. evaluations: of a complete run; those of the study when 0. factor: one in `factor` runs continues at a rung.
    rungs: the number of rungs, the last one at evaluations / factor.
    """

    seed: int = 100
    task: str = ""
    evaluations: int = 0
    factor: int = 2
    rungs: int = 2

    def __post_init__(self) -> None:
        check_fields(self, "search.")
        for name, least in (("seed", 0), ("evaluations", 0), ("factor", 2), ("rungs", 0)):
            require_at_least(f"search.{name}", getattr(self, name), least)


def read(path: Path) -> Study:
    """A study from its file. Raises FileNotFoundError or ValueError in one line."""
    fields = read_yaml(path, "study", "docs/benchmarks.md shows one")
    try:
        return _study({"name": path.stem} | fields)
    except ValueError as error:
        raise ValueError(f"study {path}: {error}") from None


def _study(fields: dict[str, Any]) -> Study:
    if fields.get("methods") == "all":
        fields["methods"] = list(METHODS)
    search = fields.get("search", {})
    if isinstance(search, dict):
        fields["search"] = from_mapping(Search, search, "search")
    return from_mapping(Study, fields, "it")


def short_hash(value: Any) -> str:
    """A short hash of a value that JSON can represent."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=4).hexdigest()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
