r"""Evolution strategies on rewards: antithetic low-rank members, a fitness that is shaped, and decay towards the base.

Members of a prompt's own are EGGROLL's (Sarkar et al. 2025, arXiv 2511.16652), members that all prompts share those of ES at Scale
(Qiu et al., ICML 2026). Two signs on the same prompt need no baseline. Decay towards the base is Anchored Weight Decay
(arXiv 2605.30148).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from zerograd.directions import LowRank
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries.fitness import Fitness
from zerograd.spaces import Space
from zerograd.update import Chunk, Elementwise, GroupStep, Kept, Rule


class Anchored(Elementwise):
    """Plain SGD with decay towards the weights before the first step, which it keeps in the dtype that the model reads."""

    def __init__(self, anchor: float) -> None:
        if not (math.isfinite(anchor) and anchor >= 0):
            raise ValueError(f"anchor is {anchor}; it must be a number of at least 0")
        self.anchor = anchor

    def init(self, space: Space) -> dict[str, torch.Tensor]:
        return {"anchor": space.exact().to(space.read_as, copy=True)}

    def change(self, chunk: Chunk, kept: Kept, step: GroupStep) -> torch.Tensor:
        space = chunk.target.space
        away = space.exact(chunk.rows) - kept["anchor"].float()
        return away.mul_(torch.tensor(self.anchor / space.scale, dtype=torch.float32)).add_(chunk.estimate())


@dataclass(frozen=True)
class Settings(MethodSettings):
    """directions: n of each prompt, or of all; with one side at least 2. sides: 2 for both signs of a direction on the same
    prompt, 1 for members that are compared with the others of their prompt. shared: the members answer all prompts of a step.
    shaping: of the rewards, "z-score", "ranks" or "plain". anchor: the decay towards the base is lr times this. rank: of a
    matrix's direction. distribution: "rademacher" or "gaussian".
    """

    directions: int = 2
    sides: int = 2
    shared: bool = False
    shaping: str = "z-score"
    anchor: float = 0.0
    rank: int = 1
    distribution: str = "rademacher"

    def build(self) -> Method:
        query = Fitness(self.shaping, self.directions, self.sides, self.shared)
        anchored = Anchored(self.anchor)  # refuses a wrong one
        return Method(LowRank(self.distribution, self.rank), query, anchored if self.anchor else Rule())


class Evolution(ZerothOrder):
    r"""Evolution strategies with low-rank directions; f is the shaped score, the negative reward.

    .. math::
        d_{bi} = \tfrac12 (f_b(w + \epsilon D_{bi}) - f_b(w - \epsilon D_{bi})), \qquad
        w \leftarrow w - \gamma \lambda_0 (w - w_0) - \frac{\gamma}{n B} \sum_{b,i} d_{bi} D_{bi}, \qquad
        D = s \odot \tfrac{1}{\sqrt r} \sum_j a_j b_j^\top
    """

    Settings = Settings
    default_lr = 0.16
