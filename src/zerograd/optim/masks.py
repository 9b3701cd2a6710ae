"""Directions on a part of the weights of each matrix; vectors are whole.

A matrix is whole too where the size of its weights chooses none: one whose quantile is 0, and for the static mask one
that is all zero, as LoRA's B is when training begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from zerograd.directions import Dense, Source
from zerograd.optim.base import ZerothOrder
from zerograd.optim.method import Method, SharedSettings
from zerograd.settings.ranges import require_share
from zerograd.spaces import Space
from zerograd.update import Rule


class SmallWeights(Rule):
    """Plain SGD on the weights of a matrix with abs(w) <= threshold, evaluated at the current w; it modulates the
    directions.

    The threshold is a quantile taken at the start; where it is 0 every weight is trained, since one that moves off 0
    could not return.
    """

    def __init__(self, keep: float) -> None:
        require_share(keep, "keep", "weights")
        self.keep = keep
        self.threshold: dict[int, torch.Tensor] = {}

    def init(self, space: Space) -> dict[str, torch.Tensor]:
        if not self.applies(space):
            return {}
        sizes = space.exact().abs().flatten()
        quantile = sizes.kthvalue(max(1, round(self.keep * len(sizes)))).values.reshape(1)
        self.threshold[space.id] = torch.where(quantile == 0, torch.inf, quantile)
        return {"threshold": self.threshold[space.id]}

    def applies(self, space: Space) -> bool:
        return space.is_matrix

    def values(self, source: Source, space: Space, rows: torch.Tensor, columns: slice) -> torch.Tensor:
        return (space.exact(rows, columns).abs() <= self.threshold[space.id]).float()


@dataclass(frozen=True)
class SparseSettings(SharedSettings):
    """keep: share of a matrix's weights that the threshold lets through at the start, above 0 and at most 1; the
    paper's are .2 to .25 (its sparsity is 1 - keep).
    """

    keep: float = 0.25

    def build(self) -> Method:
        small = SmallWeights(self.keep)
        return Method(Dense(self.distribution, modulation=small), self.query(), small)


class SparseMeZO(ZerothOrder):
    r"""MeZO on the small weights of each matrix (Liu et al. 2024, arXiv 2402.15751); h is a quantile as training
    begins.

    .. math:: D = s \odot z \odot 1[|w| \le h], \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, c D
    """

    Settings = SparseSettings
    default_lr = 0.03


class ChosenWeights(Rule):
    """Plain SGD on the weights of a matrix with the largest sensitivity, ties to the first; it modulates the
    directions.

    sensitivity: by the tensor's name; None for the weights' own size, by which a matrix of zeros is whole.
    """

    def __init__(self, keep: float, sensitivity: Mapping[str, torch.Tensor] | None = None) -> None:
        require_share(keep, "keep", "weights")
        self.keep = keep
        self.sensitivity = sensitivity
        self.mask: dict[int, torch.Tensor] = {}

    def init(self, space: Space) -> dict[str, torch.Tensor]:
        if not self.applies(space):
            return {}
        given = space.exact().abs().view(space.shape) if self.sensitivity is None else self.sensitivity.get(space.name)
        if given is None or given.shape != space.shape:
            there = "nothing" if given is None else f"a tensor of shape {tuple(given.shape)}"
            raise ValueError(f"sensitivity has {there} for {space.name}; give one of shape {tuple(space.shape)}")
        order = given.flatten().sort(descending=True, stable=True).indices
        mask = torch.zeros(given.numel(), dtype=torch.bool, device=space.device)
        mask[order[: max(1, round(self.keep * len(order)))]] = True
        if self.sensitivity is None:
            mask |= ~given.any()
        self.mask[space.id] = mask.view(space.flat_rows, -1)
        return {"mask": self.mask[space.id]}

    def applies(self, space: Space) -> bool:
        return space.is_matrix

    def values(self, source: Source, space: Space, rows: torch.Tensor, columns: slice) -> torch.Tensor:
        return self.mask[space.id][rows, columns].float()


@dataclass(frozen=True)
class StaticSettings(SharedSettings):
    """keep: share of a matrix's weights, above 0 and at most 1; SensZOQ's is .001. sensitivity: by name, of each
    matrix's shape: the largest are kept, squared gradients on a calibration text in SensZOQ; None for the weights' own
    size. It is in snapshots, and no journal can hold it.
    """

    keep: float = 0.001
    sensitivity: Mapping[str, torch.Tensor] | None = None

    def build(self) -> Method:
        chosen = ChosenWeights(self.keep, self.sensitivity)
        return Method(Dense(self.distribution, modulation=chosen), self.query(), chosen)


class StaticMask(ZerothOrder):
    r"""MeZO on a few weights of each matrix, chosen once, in the manner of SensZOQ (Guo et al., ICLR 2025, arXiv
    2406.02913).

    .. math:: D = s \odot z \odot M, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, c D
    """

    Settings = StaticSettings
    default_lr = 0.2
