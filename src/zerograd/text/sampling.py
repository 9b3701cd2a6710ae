"""Which token comes next: the likeliest, or a sample whose noise has an address, so that it is drawn alike everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zerograd import noise
from zerograd.noise import SAMPLE, Address
from zerograd.settings.fields import require_at_least


@dataclass(frozen=True)
class Noise:
    """Where the noise of sampled answers comes from: the seed and the step of a run. Prompts and positions complete the address."""

    seed: int
    step: int

    def gumbel(self, numbers: Sequence[int], position: int, tokens: int, device: torch.device) -> torch.Tensor:
        """Standard Gumbel noise of prompts by their numbers, at a position of their answers: float32 (prompts, tokens)."""
        distinct = sorted(set(numbers))
        address = Address(self.seed, self.step, position, 0, SAMPLE)
        uniform = noise.uniform(address, torch.tensor(distinct, device=device), tokens)
        drawn = -(-uniform.log()).log().float()
        return drawn if distinct == list(numbers) else drawn[[distinct.index(number) for number in numbers]]


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen.

    new_tokens: the most tokens of an answer, at least 1. temperature: 0 for the likeliest token; above it a token is drawn with the
    probability that the softmax of logits / temperature gives it. top_k: only the k likeliest tokens are drawn; 0 for all. top_p:
    only the likeliest tokens that together have this probability; 1 for all.
    Raises ValueError for a number out of range.
    """

    new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require_at_least("new_tokens", self.new_tokens, 1)
        require_at_least("temperature", self.temperature, 0)
        require_at_least("top_k", self.top_k, 0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def chosen(self, logits: torch.Tensor, noise: Noise | None, numbers: Sequence[int], position: int) -> torch.Tensor:
        """Scores whose largest is the next token: float32 (rows, tokens). numbers: of the rows' prompts.

        The largest of logits / temperature plus Gumbel noise is an exact sample of their softmax.
        """
        if not self.temperature or noise is None:
            return logits
        scores = logits.float() / self.temperature
        if 0 < self.top_k < scores.shape[1]:
            least = scores.topk(self.top_k, dim=1).values[:, -1:]
            scores = scores.masked_fill(scores < least, -math.inf)
        if self.top_p < 1:
            ordered, places = scores.sort(dim=1, descending=True)
            before = ordered.softmax(1).cumsum(1) - ordered.softmax(1)  # the probability of the likelier tokens
            out = torch.zeros_like(before, dtype=torch.bool).scatter(1, places, before >= self.top_p)
            scores = scores.masked_fill(out, -math.inf)
        return scores + noise.gumbel(numbers, position, scores.shape[1], scores.device)
