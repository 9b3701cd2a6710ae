"""How much a reward tells: its spread over members and prompts against what a direction changes for all prompts alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zerograd.directions import Directions
from zerograd.queries.plan import shared_pairs
from zerograd.rewards.evaluator import Prompt, RewardObjective
from zerograd.spaces import Space

DIRECTIONS = 4
"""Directions that are measured, from both sides, on every prompt."""


@dataclass(frozen=True)
class Signal:
    """What answers to the same prompts along the same directions say.

    mean: reward of an answer. spread: the standard deviation of half the difference of a pair. signal: the root mean square, over
    directions, of what remains of its mean over prompts when the noise of that mean is taken off; 0 where nothing remains.
    flat: the share of prompts whose answers all score the same. answers: that were made.
    """

    mean: float
    spread: float
    signal: float
    flat: float
    answers: int

    @property
    def needed(self) -> float:
        """Answers a step whose noise is as large as the signal along a direction; infinite where no signal was seen."""
        return 2 * (self.spread / self.signal) ** 2 if self.signal else math.inf


def measured(
    objective: RewardObjective,
    spaces: Sequence[Space],
    prompts: Sequence[Prompt],
    directions: Directions,
    radii: Mapping[int, float],
) -> Signal:
    """The signal of a reward on prompts, at least 2, by DIRECTIONS shared directions. Nothing is trained."""
    plan = shared_pairs(len(prompts), DIRECTIONS)
    scores = objective.evaluator(spaces, prompts).scores(plan, directions, radii).values
    plus, minus = scores.chunk(2)
    differences = (plus - minus) / 2  # (directions, prompts)
    variance = float(differences.var(1).mean())
    squared = float(differences.mean(1).square().mean()) - variance / len(prompts)
    flat = float((scores == scores[0]).all(0).float().mean())
    return Signal(-float(scores.mean()), math.sqrt(variance), math.sqrt(max(0.0, squared)), flat, scores.numel())
