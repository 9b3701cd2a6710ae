r"""ZO-Muon: the estimate in a subspace of rows, orthogonalised (2026, arXiv 2602.17155)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zerograd.directions import Directions
from zerograd.directions.subspace import OneSided
from zerograd.noise import exact
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, MethodSettings
from zerograd.queries.shared import shared
from zerograd.update import GroupStep, Kept, Rule, Target


class Orthogonalised(Rule):
    """The nearest matrix of orthonormal rows to each matrix's estimate; it keeps nothing."""

    def __init__(self, draw: OneSided) -> None:
        self.draw = draw

    def update(self, target: Target, kept: Kept, steps: Sequence[GroupStep]) -> None:
        for step in steps:
            if self.draw.rank_in(target.space):
                self._factored(target, target.directions(step.number), step)
            else:
                self._dense(target, target.directions(step.number), step)

    def _factored(self, target: Target, now: Directions, step: GroupStep) -> None:
        space, rank = target.space, self.draw.rank
        stack, rows, columns = space.view
        right = self.draw.right(now, space, range(len(step.coefficients))).view(-1, stack, rank, columns)
        estimate = torch.zeros(right.shape[1:], dtype=torch.float32, device=right.device)
        for c, u in zip(step.coefficients, right, strict=True):
            estimate.add_(u * c)
        made = torch.stack([exact.newton_schulz(part) for part in estimate])
        basis = self.draw.left_basis(now, space).view(stack, rank, rows)
        target.subtract_products(basis * math.sqrt(rows * columns / rank), made, step)

    def _dense(self, target: Target, now: Directions, step: GroupStep) -> None:
        space = target.space
        estimate = now.estimate(space, range(len(step.coefficients)), step.coefficients)(slice(0, space.flat_rows))
        flat = estimate.view(1, -1)
        norm = math.sqrt(float(exact.matmul(flat, flat.T)))
        target.subtract(estimate * (math.sqrt(flat.numel()) / norm if norm > 0 else 0.0), step)


@dataclass(frozen=True)
class Settings(MethodSettings):
    """rank: r >= 1; the paper's is 64. period: steps that P lasts; the paper's is 100. directions: n; the paper's is 4.
    sides: as in MeZO; the paper has one side. Directions are Gaussian.
    """

    rank: int = 64
    period: int = 100
    directions: int = 4
    sides: int = 1

    def build(self) -> Method:
        draw = OneSided("gaussian", self.rank, self.period)
        return Method(draw, shared(self.directions, self.sides), Orthogonalised(draw))


class ZOMuon(ZerothOrder):
    r"""Zeroth-order Muon in a random subspace of rows.

    .. math::
        G = \tfrac1n \sum_i c_i u_i, \qquad
        w \leftarrow (1 - \gamma \lambda) w - \gamma\, s \sqrt{mn / r}\; P\, \mathrm{NS}_5(G)

    P (m x r) is orthonormal, u_i (r x n) Gaussian, and NS5 five Newton-Schulz iterations with Muon's quintic. lr is the
    rms change of a weight, relative to its tensor's rms when relative: the published lr is sqrt(m n / r) times it.
    Vectors and matrices smaller than r have dense directions, whose estimate is normalised, which is the effect of NS5
    on a single row.
    """

    Settings = Settings
    default_lr = 0.01
