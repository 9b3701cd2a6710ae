"""Which settings of a method learn best: successive halving on the dev split, kept in a file so that it may be cut off and go on.

The halving is asynchronous (Li et al. 2020, arXiv 1810.05934): a run that comes to a rung goes on when it is among the best
1 / factor of the runs that came so far, or the best of fewer; those that were cut off do not count. Runs come one after another, so
that a promoted one just goes on in its process, and nothing is saved or trained twice; a run that another overtakes later has cost
more than it need have, and changes no choice. The settings in the middle of a grid should stand first: the first run always goes to
the end, and the others are held against it. The learning rate's schedule is that of a whole run.

A run is judged by its dev loss, which orders settings more finely than accuracy does, and the test split is never scored.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerograd.bench.study import Config, Search, named

Start = Callable[[Config, int], AbstractContextManager[Iterator[dict[str, Any]]]]
"""Starts a run of a config with so many equal looks at the dev split; what it gives are the lines of `process`."""

Listen = Callable[[int, float, float], None]
"""Hears of the run in progress: its number, the lowest dev loss of whole runs, and the share of it that is done."""


@dataclass(frozen=True)
class Chosen:
    """The best config, its dev loss, and every run as (config, state, last dev loss)."""

    config: Config
    dev_loss: float
    trials: list[tuple[Config, str, float]]


def best(
    path: Path,
    key: str,
    grid: list[Config],
    search: Search,
    evaluations: int,
    start: Start,
    listen: Listen = lambda number, low, done: None,
) -> Chosen:
    """The best of a grid: from the file where that is known, and else by runs that are told to it. key: names the search.
    evaluations: of a run that is not stopped.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [json.dumps(config, sort_keys=True) for config in grid]
    study = optuna.create_study(
        study_name=f"{key} {named([names, vars(search)])}",
        storage=JournalStorage(JournalFileBackend(str(path))),
        load_if_exists=True,
    )
    for trial in study.trials:
        if trial.state == TrialState.RUNNING:  # the process that ran it is gone
            study.tell(trial.number, state=TrialState.FAIL)
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    for config, name in zip(grid, names, strict=True):
        before = study.get_trials(states=ended)
        if any(trial.user_attrs["config"] == name for trial in before):
            continue
        trial = study.ask()
        trial.set_user_attr("config", name)
        whole = [t.value for t in study.get_trials(states=(TrialState.COMPLETE,)) if t.value is not None]
        tell = functools.partial(listen, trial.number, min(whole, default=math.nan))
        tell(0.0)
        losses = [t.intermediate_values for t in before if t.value is None or math.isfinite(t.value)]  # what diverged is no rival
        loss, state = _run(trial, start(config, search.factor**search.rungs), losses, search, evaluations, tell)
        study.tell(trial, loss if state == TrialState.COMPLETE else None, state)
    trials = [(json.loads(t.user_attrs["config"]), t.state.name.lower(), _last(t)) for t in study.get_trials(states=ended)]
    won = study.best_trial
    assert won.value is not None
    return Chosen(json.loads(won.user_attrs["config"]), won.value, trials)


def _run(
    trial: Any,
    run: AbstractContextManager[Iterator[dict[str, Any]]],
    others: list[Mapping[int, float]],
    search: Search,
    evaluations: int,
    listen: Callable[[float], None],
) -> tuple[float, Any]:
    """Its last dev loss, and whether it came to the end. others: the losses of runs before it, by look, the share of the
    evaluations at which it was due. A run of steps so large that they pass a rung is judged there by its next look.
    """
    from optuna.trial import TrialState

    before, loss = 0, math.inf
    rungs = [search.factor**rung for rung in range(search.rungs)]
    with run as lines:
        for line in lines:
            if "done" in line:
                listen(line["done"])
            if "dev" in line:
                loss = line["dev"].get("dev_loss", math.inf)
                look = int(line["dev"]["evaluations"] / evaluations * search.factor**search.rungs + 1e-9)
                trial.report(loss, look)
                passed = [rung for rung in rungs if before < rung <= look]
                if any(_is_behind(loss, _at(rung, others), search.factor) for rung in passed):
                    return loss, TrialState.PRUNED
                before = look
            if "result" in line and line["result"]["stopped"] is not None:
                loss = math.inf
    return loss, TrialState.COMPLETE


def _at(rung: int, others: list[Mapping[int, float]]) -> list[float]:
    """The losses of runs at a rung, or at their first look beyond it."""
    return [one[min(looks)] for one in others if (looks := [look for look in one if look >= rung])]


def _is_behind(loss: float, others: list[float], factor: int) -> bool:
    """Whether a loss is not among the best 1 / factor of all that came to a rung."""
    ranked = sorted(math.inf if math.isnan(one) else one for one in [loss, *others])
    return not loss <= ranked[max(1, len(ranked) // factor) - 1]


def _last(trial: Any) -> float:
    return float(trial.intermediate_values[max(trial.intermediate_values)])
