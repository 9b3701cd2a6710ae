"""Per-example directions: as many directions as examples for the two forwards of one.

Example b sees its own low-rank direction on both sides, so a batch of B examples estimates the gradient with B directions
instead of one; the error falls by (B + s) / (1 + s) with s the gradient noise scale.

    d_b = (l_b(w + eps Z_b) - l_b(w - eps Z_b)) / 2
    w <- w - lr * (1 / B) sum_b a_b Z_b,      a_b = d_b / std(d)   or   d_b / eps
    Z_b = (1 / sqrt r) sum_j a_bj b_bj^T

The forward is EGGROLL's (Sarkar et al. 2025, arXiv 2511.16652), the scaling GRZO's (EMNLP Findings 2026).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from zerograd import estimate
from zerograd.optim.base import ZerothOrder
from zerograd.perturb.directions import Family


class PerExample(ZerothOrder):
    r"""Two-point zeroth-order SGD with one low-rank direction an example.

    .. math::
        d_b = \tfrac12 (l_b(w + \epsilon D_b) - l_b(w - \epsilon D_b)), \qquad
        w \leftarrow (1 - \gamma \lambda) w - \frac{\gamma}{B} \sum_b \frac{d_b}{\operatorname{std}(d)} D_b

    Args:
        params: a module, (name, parameter) pairs, parameters, or torch's groups of these.
        lr: learning rate, at least 0. When standardised and relative it is the relative change of a weight per step,
            times sqrt(B).
        eps: smoothing radius, above 0.
        rank: of a matrix's direction, at least 1; vectors have dense directions.
        standardised: divide by the standard deviation of the differences (GRZO); False is the plain estimate.
        weight_decay, relative, distribution, storage, seed, self_check: as in `MeZO`.
    """

    per_example = True

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        rank: int = 1,
        standardised: bool = True,
        weight_decay: float = 0.0,
        relative: bool = True,
        distribution: str = "rademacher",
        storage: str | None = None,
        seed: int = 0,
        self_check: bool | str = True,
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank is {rank}; it must be at least 1")
        self.family = Family(distribution, rank)
        self.standardised = standardised
        super().__init__(
            params,
            lr=lr,
            eps=eps,
            weight_decay=weight_decay,
            relative=relative,
            storage=storage,
            seed=seed,
            self_check=self_check,
        )

    def multipliers(self, differences: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        shaped = estimate.standardise(differences) if self.standardised else differences / group["eps"]
        scale: float = group["lr"] / len(differences)
        return shaped * scale
