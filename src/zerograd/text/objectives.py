"""What training minimises: the loss, a metric that has no gradient, or a mix of the two."""

from __future__ import annotations

from typing import Any

import torch

from zerograd.text.metrics import Metric
from zerograd.text.scoring import Batch, Scorer

LOSS = "loss"


class MetricObjective:
    """1 minus a metric of the options that the model chooses, mixed with the loss: float32 (examples,).

    A metric of a row is each row's own. One of all rows together is taken over each copy of the batch, and is every row's of
    that copy. mix: the share of the metric, in (0, 1]; the rest is the loss's.
    Raises ValueError for a task without common options, whose answers would have to be generated.
    """

    def __init__(self, scorer: Scorer, metric: Metric, mix: float = 1.0) -> None:
        if scorer.task.spec.kind != "options":
            raise ValueError(f"objective {metric.name} is of options that are common to all rows; task {scorer.task.name} has none")
        if not 0 < mix <= 1:
            raise ValueError(f"mix is {mix}; it must be above 0 and at most 1")
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
