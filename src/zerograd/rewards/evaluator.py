"""How a step is scored by rewards: every perturbed member answers the prompts in one batch, and functions score the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from zerograd.directions import Directions
from zerograd.errors import RewardFailed
from zerograd.evaluate.evaluator import Count, LocalBatch, Radii, not_counted
from zerograd.evaluate.micro_batch import MicroBatch, PeakBytes, is_out_of_memory
from zerograd.queries import Plan, Scores
from zerograd.queries.plan import clean
from zerograd.rewards.functions import Rewards, is_conversation
from zerograd.spaces import Space
from zerograd.text.generation import ROWS, Generator
from zerograd.text.sampling import Noise, Sampling

CHECKED_PROMPTS = 2
"""Prompts whose likelihood the checks before the first step look at."""

CHECKED_TOKENS = 16
"""The last tokens of such a prompt: the likelihoods of more, of all members at once, would take more memory than a generation."""


@dataclass(frozen=True)
class Prompt:
    """A row of data with its prompt's tokens. row: all columns, `prompt` among them: a text, or messages."""

    row: Mapping[str, Any]
    ids: Sequence[int]


@dataclass(frozen=True)
class ScoredAnswers:
    """Answers to prompts with what functions said of them: [prompt][answer].

    ids: tokens, the end token included. texts: without special tokens. totals: float32 (prompts, answers), NaN where all functions
    were left out. values: float32 (prompts, answers, functions). extra: columns of `log_extra`. metrics: means of `log_metric`.
    """

    ids: list[list[list[int]]]
    texts: list[list[str]]
    totals: torch.Tensor
    values: torch.Tensor
    extra: Mapping[str, list[Any]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(ids) for answers in self.ids for ids in answers)


class RewardObjective:
    """An objective for `step(objective, prompts)`: minus the reward of a member's answer.

    generator: makes the answers. tokenizer: reads them. rewards: score them. sampling: chooses their tokens. state: gives what
    functions take as `trainer_state`. in_background: score in a thread of its own. last: the answers of the step scored last.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Any,
        rewards: Rewards,
        sampling: Sampling,
        state: Callable[[], Any] = lambda: None,
        in_background: bool = False,
    ) -> None:
        self.generator, self.tokenizer, self.rewards, self.sampling, self.state = generator, tokenizer, rewards, sampling, state
        self.last: ScoredAnswers | None = None
        self._pool = ThreadPoolExecutor(1, "rewards") if in_background else None

    def evaluator(
        self,
        spaces: Sequence[Space],
        batch: Sequence[Prompt],
        *,
        examples: int | None = None,
        micro_batch: int | str | None = None,
        fit: MicroBatch | None = None,
        count: Count = not_counted,
    ) -> RewardBatch:
        """The evaluator of a step on prompts. Raises ValueError for none."""
        if not batch:
            raise ValueError("the batch has 0 prompts; give it at least one")
        return RewardBatch(spaces, self, batch, micro_batch, fit or MicroBatch(), count)

    def plain(
        self, prompts: Sequence[Prompt], noise: Noise | None = None, listen: Callable[[float], None] = lambda done: None
    ) -> ScoredAnswers:
        """The answers of the model as it is, scored."""
        ids = self.generator.answers([prompt.ids for prompt in prompts], self.sampling, noise, listen=listen)
        return self.scored(prompts, [[one] for one in ids])

    def scored(self, prompts: Sequence[Prompt], ids: list[list[list[int]]]) -> ScoredAnswers:
        """Answers with the functions' rewards. ids: [prompt][answer]. Raises RewardFailed as `Rewards.score`."""
        each = len(ids[0])
        rows = [prompt.row for prompt in prompts for _ in range(each)]
        flat = [one for answers in ids for one in answers]
        texts = self.tokenizer.batch_decode(flat, skip_special_tokens=True)
        talks = is_conversation(prompts[0].row["prompt"])
        completions = [[{"role": "assistant", "content": text}] for text in texts] if talks else texts
        said = self.rewards.score(rows, completions, flat, self.state())
        values = said.values.view(len(prompts), each, -1)
        by_prompt = [texts[first : first + each] for first in range(0, len(texts), each)]
        return ScoredAnswers(ids, by_prompt, self.rewards.totals(values), values, said.extra, said.metrics)

    def submit(self, work: Callable[[], ScoredAnswers]) -> Callable[[], ScoredAnswers]:
        """Begin to score answers, beside other work where this is allowed. Returns how to wait for it."""
        if self._pool is None:
            done = work()
            return lambda: done
        return self._pool.submit(work).result


@dataclass
class RewardBatch:
    """Evaluates prompts by generation and rewards: an evaluator as `evaluate.evaluator.Evaluator`.

    spaces: all that are trained. micro_batch: prompts of a generation with all their members; "auto" for as many as fit in memory,
    None for ROWS answers. Checks never call a function: they look at the likelihood of the prompts.
    """

    spaces: Sequence[Space]
    objective: RewardObjective
    prompts: Sequence[Prompt]
    micro_batch: int | str | None = None
    fit: MicroBatch = field(default_factory=MicroBatch)
    count: Count = not_counted

    @property
    def examples(self) -> int:
        return len(self.prompts)

    def on(self, spaces: Sequence[Space]) -> RewardBatch:
        return replace(self, spaces=spaces, count=not_counted)

    def sample(self) -> tuple[RewardBatch, Plan]:
        raise TypeError("checks look at the likelihood of prompts; ask checked() for its evaluator")

    def checked(self) -> LocalBatch:
        """The evaluator of the likelihood of the first prompts' last tokens."""
        ids = [list(prompt.ids)[-CHECKED_TOKENS:] for prompt in self.prompts[:CHECKED_PROMPTS]]
        generator = self.objective.generator
        return LocalBatch.of(self.spaces, lambda batch: _prompt_losses(generator, batch), _padded(ids, self.objective.generator))

    def clean(self, directions: Directions) -> torch.Tensor:
        return self.scores(clean(self.examples), directions, {space.id: 0.0 for space in self.spaces}).values[0]

    def scores(self, plan: Plan, directions: Directions, radii: Radii) -> Scores:
        """Minus the rewards of a plan's answers; where an answer was left out, its direction's answers to the prompt are equal.

        Raises RewardFailed when all answers of the step were left out, and as `Rewards.score`.
        """
        return self.begin(plan, directions, radii)()

    def begin(self, plan: Plan, directions: Directions, radii: Radii) -> Callable[[], Scores]:
        """Make the answers now, and score them where the objective does. Returns how to wait for the scores."""
        self.count(plan.branches)
        active = [space for space in self.spaces if directions.is_active(space)]
        made = self._answers(plan, active, directions, radii)
        by_prompt = [[branch[i] for branch in made] for i in range(self.examples)]
        objective = self.objective
        waiting = objective.submit(lambda: objective.scored(self.prompts, by_prompt))

        def scores() -> Scores:
            objective.last = answers = waiting()
            return Scores(plan, -filled(answers.totals.T, plan))

        return scores

    def _answers(self, plan: Plan, spaces: Sequence[Space], directions: Directions, radii: Radii) -> list[list[list[int]]]:
        """The answers of a plan: [branch][prompt], as many prompts at a time as fit."""
        objective, ids = self.objective, [prompt.ids for prompt in self.prompts]
        longest = max(map(len, ids)) + objective.sampling.new_tokens

        def made(some: Sequence[int], sampling: Sampling) -> list[list[list[int]]]:
            return objective.generator.perturbed([ids[i] for i in some], sampling, plan, spaces, directions, radii, some)

        def held_by(count: int) -> int:
            order = sorted(range(self.examples), key=lambda i: -len(ids[i]))[:count]
            with PeakBytes() as live:
                made(order, replace(objective.sampling, new_tokens=2))
            grown = objective.generator.cache_bytes * (objective.sampling.new_tokens - 2) * plan.branches * count
            return int(live.peak + grown)

        elements = longest * plan.branches
        size = self.micro_batch if isinstance(self.micro_batch, int) else max(1, ROWS // plan.branches)
        if self.micro_batch == "auto":
            size = self.fit.examples(self.examples, elements, held_by)
        size = self.fit.limit(min(size, self.examples), elements)
        found: list[list[list[int]]] = [[[] for _ in ids] for _ in range(plan.branches)]
        by_length, start = sorted(range(self.examples), key=lambda i: len(ids[i])), 0
        while start < self.examples:
            some = by_length[start : start + size]
            try:
                answers = made(some, objective.sampling)
            except Exception as error:
                if len(some) == 1 or not is_out_of_memory(error):
                    raise
                size = self.fit.halve(len(some), elements)
                continue
            for branch, row in zip(found, answers, strict=True):
                for i, answer in zip(some, row, strict=True):
                    branch[i] = answer
            start += size
        return found


def in_numbers(answers: ScoredAnswers, names: Sequence[str]) -> dict[str, Any]:
    """A step's answers in numbers: each function's mean, tokens, and the share of prompts whose answers all score the same."""
    totals = answers.totals
    known = ~totals.isnan()
    flat = totals.masked_fill(~known, -math.inf).amax(1) <= totals.masked_fill(~known, math.inf).amin(1)
    means = {name: float(column.nanmean()) for name, column in zip(names, answers.values.flatten(0, 1).T, strict=True)}
    numbers = {f"reward/{name}": mean for name, mean in means.items() if not math.isnan(mean)}
    return numbers | {"tokens": answers.tokens, "flat_prompts": float(flat.float().mean())} | dict(answers.metrics)


def filled(values: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Rewards in which nothing is missing: (branches, prompts). Where a direction's answer was left out, all of its answers to that
    prompt have the mean of the prompt's others, so that they say nothing.

    Raises RewardFailed where no answer has a reward.
    """
    missing = values.isnan()
    if not bool(missing.any()):
        return values
    if bool(missing.all()):
        raise RewardFailed("every reward was None for all answers of a step; return a number for some of them")
    for direction in set(plan.direction.tolist()):
        same = plan.direction == direction
        missing[same] = missing[same].any(0)
    known = values.masked_fill(missing, math.nan)
    mean = known.nanmean(0)
    mean = mean.where(~mean.isnan(), values.nanmean())
    return torch.where(missing, mean, values)


def _padded(ids: Sequence[Sequence[int]], generator: Generator) -> dict[str, torch.Tensor]:
    width = max(map(len, ids))
    tokens = torch.tensor([[*one, *[generator.pad] * (width - len(one))] for one in ids], device=generator.device)
    seen = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ids], device=generator.device)
    return {"input_ids": tokens, "attention_mask": seen}


def _prompt_losses(generator: Generator, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(the sum of negative log-likelihoods of a prompt's tokens, their number): float32 (prompts,) each."""
    model, ids, seen = generator.model, batch["input_ids"], batch["attention_mask"]
    if generator.decoder:  # its own prompt is what the decoder says
        logits, targets = model(input_ids=ids, attention_mask=seen, decoder_input_ids=ids).logits[:, :-1], ids[:, 1:]
    else:
        logits, targets = model(input_ids=ids, attention_mask=seen).logits[:, -ids.shape[1] : -1], ids[:, 1:]
    likelihoods = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    counted = seen[:, 1:].float()
    return -(likelihoods * counted).sum(1), counted.sum(1)
