"""Evaluation of a finished run's model, or of any model, on a task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from zerograd.machine import workers
from zerograd.runs.folder import Run, scorer_of
from zerograd.text import evaluation
from zerograd.text.data import splits
from zerograd.text.data.tasks import Example, Task
from zerograd.text.judge import Judge, metric_of
from zerograd.tune.progress import Listener, Progress, ignore_progress
from zerograd.tune.settings import TaskSettings
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


def _of_run(run: Run, settings: TaskSettings) -> Task:
    """A run's task, with its own rows or with those of the settings' data, dev and test."""
    given = settings if settings.data else run.settings
    return splits.with_rows(run.spec, sources_of(given), settings.dev or given.dev, settings.test or given.test)
