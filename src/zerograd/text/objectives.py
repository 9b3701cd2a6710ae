"""Objectives of training: the loss, a metric without a gradient, or a mix of the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from zerograd.text import evaluation
from zerograd.text.data.tasks import Example
from zerograd.text.generation import generate
from zerograd.text.metrics import Metric, metric
from zerograd.text.scoring import Batch, Scorer

LOSS = "loss"


class Objective(Protocol):
    """The objective of a step.

    whole_batch: the value depends on all rows of a batch together, so a pass must take the whole batch. by_closure: a
    step evaluates `closure(examples)` once per branch; otherwise the step calls the objective itself with a batch.
    """

    @property
    def whole_batch(self) -> bool: ...

    @property
    def by_closure(self) -> bool: ...

    def __call__(self, batch: Batch) -> Any: ...

    def closure(self, examples: Sequence[Example]) -> Callable[[], torch.Tensor]: ...


class _OfBatches:
    """An objective that is called with a batch."""

    by_closure: ClassVar[bool] = False

    def closure(self, examples: Sequence[Example]) -> Callable[[], torch.Tensor]:
        raise TypeError(f"{type(self).__name__} is called with a batch; it has no closure")


@dataclass(frozen=True)
class LossObjective(_OfBatches):
    """The loss of each row, as `Scorer.losses` gives it."""

    losses: Callable[[Batch], Any]
    whole_batch: ClassVar[bool] = False

    def __call__(self, batch: Batch) -> Any:
        return self.losses(batch)


class MetricObjective(_OfBatches):
    """1 minus a metric of the options that the model chooses, mixed with the loss: float32 (examples,).

    A metric of one row gives each row its own value. A metric of all rows gives every row of a branch the value of that
    branch. mix: the weight of the metric, in (0, 1]; the loss has the rest.
    Raises ValueError for a task without common options.
    """

    def __init__(self, scorer: Scorer, metric: Metric, mix: float = 1.0) -> None:
        if scorer.task.spec.kind != "options":
            raise ValueError(f"objective {metric.name} needs options that all rows share; task {scorer.task.name} has none")
        self.scorer = scorer
        self.metric = metric
        self.mix = mix
        self._words = [option.strip() for option in scorer.task.options]

    @property
    def whole_batch(self) -> bool:
        """Whether the metric needs all rows together."""
        return self.metric.by_row is None

    def __call__(self, batch: Batch) -> Any:
        scores = self.scorer.scores(batch)
        chosen = scores.argmax(1).tolist()
        right = batch.labels.tolist()
        starts = (batch.index == batch.index[0]).nonzero()[:, 0].tolist()
        values: list[float] = []
        for first, stop in zip(starts, [*starts[1:], len(right)], strict=True):
            predictions = [self._words[i] for i in chosen[first:stop]]
            references = [self._words[i] for i in right[first:stop]]
            if self.metric.by_row is not None:
                values += map(self.metric.by_row, predictions, references)
            else:
                values += [self.metric(predictions, references)] * (stop - first)
        wrong = 1 - torch.tensor(values, device=scores.device)
        if self.mix == 1:
            return wrong
        losses = torch.nn.functional.cross_entropy(scores, batch.labels, reduction="none")
        return self.mix * wrong + (1 - self.mix) * losses


class GeneratedObjective:
    """1 minus a metric of generated answers, mixed with the loss; a closure, since generation takes the whole batch.

    new_tokens: the longest answer. mix: the weight of the metric, in (0, 1]; the loss has the rest.
    """

    whole_batch: ClassVar[bool] = True
    by_closure: ClassVar[bool] = True

    def __init__(self, scorer: Scorer, metric: Metric, mix: float = 1.0, new_tokens: int = 50) -> None:
        self.scorer = scorer
        self.metric = metric
        self.mix = mix
        self.new_tokens = new_tokens

    def __call__(self, batch: Batch) -> Any:
        raise TypeError("GeneratedObjective is a closure of examples; it cannot be called with a batch")

    def closure(self, examples: Sequence[Example]) -> Callable[[], torch.Tensor]:
        """A scalar objective of some examples, for a step to call once per branch. It is pure, since generation is
        greedy.
        """
        references = evaluation.references(self.scorer, examples)
        batch = self.scorer.batch(examples, for_training=True) if self.mix < 1 else None

        def value() -> torch.Tensor:
            texts = generate(self.scorer, examples, self.new_tokens, len(examples))
            wrong = torch.tensor(1 - self.metric(texts, references))
            if batch is None:
                return wrong
            sums, weights = self.scorer.losses(batch)
            mixed: torch.Tensor = self.mix * wrong + (1 - self.mix) * (sums.sum() / weights.sum()).cpu()
            return mixed

        return value


def objective(name: str, scorer: Scorer, mix: float = 1.0, new_tokens: int = 50) -> Objective:
    """An objective by name: `LOSS`, or the name of a metric. Raises ValueError for any other name."""
    if name == LOSS:
        return LossObjective(scorer.losses)
    named = metric(name)
    if scorer.task.spec.kind == "answer":
        return GeneratedObjective(scorer, named, mix, new_tokens)
    return MetricObjective(scorer, named, mix)
