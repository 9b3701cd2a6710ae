"""The search for a method's best settings: successive halving on the dev split, with a log from which an interrupted
search continues.

The halving is asynchronous (Li et al. 2020, arXiv 1810.05934). A run that reaches a rung continues if it is among the
best 1 / factor of the runs that reached the rung so far, or is the best of fewer; interrupted runs do not count. Runs
come one after another, so a promoted run just continues in its process, and nothing is saved or trained twice. A run
that a later one overtakes has cost more than necessary, and does not change the choice. The likeliest settings should
come first in a grid: the first run always runs to the end, and the others are compared with it. The learning rate's
schedule is that of a complete run.

The criterion is the dev loss, which orders settings more finely than accuracy. A search never scores the test split.
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

from zerograd.bench.study import Config, Search, short_hash

Start = Callable[[Config, int], AbstractContextManager[Iterator[dict[str, Any]]]]
"""Starts a run of a config with a number of equally spaced evaluations on the dev split; gives the messages of
`process`.
"""

Listen = Callable[[int, float, float], None]
"""Takes the number of the present run, the lowest dev loss of complete runs, and the share of the run that is done."""


@dataclass(frozen=True)
class SearchResult:
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
) -> SearchResult:
    """The best config of a grid, by runs that are logged in a file; logged runs are not repeated.

    path: the log. key: the name of the search. evaluations: of a complete run.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [json.dumps(config, sort_keys=True) for config in grid]
    study = optuna.create_study(
        study_name=f"{key} {short_hash([names, vars(search)])}",
        storage=JournalStorage(JournalFileBackend(str(path))),
        load_if_exists=True,
    )
    for trial in study.trials:
        if trial.state == TrialState.RUNNING:  # its process was interrupted
            study.tell(trial.number, state=TrialState.FAIL)
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    for config, name in zip(grid, names, strict=True):
        before = study.get_trials(states=ended)
        if any(trial.user_attrs["config"] == name for trial in before):
            continue
        trial = study.ask()
        trial.set_user_attr("config", name)
        complete = [t.value for t in study.get_trials(states=(TrialState.COMPLETE,)) if t.value is not None]
        report = functools.partial(listen, trial.number, min(complete, default=math.nan))
        report(0.0)
        losses = [t.intermediate_values for t in before if t.value is None or math.isfinite(t.value)]  # without diverged runs
        loss, state = _run(trial, start(config, search.factor**search.rungs), losses, search, evaluations, report)
        study.tell(trial, loss if state == TrialState.COMPLETE else None, state)
    trials = [(json.loads(t.user_attrs["config"]), t.state.name.lower(), _last(t)) for t in study.get_trials(states=ended)]
    best_trial = study.best_trial
    assert best_trial.value is not None
    return SearchResult(json.loads(best_trial.user_attrs["config"]), best_trial.value, trials)


def _run(
    trial: Any,
    run: AbstractContextManager[Iterator[dict[str, Any]]],
    others: list[Mapping[int, float]],
    search: Search,
    evaluations: int,
    listen: Callable[[float], None],
) -> tuple[float, Any]:
    """(the run's last dev loss, its state).

    others: the dev losses of earlier runs, by rung. A run whose step passes a rung is compared there by its next dev
    evaluation.
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
    """The losses of runs at a rung, or at their first dev evaluation after it."""
    return [one[min(looks)] for one in others if (looks := [look for look in one if look >= rung])]


def _is_behind(loss: float, others: list[float], factor: int) -> bool:
    """Whether a loss is not among the best 1 / factor of the losses at a rung."""
    ranked = sorted(math.inf if math.isnan(one) else one for one in [loss, *others])
    return not loss <= ranked[max(1, len(ranked) // factor) - 1]


def _last(trial: Any) -> float:
    return float(trial.intermediate_values[max(trial.intermediate_values)])
