"""What a run found: values before and after with their intervals, and predictions row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from zerograd.text import evaluation, intervals
from zerograd.text.data.tasks import Example, TaskSpec
from zerograd.text.evaluation import Answers
from zerograd.text.metrics import Metric, Reference, metric
from zerograd.text.scoring import Scorer

LIKELIHOOD = "log-likelihood"
"""The metric of answers that are not generated: the mean over rows of the mean over a right answer's tokens."""


def metric_of(name: str, spec: TaskSpec) -> Metric | None:
    """The metric by name, the task's own, or accuracy; None is the likelihood of free answers. Raises ValueError for no metric."""
    named = name or spec.metric or ("" if spec.kind == "answer" else "accuracy")
    return metric(named) if named and named != LIKELIHOOD else None


class Judge:
    """Values of a metric on the test rows, and their intervals."""

    def __init__(self, scorer: Scorer, examples: Sequence[Example], metric: Metric | None) -> None:
        self.metric = metric
        self.examples = examples
        self.name = metric.name if metric else LIKELIHOOD
        self.references: list[Reference] = evaluation.references(scorer, examples)

    def require(self, said: Answers) -> None:
        """Raises ValueError when the metric is none of such answers: better before training than after."""
        if self.metric is not None:
            self._of(said.texts, range(len(self.examples)))

    def rows(self, said: Answers) -> list[float] | None:
        """The value of each row, where the metric has one."""
        if self.metric is None:
            return [-loss for loss in said.losses]
        if self.metric.by_row is None:
            return None
        return [self.metric.by_row(text, reference) for text, reference in zip(said.texts, self.references, strict=True)]

    def value(self, said: Answers, interval: bool = True) -> tuple[float, list[float]]:
        """(value, 95 % interval, empty where none is wanted)."""
        rows = self.rows(said)
        if rows is not None:
            return sum(rows) / len(rows), intervals.mean(rows)
        everything = range(len(self.examples))
        value = self._of(said.texts, everything)
        return value, intervals.bootstrap(lambda some: self._of(said.texts, some), len(everything)) if interval else []

    def gain(self, before: Answers, after: Answers) -> list[float]:
        """95 % interval of the paired gain."""
        first, second = self.rows(before), self.rows(after)
        if first is not None and second is not None:
            return intervals.paired(first, second)
        return intervals.bootstrap(lambda some: self._of(after.texts, some) - self._of(before.texts, some), len(self.examples))

    def _of(self, texts: Sequence[str], some: Sequence[int]) -> float:
        assert self.metric is not None
        return self.metric([texts[i] for i in some], [self.references[i] for i in some])


def judged(
    judge: Judge, scorer: Scorer, before: Answers, after: Answers, fit: Answers | None, shots: Answers | None
) -> dict[str, Any]:
    """The values of a run by name: of the majority class, zero-shot, with offsets fitted on training rows, and tuned.

    fit: what the untouched model says of training rows; None for tasks without common options. shots: what it says of the test
    rows behind demonstrations, where that was asked for.
    """
    value_before, ci_before = judge.value(before)
    value_after, ci_after = judge.value(after)
    found: dict[str, Any] = {
        "metric": judge.name,
        "value_before": value_before,
        "value_after": value_after,
        "ci_before": ci_before,
        "ci_after": ci_after,
        "ci_gain": judge.gain(before, after),
        "loss_before": before.loss,
        "loss_after": after.loss,
        "test_rows": len(judge.examples),
    }
    if shots is not None:
        found["value_shots"], found["ci_shots"] = judge.value(shots)
        found["ci_gain_shots"] = judge.gain(shots, after)
    if fit is not None:
        train = scorer.task.train[: len(fit.scores)]
        labels = [e.label for e in train]
        offsets = intervals.best_offsets(fit.scores, labels)
        shifted = [[s + o for s, o in zip(row, offsets, strict=True)] for row in before.scores]
        words = [option.strip() for option in scorer.task.options]
        calibrated = Answers([words[evaluation.best(row)] for row in shifted], before.losses, shifted)
        common = max(range(len(words)), key=labels.count)
        majority = Answers([words[common]] * len(judge.examples), before.losses, before.scores)
        with contextlib.suppress(ValueError):  # a metric may have no value of answers that are all the same
            found["value_majority"] = judge.value(majority, interval=False)[0]
        found["value_calibrated"], found["ci_calibrated"] = judge.value(calibrated)
        found["ci_gain_calibrated"] = judge.gain(calibrated, after)
        found["offsets"] = offsets
    if judge.name == "accuracy":
        found |= {name.replace("value", "accuracy"): value for name, value in found.items() if name.startswith("value_")}
    return found


def predictions(scorer: Scorer, judge: Judge, before: Answers, after: Answers) -> Iterator[dict[str, Any]]:
    """The test rows with what the model said of them before and after."""
    first, second = (judge.rows(said) if judge.metric else None for said in (before, after))
    for i, example in enumerate(judge.examples):
        row: dict[str, Any] = {
            "id": example.id,
            "text": shown(scorer, example),
            "reference": judge.references[i],
            "option_before": before.texts[i],
            "option_after": after.texts[i],
            "loss_before": before.losses[i],
            "loss_after": after.losses[i],
        }
        if before.scores:
            row |= {
                "label": example.label,
                "right_before": evaluation.best(before.scores[i]) in example.labels,
                "right_after": evaluation.best(after.scores[i]) in example.labels,
                "probability_before": evaluation.probability(before.scores[i]),
                "probability_after": evaluation.probability(after.scores[i]),
                "margin_before": evaluation.margin(before.scores[i], example.label),
                "margin_after": evaluation.margin(after.scores[i], example.label),
            }
        elif first is not None and second is not None:
            row |= {"right_before": first[i] == 1, "right_after": second[i] == 1}
        yield row


def shown(scorer: Scorer, example: Example) -> str:
    """An example as a reader sees it: the column that may be cut where the task has one, else the whole prompt."""
    spec = scorer.task.spec
    if spec.messages:
        return "\n".join(f"{m['role']}: {m['content']}" for m in example.row[spec.messages][: -1 if example.answers else None])
    return str(example.row[spec.cut]) if spec.cut in example.row else scorer.task.prompt(example)
