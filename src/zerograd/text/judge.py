"""The results of a run: its metric before and after training with intervals, and its predictions row by row."""

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
"""The metric of free answers that are not generated: the mean over rows of a right answer's log-likelihood per token.
"""


def metric_of(name: str, spec: TaskSpec) -> Metric | None:
    """The metric of a name, by default the task's own, or accuracy; None stands for LIKELIHOOD.

    Raises ValueError for an unknown metric.
    """
    named = name or spec.metric or ("" if spec.kind in ("answer", "open") else "accuracy")
    return metric(named) if named and named not in (LIKELIHOOD, REWARD) else None


REWARD = "reward"
"""The metric of an open task's answers: the mean over rows of the rewards' sum."""


class Judge:
    """The metric of answers to the test rows, with intervals."""

    def __init__(self, scorer: Scorer, examples: Sequence[Example], metric: Metric | None) -> None:
        self.metric = metric
        self.examples = examples
        self.name = metric.name if metric else REWARD if scorer.task.spec.open else LIKELIHOOD
        self.references: list[Reference] = evaluation.references(scorer, examples)

    def require(self, answers: Answers) -> None:
        """Raises ValueError if the metric has no value for such answers, so that a run fails before its training."""
        if self.metric is not None:
            self._of(answers.texts, range(len(self.examples)))

    def rows(self, answers: Answers) -> list[float] | None:
        """The value of each row; None for a metric of all rows together."""
        if self.metric is None:
            return [-loss for loss in answers.losses]  # the log-likelihood, or the reward
        if self.metric.by_row is None:
            return None
        return [self.metric.by_row(text, reference) for text, reference in zip(answers.texts, self.references, strict=True)]

    def value(self, answers: Answers, interval: bool = True) -> tuple[float, list[float]]:
        """(value, 95 % interval; without `interval` a metric of all rows together has an empty one)."""
        rows = self.rows(answers)
        if rows is not None:
            return sum(rows) / len(rows), intervals.mean(rows)
        everything = range(len(self.examples))
        value = self._of(answers.texts, everything)
        return value, intervals.bootstrap(lambda rows: self._of(answers.texts, rows), len(everything)) if interval else []

    def gain(self, before: Answers, after: Answers) -> list[float]:
        """95 % interval of the paired gain of `after` over `before`."""
        first, second = self.rows(before), self.rows(after)
        if first is not None and second is not None:
            return intervals.paired(first, second)
        return intervals.bootstrap(lambda rows: self._of(after.texts, rows) - self._of(before.texts, rows), len(self.examples))

    def _of(self, texts: Sequence[str], rows: Sequence[int]) -> float:
        assert self.metric is not None
        return self.metric([texts[i] for i in rows], [self.references[i] for i in rows])


def judge_run(
    judge: Judge, scorer: Scorer, before: Answers, after: Answers, fit: Answers | None, shots: Answers | None
) -> dict[str, Any]:
    """The results of a run by name: majority class, zero-shot, zero-shot with fitted offsets, in-context and tuned.

    before, after: answers to the test rows before and after training. fit: the untrained model's answers to training
    rows, which offsets are fitted on; None for tasks without common options. shots: its answers to the test rows after
    demonstrations; None without demonstrations.
    """
    value_before, ci_before = judge.value(before)
    value_after, ci_after = judge.value(after)
    result: dict[str, Any] = {
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
        result["value_shots"], result["ci_shots"] = judge.value(shots)
        result["ci_gain_shots"] = judge.gain(shots, after)
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
            result["value_majority"] = judge.value(majority, interval=False)[0]
        result["value_calibrated"], result["ci_calibrated"] = judge.value(calibrated)
        result["ci_gain_calibrated"] = judge.gain(calibrated, after)
        result["offsets"] = offsets
    if judge.name == "accuracy":
        result |= {name.replace("value", "accuracy"): value for name, value in result.items() if name.startswith("value_")}
    return result


def predictions(scorer: Scorer, judge: Judge, before: Answers, after: Answers) -> Iterator[dict[str, Any]]:
    """The test rows with the model's answers before and after training."""
    first, second = (judge.rows(answers) if judge.metric else None for answers in (before, after))
    for i, example in enumerate(judge.examples):
        row: dict[str, Any] = {
            "id": example.id,
            "text": preview(scorer, example),
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
        if after.rewards:
            row |= {"rewards_before": before.said_of(i), "rewards_after": after.said_of(i)}
        yield row


def preview(scorer: Scorer, example: Example) -> str:
    """The text of an example for reports: the column that may be cut if the task has one, else the whole prompt."""
    spec = scorer.task.spec
    if spec.messages:
        return "\n".join(
            f"{m['role']}: {m['content']}" for m in scorer.task.messages(example.row)[: -1 if example.answers else None]
        )
    return str(example.row[spec.cut]) if spec.cut in example.row else scorer.task.prompt(example)
