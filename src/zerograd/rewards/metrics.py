"""A metric of a row's generated answer as its reward, alone or mixed with the loss, so that any method can train it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zerograd.directions import Directions
from zerograd.evaluate.evaluator import LocalBatch, Radii, begun
from zerograd.queries import Plan, Scores
from zerograd.rewards.evaluator import Prompt, RewardBatch, RewardObjective
from zerograd.rewards.functions import Reward, Rewards
from zerograd.spaces import Space
from zerograd.text import evaluation
from zerograd.text.data.tasks import Example
from zerograd.text.generation import Generator
from zerograd.text.metrics import Metric
from zerograd.text.sampling import Sampling
from zerograd.text.scoring import Scorer


def of_metric(scorer: Scorer, metric: Metric, new_tokens: int, mix: float = 1.0) -> RewardObjective:
    """An objective of a metric that has a value for each row. mix: its weight, in (0, 1]; the loss has the rest."""
    by_row, stop = metric.by_row, scorer.task.spec.stop
    assert by_row is not None

    def call(completions: Sequence[str], references: Sequence[Any], **columns: Any) -> list[float]:
        texts = ((text.split(stop)[0] if stop else text).strip() for text in completions)
        return [by_row(text, reference) for text, reference in zip(texts, references, strict=True)]

    given = Generator.of(scorer), scorer.tokenizer, Rewards([Reward(metric.name, call)]), Sampling(new_tokens)
    return RewardObjective(*given) if mix == 1 else _MixedObjective(scorer, mix, *given)


def answered(scorer: Scorer, examples: Sequence[Example], new_tokens: int) -> list[Prompt]:
    """Examples as prompts whose rows have the right answers."""
    references = evaluation.references(scorer, examples)
    return [
        AnsweredPrompt({"prompt": "", "references": reference}, scorer.encoder.prompt_ids(example, new_tokens), example)
        for example, reference in zip(examples, references, strict=True)
    ]


@dataclass(frozen=True)
class AnsweredPrompt(Prompt):
    """A prompt with the example that it comes from."""

    example: Example


class _MixedObjective(RewardObjective):
    """mix (1 - metric) + (1 - mix) loss, row by row."""

    def __init__(self, scorer: Scorer, mix: float, *given: Any) -> None:
        super().__init__(*given)
        self.scorer, self.mix = scorer, mix

    def evaluator(self, spaces: Sequence[Space], batch: Sequence[Any], **how: Any) -> RewardBatch:
        metric = super().evaluator(spaces, batch, **how)
        rows = self.scorer.batch([prompt.example for prompt in batch], for_training=True)
        loss = LocalBatch.of(spaces, self.scorer.losses, rows, micro_batch=self.scorer.examples_per_pass(rows.ids.shape[1], 2))
        return MixedBatch(spaces, self, batch, metric.micro_batch, metric.fit, metric.count, loss, self.mix)


@dataclass
class MixedBatch(RewardBatch):
    """A metric's evaluator beside that of the loss."""

    loss: LocalBatch | None = None
    mix: float = 1.0

    def begin(self, plan: Plan, directions: Directions, radii: Radii) -> Callable[[], Scores]:
        assert self.loss is not None
        metric, loss = super().begin(plan, directions, radii), begun(self.loss, plan, directions, radii)

        def scores() -> Scores:
            values: torch.Tensor = self.mix * (1 + metric().values) + (1 - self.mix) * loss().values
            return Scores(plan, values)

        return scores
