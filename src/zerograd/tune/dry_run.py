"""A dry run: an estimate of a run's time, memory and disk, from two real steps and an evaluation."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from zerograd.machine import memory
from zerograd.rewards import RewardObjective
from zerograd.rewards.signal import measured
from zerograd.text.data import order
from zerograd.tune.baseline import MAX_FIT_ROWS
from zerograd.tune.folder import FILES
from zerograd.tune.progress import Listener, Progress, ignore_progress
from zerograd.tune.settings import TuneSettings
from zerograd.tune.setup import EVALUATION_STEP, Setup, set_up
from zerograd.tune.trackers import load_trackers


def rehearse(
    settings: TuneSettings,
    listen: Listener = ignore_progress,
    say: Callable[[str], None] = lambda line: None,
    *,
    resume: bool = False,
) -> dict[str, Any]:
    """Check everything that `tune` checks, and estimate the run's time, memory and disk; nothing is written.

    Returns counts, seconds and bytes by name. Arguments and errors are those of `tune`.
    """
    load_trackers(settings.trackers)
    setup = set_up(settings, listen, say, resume=resume)
    setup.warm_up(listen)
    memory.reset_peak()
    step_seconds, row_seconds = _step_seconds(setup, listen), _row_seconds(setup, listen)
    steps = _steps(setup, step_seconds)
    told = {"reward": _signal(setup, listen)} if isinstance(setup.objective, RewardObjective) else {}
    return told | {
        "parameters": sum(p.numel() for p in setup.model.parameters()),
        "trained_parameters": setup.trained_parameters,
        "rows": {name: len(getattr(setup.task, name)) for name in ("train", "dev", "test")},
        "seconds_per_step": step_seconds,
        "steps": steps,
        "seconds": steps * step_seconds,
        "evaluation_seconds": _evaluated_rows(setup) * row_seconds,
        "peak_bytes": memory.peak_bytes(),
        "weight_bytes": setup.weight_bytes,
        "files": FILES,
        "run": str(setup.folder),
        "disk_bytes": setup.disk_bytes,
    }


def _step_seconds(setup: Setup, listen: Listener) -> float:
    """Seconds of a step: the faster of two."""
    train, settings = setup.task.train, setup.settings
    batches = order.batches([setup.scorer.length(example) for example in train], settings.batch_size, settings.seed)
    seconds = []
    for done in (0.0, 0.5):
        listen(Progress("rehearsing", done))
        start = time.perf_counter()
        setup.step([train[i] for i in next(batches)])
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _signal(setup: Setup, listen: Listener) -> dict[str, float]:
    """How much the run's reward tells, by name."""
    assert isinstance(setup.objective, RewardObjective)
    listen(Progress("measuring the reward", 0.0))
    optimizer, prompts = setup.optimizer, setup.prompts(setup.task.train[: max(2, setup.settings.batch_size)])
    found = measured(setup.objective, optimizer.spaces, prompts, optimizer.draws.at(EVALUATION_STEP), optimizer.radii)
    a_step = setup.branches * min(setup.settings.batch_size, len(setup.task.train))
    return dataclasses.asdict(found) | {"needed": found.needed, "a_step": a_step}


def _row_seconds(setup: Setup, listen: Listener) -> float:
    """Seconds of a row in an evaluation."""
    start = time.perf_counter()
    examples = setup.task.dev[: setup.rows]
    setup.answers(examples, "evaluating", listen)
    return (time.perf_counter() - start) / len(examples)


def _steps(setup: Setup, step_seconds: float) -> int:
    """The number of steps until the first limit of the run."""
    settings = setup.settings
    limits = [settings.steps] * bool(settings.steps) + [int(60 * settings.minutes / step_seconds)] * bool(settings.minutes)
    limits += [math.ceil(settings.evaluations / setup.optimizer.evaluations)] * bool(settings.evaluations)
    return min(limits)


def _evaluated_rows(setup: Setup) -> int:
    """The number of rows in all evaluations of the run."""
    task, settings = setup.task, setup.settings
    rows = settings.evals * len(task.dev) + (2 + bool(settings.shots)) * len(task.test)
    return rows + (min(MAX_FIT_ROWS, len(task.train)) if task.spec.kind == "options" else 0)
