"""Evaluation: what the plain model, as it is saved, says of examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from zerograd.text.data.tasks import Example
from zerograd.text.generation import generate
from zerograd.text.metrics import Metric, Reference
from zerograd.text.scoring import Scorer

Scores = Sequence[Sequence[float]]

NO_CONTENT = "N/A"
"""A text that says nothing."""


@dataclass(frozen=True)
class Answers:
    """What a model says of examples, row by row.

    texts: its answers, an option's words or generated. losses: what training would minimise; of an answer, the mean over its
    tokens. scores: of the options; empty for free answers.
    """

    texts: list[str]
    losses: list[float]
    scores: list[list[float]]

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
    """What the model says of examples.

    rows: examples evaluated at a time, of like length, or as many as a forward pass takes. new_tokens: the most of a free
    answer; 0 to generate none, when texts are empty. listen hears the share that is done, in [0, 1].
    """
    if scorer.task.spec.kind == "answer":
        share = 0.2 if new_tokens else 1.0  # of the time that the losses take
        losses = _by_length(scorer, examples, rows, lambda done: listen(share * done), _token_losses)
        texts = [""] * len(examples)
        if new_tokens:
            texts = generate(scorer, examples, new_tokens, max(1, rows // 4), lambda done: listen(share + (1 - share) * done))
        return Answers(texts, [row[0] for row in losses], [])
    scores = option_scores(scorer, examples, rows, listen)
    pairs = list(zip(scores, examples, strict=True))
    each = [cross_entropy([row], [example]) if example.labels else math.nan for row, example in pairs]
    return Answers([words(scorer, example)[best(row)] for row, example in pairs], each, scores)


def option_scores(
    scorer: Scorer, examples: Sequence[Example], rows: int = 64, listen: Callable[[float], None] = lambda done: None
) -> list[list[float]]:
    """The score of every option of every example, in the order given."""
    found = _by_length(scorer, examples, rows, listen, lambda scorer, some: scorer.scores(scorer.batch(some)).tolist())
    return [[score for score in row if score > -math.inf] for row in found]


def calibrated(scorer: Scorer, examples: Sequence[Example], said: Answers, rows: int = 64) -> Answers:
    """Answers chosen by how much a prompt raises an option's score above what it has after one without content.

    Surface-form calibration (Holtzman et al. 2021, arXiv 2104.08315): texts of the prompt are replaced by NO_CONTENT.
    """
    empty = [dataclasses.replace(example, row=scorer.task.without_content(example.row, NO_CONTENT)) for example in examples]
    prior = option_scores(scorer, empty[:1]) * len(examples) if scorer.task.options else option_scores(scorer, empty, rows)
    scores = [[s - p for s, p in zip(row, before, strict=True)] for row, before in zip(said.scores, prior, strict=True)]
    texts = [words(scorer, example)[best(row)] for row, example in zip(scores, examples, strict=True)]
    losses = [
        cross_entropy([row], [example]) if example.labels else math.nan for row, example in zip(scores, examples, strict=True)
    ]
    return Answers(texts, losses, scores)


def words(scorer: Scorer, example: Example) -> list[str]:
    """The options of an example as they are reported."""
    return [option.strip() for option in scorer.task.options or example.options]


def references(scorer: Scorer, examples: Sequence[Example]) -> list[Reference]:
    """The right answer of each example, or all of them where it has several."""
    found: list[Reference] = []
    for example in examples:
        right = list(example.answers) or [words(scorer, example)[i] for i in example.labels]
        found.append(right[0] if len(right) == 1 else right)
    return found


def best(scores: Sequence[float]) -> int:
    """The option with the highest score; of equals, the first."""
    return max(range(len(scores)), key=scores.__getitem__)


def probability(scores: Sequence[float]) -> float:
    """Of the best option among the options: the softmax of the scores."""
    return float(torch.tensor(scores).softmax(0).max())


def margin(scores: Sequence[float], label: int) -> float:
    """The score of the right option minus the best other one."""
    return scores[label] - max(s for i, s in enumerate(scores) if i != label)


def right(scores: Scores, examples: Sequence[Example]) -> list[bool]:
    """Whether the best option is a right one, row by row."""
    return [best(row) in example.labels for row, example in zip(scores, examples, strict=True)]


def accuracy(scores: Scores, examples: Sequence[Example]) -> float:
    """The share of rows whose best option is a right one."""
    return sum(right(scores, examples)) / len(examples)


def cross_entropy(scores: Scores, examples: Sequence[Example]) -> float:
    """The mean negative log-probability of the right option among the options."""
    total = 0.0
    for row, example in zip(scores, examples, strict=True):
        total -= float(torch.tensor(row).log_softmax(0)[example.label])
    return total / len(examples)


def of(metric: Metric, scorer: Scorer, examples: Sequence[Example], said: Answers) -> float:
    """A metric of what the model said."""
    return metric(said.texts, references(scorer, examples))


def _token_losses(scorer: Scorer, examples: Sequence[Example]) -> list[list[float]]:
    if not all(example.answers for example in examples):
        return [[math.nan] for _ in examples]
    sums, weights = scorer.losses(scorer.batch(examples))
    means: list[list[float]] = (sums / weights)[:, None].tolist()
    return means


def _by_length(
    scorer: Scorer,
    examples: Sequence[Example],
    rows: int,
    listen: Callable[[float], None],
    work: Callable[[Scorer, Sequence[Example]], list[list[float]]],
) -> list[list[float]]:
    """work(some examples) for all of them, those of like length together, in the order given."""
    lengths = [scorer.length(example) for example in examples]
    by_length = sorted(range(len(examples)), key=lengths.__getitem__)
    found: list[list[float]] = [[] for _ in examples]
    first = 0
    while first < len(by_length):
        listen(first / len(by_length))
        longest = lengths[by_length[min(first + rows, len(by_length)) - 1]]
        chosen = by_length[first : first + min(rows, scorer.at_a_time(longest))]
        first += len(chosen)
        with torch.no_grad():
            for i, row in zip(chosen, work(scorer, [examples[i] for i in chosen]), strict=True):
                found[i] = row
    return found
