"""Evaluation: the answers of the plain model, as it is saved, to examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from zerograd.evaluate import half
from zerograd.text.data.tasks import Example
from zerograd.text.generation import generate
from zerograd.text.metrics import Metric, Reference
from zerograd.text.scoring import Scorer

Scores = Sequence[Sequence[float]]

NO_CONTENT = "N/A"
"""A prompt text without content, for calibration."""


@dataclass(frozen=True)
class Answers:
    """A model's answers to examples, row by row.

    texts: the chosen options, or generated answers. losses: the training loss of each row; of an answer, the mean over
    its tokens; of an answer with a reward, minus that. scores: log-likelihoods of each row's options; empty for free
    answers. rewards: what each reward function said, by name; NaN where it was left out. tokens: of each answer with a reward.
    columns: what reward functions said beside it, by name: texts and numbers.
    """

    texts: list[str]
    losses: list[float]
    scores: list[list[float]]
    rewards: dict[str, list[float]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def said_of(self, i: int) -> dict[str, Any]:
        """What reward functions said of an answer, by name; nothing of an answer without a reward."""
        rewards = {name: None if math.isnan(values[i]) else values[i] for name, values in self.rewards.items()}
        return {name: values[i] for name, values in self.columns.items()} | rewards

    @property
    def loss(self) -> float:
        """The mean loss of a row."""
        return sum(self.losses) / len(self.losses)


def answers(
    scorer: Scorer,
    examples: Sequence[Example],
    rows: int = 64,
    new_tokens: int = 0,
    listen: Callable[[float], None] = lambda done: None,
) -> Answers:
    """The model's answers to examples.

    rows: the most examples of a forward pass, which have similar lengths. new_tokens: the longest free answer; 0
    generates none and leaves texts empty. listen: takes the share of the work that is done, in [0, 1].
    """
    if scorer.task.spec.open:
        texts = generate(scorer, examples, new_tokens, max(1, rows // 4), listen) if new_tokens else [""] * len(examples)
        return Answers(texts, [math.nan] * len(examples), [])
    if scorer.task.spec.kind == "answer":
        share = 0.2 if new_tokens else 1.0  # of the time, for the losses
        losses = _in_batches_by_length(scorer, examples, rows, lambda done: listen(share * done), _token_losses)
        texts = [""] * len(examples)
        if new_tokens:
            texts = generate(scorer, examples, new_tokens, max(1, rows // 4), lambda done: listen(share + (1 - share) * done))
        return Answers(texts, [row[0] for row in losses], [])
    scores = option_scores(scorer, examples, rows, listen)
    pairs = list(zip(scores, examples, strict=True))
    each = [cross_entropy([row], [example]) if example.labels else math.nan for row, example in pairs]
    return Answers([option_texts(scorer, example)[best(row)] for row, example in pairs], each, scores)


def option_scores(
    scorer: Scorer, examples: Sequence[Example], rows: int = 64, listen: Callable[[float], None] = lambda done: None
) -> list[list[float]]:
    """The score of every option of every example, in the order of the examples."""
    padded = _in_batches_by_length(scorer, examples, rows, listen, lambda scorer, part: scorer.scores(scorer.batch(part)).tolist())
    return [[score for score in row if score > -math.inf] for row in padded]


def calibrated(scorer: Scorer, examples: Sequence[Example], answers: Answers, rows: int = 64) -> Answers:
    """Answers chosen by the gain of each option's score over its score after a prompt without content.

    Surface-form calibration (Holtzman et al. 2021, arXiv 2104.08315): NO_CONTENT replaces the texts of the prompt.
    """
    empty = [dataclasses.replace(example, row=scorer.task.without_content(example.row, NO_CONTENT)) for example in examples]
    prior = option_scores(scorer, empty[:1]) * len(examples) if scorer.task.options else option_scores(scorer, empty, rows)
    scores = [[s - p for s, p in zip(row, before, strict=True)] for row, before in zip(answers.scores, prior, strict=True)]
    texts = [option_texts(scorer, example)[best(row)] for row, example in zip(scores, examples, strict=True)]
    losses = [
        cross_entropy([row], [example]) if example.labels else math.nan for row, example in zip(scores, examples, strict=True)
    ]
    return Answers(texts, losses, scores)


def option_texts(scorer: Scorer, example: Example) -> list[str]:
    """The options of an example as reports show them, without spaces around."""
    return [option.strip() for option in scorer.task.options or example.options]


def references(scorer: Scorer, examples: Sequence[Example]) -> list[Reference]:
    """The right answer of each example; a list where an example has several."""
    texts: list[Reference] = []
    for example in examples:
        right = list(example.answers) or [option_texts(scorer, example)[i] for i in example.labels]
        texts.append(right[0] if len(right) == 1 else right)
    return texts


def best(scores: Sequence[float]) -> int:
    """The index of the highest score; of equal scores, the first."""
    return max(range(len(scores)), key=scores.__getitem__)


def probability(scores: Sequence[float]) -> float:
    """The probability of the best option: the largest value of the scores' softmax."""
    return float(torch.tensor(scores).softmax(0).max())


def margin(scores: Sequence[float], label: int) -> float:
    """The score of the right option minus the best other one."""
    return scores[label] - max(s for i, s in enumerate(scores) if i != label)


def right(scores: Scores, examples: Sequence[Example]) -> list[bool]:
    """Whether the best option is right, row by row."""
    return [best(row) in example.labels for row, example in zip(scores, examples, strict=True)]


def accuracy(scores: Scores, examples: Sequence[Example]) -> float:
    """The share of rows whose best option is right."""
    return sum(right(scores, examples)) / len(examples)


def cross_entropy(scores: Scores, examples: Sequence[Example]) -> float:
    """The mean negative log-probability of the right option among the options."""
    total = 0.0
    for row, example in zip(scores, examples, strict=True):
        total -= float(torch.tensor(row).log_softmax(0)[example.label])
    return total / len(examples)


def score(metric: Metric, scorer: Scorer, examples: Sequence[Example], answers: Answers) -> float:
    """The metric of a model's answers."""
    return metric(answers.texts, references(scorer, examples))


def _token_losses(scorer: Scorer, examples: Sequence[Example]) -> list[list[float]]:
    if not all(example.answers for example in examples):
        return [[math.nan] for _ in examples]
    sums, weights = scorer.losses(scorer.batch(examples))
    means: list[list[float]] = (sums / weights)[:, None].tolist()
    return means


def _in_batches_by_length(
    scorer: Scorer,
    examples: Sequence[Example],
    rows: int,
    listen: Callable[[float], None],
    work: Callable[[Scorer, Sequence[Example]], list[list[float]]],
) -> list[list[float]]:
    """work(scorer, batch) for batches of examples with similar lengths; the results in the order of the examples."""
    lengths = [scorer.length(example) for example in examples]
    by_length = sorted(range(len(examples)), key=lengths.__getitem__)
    results: list[list[float]] = [[] for _ in examples]
    first = 0
    while first < len(by_length):
        listen(first / len(by_length))
        longest = lengths[by_length[min(first + rows, len(by_length)) - 1]]
        chosen = by_length[first : first + min(rows, scorer.examples_per_pass(longest))]
        first += len(chosen)
        with torch.no_grad(), half.fast_products():
            for i, row in zip(chosen, work(scorer, [examples[i] for i in chosen]), strict=True):
                results[i] = row
    return results
