r"""Directions on a part of the weights.

    Sparse-MeZO (Liu et al. 2024, arXiv 2402.15751)      z_j kept where |w_j| <= h, h a quantile of each matrix as training begins
    a static mask, in the manner of SensZOQ (Guo et al., ICLR 2025, arXiv 2406.02913)
                                                         z_j kept where a matrix is most sensitive, in the same places always

SensZOQ's sensitivity is the squared gradient on a calibration text; where none is given, the largest weights are taken. Vectors are
whole in both, and so is a matrix whose weights' size chooses none of them: one whose quantile is 0, and in the mask one that is all
zero, as LoRA's B is when training begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import nn

from zerograd import noise
from zerograd.directions.family import Directions, Family
from zerograd.optim.base import Common
from zerograd.optim.shared import Plain
from zerograd.spaces.weights import Slot
from zerograd.update.state import State


def _require_share(keep: float) -> None:
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}; it is a share of weights, above 0 and at most 1")


class Small(State):
    """The weights of a matrix that are at most its quantile in size, as they are when they are looked at; all of them where the
    quantile is 0: what has moved would not come back. Keeps the quantiles, and is the shape of directions."""

    def __init__(self, keep: float) -> None:
        _require_share(keep)
        super().__init__()
        self.keep = keep

    def begin(self, slots: Sequence[Slot], groups: int) -> None:
        for slot in filter(self.applies, slots):
            sizes = slot.exact().abs().flatten()
            quantile = sizes.kthvalue(max(1, round(self.keep * len(sizes)))).values.reshape(1)
            self.tensors[slot.name] = torch.where(quantile == 0, torch.inf, quantile)

    def applies(self, slot: Slot) -> bool:
        return slot.is_matrix

    def values(self, directions: Directions, slot: Slot, rows: torch.Tensor, columns: slice) -> torch.Tensor:
        low = None if slot.flat_remainder is None else slot.flat_remainder[rows, columns]
        return (noise.to_float(slot.flat[rows, columns], low).abs() <= self.tensors[slot.name]).float()


class SparseMeZO(Plain):
    r"""MeZO on the small weights of each matrix.

    .. math:: D = s \odot z \odot 1[|w| \le h], \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, c D

    Args:
        keep: share of a matrix's weights that h lets through when training begins, above 0 and at most 1; the paper's are .2 to .25
            (its sparsity is 1 - keep).
        params, lr, eps, directions, sides, distribution and the rest: as in `MeZO`.
    """

    RATE = 0.03

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        keep: float = 0.25,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution, "keep": keep}
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        small = Small(chosen["keep"])
        return Family(chosen["distribution"], shape=small), small


class Chosen(State):
    """Places of each matrix, those of the largest sensitivity, ties to the first; all of a matrix of zeros whose own size it is by.
    Keeps them, and is the shape of directions."""

    def __init__(self, keep: float, sensitivity: Mapping[str, torch.Tensor] | None = None) -> None:
        _require_share(keep)
        super().__init__()
        self.keep = keep
        self.sensitivity = sensitivity

    def begin(self, slots: Sequence[Slot], groups: int) -> None:
        for slot in filter(self.applies, slots):
            given = slot.exact().abs() if self.sensitivity is None else self.sensitivity.get(slot.name)
            if given is None or given.shape != slot.parameter.shape:
                there = "nothing" if given is None else f"a tensor of shape {tuple(given.shape)}"
                raise ValueError(f"sensitivity has {there} for {slot.name}; give one of shape {tuple(slot.parameter.shape)}")
            order = given.flatten().sort(descending=True, stable=True).indices
            mask = torch.zeros(given.numel(), dtype=torch.bool, device=slot.flat.device)
            mask[order[: max(1, round(self.keep * len(order)))]] = True
            if self.sensitivity is None:
                mask |= ~given.any()
            self.tensors[slot.name] = mask.view(slot.flat.shape)

    def applies(self, slot: Slot) -> bool:
        return slot.is_matrix

    def values(self, directions: Directions, slot: Slot, rows: torch.Tensor, columns: slice) -> torch.Tensor:
        return self.tensors[slot.name][rows, columns].float()


class StaticMask(Plain):
    r"""MeZO on a few weights of each matrix, chosen once.

    .. math:: D = s \odot z \odot M, \qquad w \leftarrow (1 - \gamma \lambda) w - \gamma\, c D

    Args:
        keep: share of a matrix's weights, above 0 and at most 1; SensZOQ's is .001.
        sensitivity: by name, of each matrix's shape: the largest are kept, squared gradients in SensZOQ. None for the weights' own
            size. It is in snapshots, and no journal can hold it.
        params, lr, eps, directions, sides, distribution and the rest: as in `MeZO`.
    """

    RATE = 0.2

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        eps: float = 1e-2,
        *,
        keep: float = 0.001,
        sensitivity: Mapping[str, torch.Tensor] | None = None,
        directions: int = 1,
        sides: int = 2,
        distribution: str = "rademacher",
        **common: Unpack[Common],
    ) -> None:
        chosen = {"distribution": distribution, "keep": keep} | ({} if sensitivity is None else {"sensitivity": sensitivity})
        super().__init__(params, chosen, lr=lr, eps=eps, directions=directions, sides=sides, **common)

    @classmethod
    def parts(cls, **chosen: Any) -> tuple[Family, State]:
        places = Chosen(chosen["keep"], chosen.get("sensitivity"))
        return Family(chosen["distribution"], shape=places), places
