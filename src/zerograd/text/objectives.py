"""What training minimises: the loss, a metric that has no gradient, or a mix of the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zerograd.text import evaluation
from zerograd.text.data.tasks import Example
from zerograd.text.generation import generate
from zerograd.text.metrics import Metric
from zerograd.text.scoring import Batch, Scorer

LOSS = "loss"


class MetricObjective:
    """1 minus a metric of the options that the model chooses, mixed with the loss: float32 (examples,).

    A metric of a row is each row's own. One of all rows together is taken over each copy of the batch, and is every row's of
    that copy. mix: the share of the metric, in (0, 1]; the rest is the loss's.
    Raises ValueError for a task without common options.
    """

    def __init__(self, scorer: Scorer, metric: Metric, mix: float = 1.0) -> None:
        if scorer.task.spec.kind != "options":
            raise ValueError(f"objective {metric.name} is of options that are common to all rows; task {scorer.task.name} has none")
        self.scorer = scorer
        self.metric = metric
        self.mix = mix
        self._words = [option.strip() for option in scorer.task.options]

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
    """1 minus a metric of answers that the model generates, mixed with the loss; of a whole batch, so that it is a closure.

    new_tokens: the most of an answer. mix: the share of the metric, in (0, 1]; the rest is the loss's.
    """

    def __init__(self, scorer: Scorer, metric: Metric, mix: float = 1.0, new_tokens: int = 50) -> None:
        self.scorer = scorer
        self.metric = metric
        self.mix = mix
        self.new_tokens = new_tokens

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
