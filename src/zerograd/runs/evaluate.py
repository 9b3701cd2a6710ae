"""Evaluation and prediction with a model as it is: a finished run's, or any."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from zerograd.machine import workers
from zerograd.runs import folder as runs
from zerograd.runs.folder import Run
from zerograd.text import evaluation
from zerograd.text.data import sources as data
from zerograd.text.data import splits
from zerograd.text.data.tasks import Example, Task, TaskSpec
from zerograd.text.judge import Judge, metric_of
from zerograd.text.scoring import Scorer
from zerograd.tune.progress import Listener, Progress
from zerograd.tune.run import demonstrations, sources_of, task_of
from zerograd.tune.settings import TaskSettings

ROWS = 64
"""Examples of a forward pass, or as many as it takes."""


def evaluate(
    settings: TaskSettings,
    run: Run | None = None,
    split: str = "test",
    calibrate: bool = False,
    listen: Listener = lambda progress: None,
) -> dict[str, Any]:
    """The metric of a model on rows with labels, those of a split of its task.

    run: a finished one, whose model, task and data stand in for those of the settings. calibrate: choose options by how much the
    row's content raises their scores. Raises ValueError or FileNotFoundError.
    """
    workers.use(settings.threads)
    listen(Progress("reading the data", 0.0))
    task = task_of(settings) if run is None else _of_run(run, settings)
    examples: Sequence[Example] = getattr(task, split)
    listen(Progress("loading the model", 0.0))
    scorer = run.scorer(settings.device, task) if run else runs.scorer(settings.model, settings, task, settings.device)
    scorer.settle(examples[:2])
    metric = metric_of(settings.metric or (run.result["metric"] if run else ""), task.spec)
    judge = Judge(scorer, examples, metric)
    shown = demonstrations(task, settings.shots, settings.seed)
    with scorer.encoder.demonstrating(shown) if shown else nullcontext():
        new_tokens = (run.settings if run else settings).new_tokens if metric is not None else 0
        said = evaluation.answers(scorer, examples, ROWS, new_tokens, lambda done: listen(Progress("evaluating", done)))
        if calibrate:
            if task.spec.kind == "answer":
                raise ValueError(f"calibrate is for options, and task {task.name} has free answers; leave it out")
            said = evaluation.calibrated(scorer, examples, said, ROWS)
    value, interval = judge.value(said)
    return {
        "model": str(run.folder) if run else settings.model,
        "task": task.name,
        "split": split,
        "metric": judge.name,
        "value": value,
        "ci": interval,
        "loss": said.loss,
        "rows": len(examples),
    }


def _of_run(run: Run, settings: TaskSettings) -> Task:
    """A run's task: with its own rows, with those of a data set in their place, or with only another dev or test split."""
    given = settings if settings.data else run.settings
    return splits.with_rows(run.spec, sources_of(given), settings.dev or given.dev, settings.test or given.test)


def predict(run: Run, source: str, settings: TaskSettings, listen: Listener = lambda p: None) -> list[dict[str, Any]]:
    """The rows of a file with what a run's tuned model answers to each: its own columns, "prediction", and for options
    "probability", of the prediction among the options. Raises ValueError or FileNotFoundError.
    """
    workers.use(settings.threads)
    listen(Progress("reading the data", 0.0))
    task = Task(_unfiltered(run.spec))
    found = data.read(source)
    if len(found) > 1:
        raise ValueError(f"data {source!r} has {' and '.join(found)}; name the file of one of them")
    (rows,) = found.values()
    examples = task.read(rows, f"data {source}", labelled=False)
    listen(Progress("loading the model", 0.0))
    scorer: Scorer = run.scorer(settings.device, task)
    scorer.settle(examples[:2])
    said = evaluation.answers(scorer, examples, ROWS, run.settings.new_tokens, lambda done: listen(Progress("predicting", done)))
    answered = []
    for i, (row, text) in enumerate(zip(rows, said.texts, strict=True)):
        more: dict[str, Any] = {"prediction": _label(task, text)}
        if said.scores:
            more["probability"] = evaluation.probability(said.scores[i])
        answered.append({**row, **more})
    return answered


def _unfiltered(spec: TaskSpec) -> TaskSpec:
    """A task that takes every row: what is asked to be predicted is not left out."""
    return dataclasses.replace(spec, where="")


def _label(task: Task, text: str) -> Any:
    """The label of an option, as the data writes it; any other answer as it is."""
    options = [option.strip() for option in task.options]
    return task.spec.labels[options.index(text)] if task.spec.labels and text in options else text
