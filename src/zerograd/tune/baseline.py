"""The baseline: the untrained model's answers, which the tuned model is compared with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from zerograd.machine import memory
from zerograd.machine.files import write_text
from zerograd.text.evaluation import Answers
from zerograd.text.judge import Judge
from zerograd.tune.folder import BASELINE
from zerograd.tune.progress import Listener
from zerograd.tune.setup import Setup
from zerograd.tune.task import demonstrations

MAX_FIT_ROWS = 2_000
"""The most training rows that the untrained model scores, to fit offsets on."""


@dataclass(frozen=True)
class Baseline:
    """The answers of the untrained model.

    before: to the test rows. fit: to training rows; None for a task without common options. shots: to the test rows
    after demonstrations; None without `shots` in the settings. inference_peak_bytes: the peak of memory meanwhile.
    """

    before: Answers
    fit: Answers | None
    shots: Answers | None
    inference_peak_bytes: int


def baseline(setup: Setup, judge: Judge, listen: Listener) -> Baseline:
    """Evaluate the untrained model, or read its answers from the folder of an interrupted run.

    Raises ValueError if the metric has no value for such answers.
    """
    path = setup.folder / BASELINE
    if setup.resumes and path.exists():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return _from_json(json.loads(path.read_text(encoding="utf-8")))
    memory.reset_peak()
    task, settings = setup.task, setup.settings
    before = setup.answers(task.test, "zero-shot, test", listen)
    judge.require(before)
    fit = setup.answers(task.train[:MAX_FIT_ROWS], "zero-shot, train", listen) if task.spec.kind == "options" else None
    shots = None
    if settings.shots:
        with setup.scorer.encoder.demonstrating(demonstrations(task, settings.shots, settings.seed)):
            shots = setup.answers(task.test, "in-context, test", listen)
    answers = Baseline(before, fit, shots, memory.peak_bytes())
    write_text(path, json.dumps(dataclasses.asdict(answers)))
    return answers


def _from_json(fields: dict[str, Any]) -> Baseline:
    """Raises KeyError or TypeError for fields that are not a baseline's."""
    before, fit, shots = (fields[name] and Answers(**fields[name]) for name in ("before", "fit", "shots"))
    return Baseline(before, fit, shots, int(fields["inference_peak_bytes"]))
