"""Evaluation of a finished run's model, or of any model, on a task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from zerograd.machine import workers
from zerograd.rewards.task import prompts_of
from zerograd.runs.folder import Run, scorer_of
from zerograd.text import evaluation
from zerograd.text.data import splits
from zerograd.text.data.tasks import Example, Task
from zerograd.text.judge import Judge, metric_of
from zerograd.text.sampling import Noise
from zerograd.text.scoring import Scorer
from zerograd.tune.progress import Listener, Progress, ignore_progress
from zerograd.tune.settings import TaskSettings
from zerograd.tune.setup import EVALUATION_STEP, as_answers, reward_objective
from zerograd.tune.task import demonstrations, sources_of, task_of

PASS_ROWS = 64
"""The most examples of a forward pass in an evaluation."""


def evaluate(
    settings: TaskSettings,
    run: Run | None = None,
    split: str = "test",
    calibrate: bool = False,
    listen: Listener = ignore_progress,
) -> dict[str, Any]:
    """The metric of a model on the labelled rows of a split.

    run: a finished run, whose model, task and data replace those of the settings. calibrate: compare each option's
    score with its score for an empty text.
    Raises ValueError or FileNotFoundError.
    """
    workers.use(settings.threads)
    listen(Progress("reading the data", 0.0))
    task = task_of(settings) if run is None else _of_run(run, settings)
    examples: Sequence[Example] = getattr(task, split)
    listen(Progress("loading the model", 0.0))
    scorer = run.scorer(settings.device, task) if run else scorer_of(settings.model, settings, task, settings.device)
    if task.spec.open:
        return _on_rewards(run, scorer, task, split, listen)
    scorer.choose_head_path(examples[:2])
    metric = metric_of(settings.metric or (run.result["metric"] if run else ""), task.spec)
    judge = Judge(scorer, examples, metric)
    shots = demonstrations(task, settings.shots, settings.seed)
    with scorer.encoder.demonstrating(shots) if shots else nullcontext():
        new_tokens = (run.settings if run else settings).new_tokens if metric is not None else 0
        answers = evaluation.answers(scorer, examples, PASS_ROWS, new_tokens, lambda done: listen(Progress("evaluating", done)))
        if calibrate:
            if task.spec.kind == "answer":
                raise ValueError(f"calibrate is for options, and task {task.name} has free answers; leave it out")
            answers = evaluation.calibrated(scorer, examples, answers, PASS_ROWS)
    value, interval = judge.value(answers)
    return {
        "model": str(run.folder) if run else settings.model,
        "task": task.name,
        "split": split,
        "metric": judge.name,
        "value": value,
        "ci": interval,
        "loss": answers.loss,
        "rows": len(examples),
    }


def _on_rewards(run: Run | None, scorer: Scorer, task: Task, split: str, listen: Listener) -> dict[str, Any]:
    """The rewards of a run's model."""
    if run is None or not run.settings.reward:
        raise ValueError(f"task {task.name} has prompts alone, and there is no reward that scores them; give the run's folder")
    settings, examples = run.settings, getattr(task, split)
    objective, noise = reward_objective(settings, scorer), Noise(settings.seed, EVALUATION_STEP) if settings.temperature else None
    prompts = prompts_of(scorer, examples, settings.new_tokens)
    made = as_answers(objective.plain(prompts, noise, lambda done: listen(Progress("evaluating", done))), objective.rewards.names)
    judge = Judge(scorer, examples, None)
    value, interval = judge.value(made)
    return {
        "model": str(run.folder),
        "task": task.name,
        "split": split,
        "metric": judge.name,
        "value": value,
        "ci": interval,
        "loss": made.loss,
        "rows": len(examples),
        "rewards": {name: sum(values) / len(values) for name, values in made.rewards.items()},
    }


def _of_run(run: Run, settings: TaskSettings) -> Task:
    """A run's task, with its own rows or with those of the settings' data, dev and test."""
    given = settings if settings.data else run.settings
    if run.settings.reward and not given.data:
        return task_of(run.settings)
    return splits.with_rows(run.spec, sources_of(given), settings.dev or given.dev, settings.test or given.test)
