"""What training minimises: the loss, a metric that has no gradient, or a mix of the two."""

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
    """What a step minimises.

    whole_batch: its value is one of all rows of a batch together, so that no pass may take a part of them. by_closure: a step
    calls `closure(examples)` and evaluates that branch by branch; otherwise it calls the objective itself with a batch.
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

    A metric of a row is each row's own. A metric of all rows together is taken over each copy of the batch, and is the value of
    every row of that copy. mix: the share of the metric, in (0, 1]; the rest is the loss's.
    Raises ValueError for a task without common options.
    """

    def __init__(self, scorer: Scorer, metric: Metric, mix: float = 1.0) -> None:
        if scorer.task.spec.kind != "options":
            raise ValueError(f"objective {metric.name} is of options that are common to all rows; task {scorer.task.name} has none")
        self.scorer = scorer
        self.metric = metric
        self.mix = mix
        self._words = [option.strip() for option in scorer.task.options]

    @property
    def whole_batch(self) -> bool:
        """Whether the metric is of all rows together."""
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
    """1 minus a metric of answers that the model generates, mixed with the loss; a closure, since it is of a whole batch.

    new_tokens: the most of an answer. mix: the share of the metric, in (0, 1]; the rest is the loss's.
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
        """What a step evaluates branch by branch: a scalar of some examples. Generation is greedy, so that it is pure."""
        references = evaluation.references(self.scorer, examples)
        batch = self.scorer.batch(examples, taught=True) if self.mix < 1 else None

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
    """An objective by name: `LOSS`, or a metric's name, as `metrics.metric` takes it. Raises ValueError for neither."""
    if name == LOSS:
        return LossObjective(scorer.losses)
    chosen = metric(name)
    if scorer.task.spec.kind == "answer":
        return GeneratedObjective(scorer, chosen, mix, new_tokens)
    return MetricObjective(scorer, chosen, mix)
