"""Answers of a finished run's model to new rows."""

from __future__ import annotations

import dataclasses
from typing import Any

from zerograd.machine import workers
from zerograd.runs.evaluate import PASS_ROWS
from zerograd.runs.folder import Run
from zerograd.text import evaluation
from zerograd.text.data import sources
from zerograd.text.data.tasks import Task, TaskSpec
from zerograd.tune.progress import Listener, Progress, ignore_progress
from zerograd.tune.settings import TaskSettings


def predict(run: Run, source: str, settings: TaskSettings, listen: Listener = ignore_progress) -> list[dict[str, Any]]:
    """The rows of a file with the answers of a run's tuned model.

    Each row has its own columns, "prediction", and for options "probability", the prediction's probability among the
    options.
    Raises ValueError or FileNotFoundError.
    """
    workers.use(settings.threads)
    listen(Progress("reading the data", 0.0))
    task = Task(_unfiltered(run.spec))
    read = sources.read(source)
    if len(read) > 1:
        raise ValueError(f"data {source!r} has {' and '.join(read)}; name the file of one of them")
    (rows,) = read.values()
    examples = task.read(rows, f"data {source}", labelled=False)
    listen(Progress("loading the model", 0.0))
    scorer = run.scorer(settings.device, task)
    scorer.choose_head_path(examples[:2])
    answers = evaluation.answers(
        scorer, examples, PASS_ROWS, run.settings.new_tokens, lambda done: listen(Progress("predicting", done))
    )
    rows_with_answers = []
    for i, (row, text) in enumerate(zip(rows, answers.texts, strict=True)):
        more: dict[str, Any] = {"prediction": _label(task, text)}
        if answers.scores:
            more["probability"] = evaluation.probability(answers.scores[i])
        rows_with_answers.append({**row, **more})
    return rows_with_answers


def _unfiltered(spec: TaskSpec) -> TaskSpec:
    """The task without its filter, since every row needs a prediction."""
    return dataclasses.replace(spec, where="")


def _label(task: Task, text: str) -> Any:
    """The label of an option as in the data; any other answer as it is."""
    options = [option.strip() for option in task.options]
    return task.spec.labels[options.index(text)] if task.spec.labels and text in options else text
