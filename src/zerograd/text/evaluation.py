"""Evaluation by option scores: what the plain model, as it is saved, says of labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from zerograd.text.scoring import OptionScorer
from zerograd.text.tasks import Example

Scores = Sequence[Sequence[float]]


def option_scores(
    scorer: OptionScorer, examples: Sequence[Example], rows: int = 64, listen: Callable[[float], None] = lambda done: None
) -> list[list[float]]:
    """The score of every option of every example, in the order given.

    rows: examples evaluated at a time, of like length, or as many as a forward pass takes. listen hears the share that is
    done, in [0, 1].
    """
    prompts = [scorer.prompt_ids(example.text) for example in examples]
    by_length = sorted(range(len(examples)), key=lambda i: len(prompts[i]))
    scores: list[list[float]] = [[] for _ in examples]
    first = 0
    while first < len(by_length):
        listen(first / len(by_length))
        longest = len(prompts[by_length[min(first + rows, len(by_length)) - 1]]) + scorer.added
        chosen = by_length[first : first + min(rows, scorer.at_a_time(longest))]
        first += len(chosen)
        batch = scorer.batch([examples[i] for i in chosen])
        with torch.no_grad():
            for i, row in zip(chosen, scorer.scores(batch).tolist(), strict=True):
                scores[i] = row
    return scores


def best(scores: Sequence[float]) -> int:
    """The option with the highest score; of equals, the first."""
    return max(range(len(scores)), key=scores.__getitem__)


def margin(scores: Sequence[float], label: int) -> float:
    """The score of the right option minus the best other one."""
    return scores[label] - max(s for i, s in enumerate(scores) if i != label)


def right(scores: Scores, examples: Sequence[Example]) -> list[bool]:
    """Whether the best option is the right one, row by row."""
    return [best(row) == example.label for row, example in zip(scores, examples, strict=True)]


def accuracy(scores: Scores, examples: Sequence[Example]) -> float:
    """The share of rows whose best option is the right one."""
    return sum(right(scores, examples)) / len(examples)


def cross_entropy(scores: Scores, examples: Sequence[Example]) -> float:
    """The mean negative log-probability of the right option among the options."""
    labels = torch.tensor([example.label for example in examples])
    return float(torch.nn.functional.cross_entropy(torch.tensor(scores), labels))
