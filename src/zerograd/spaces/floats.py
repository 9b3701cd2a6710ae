"""The three spaces of floating-point tensors.

float32   the parameter is float32 and is updated in place
split     the parameter holds the nearest bfloat16, an int16 remainder beside it makes it float32 exactly;
          the forward pass reads the 16-bit half
bfloat16  the parameter alone, updated with stochastic rounding: unbiased, but a walk
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from zerograd import noise
from zerograd.noise import Address
from zerograd.noise.reference import PerturbRows
from zerograd.spaces.base import ALL, Rows, Space


class Floats(Space):
    """Values that are floats, or halves of them, so that the noise kernels read and write them in one pass."""

    takes: ClassVar[tuple[torch.dtype, ...]]
    """Dtypes of parameters that can be brought into this storage."""

    remainder: torch.Tensor | None = None

    @classmethod
    def require_storable(cls, name: str, parameter: nn.Parameter) -> None:
        if parameter.dtype not in cls.takes:
            dtypes = " or ".join(str(dtype).removeprefix("torch.") for dtype in cls.takes)
            raise ValueError(
                f"{name} is {parameter.dtype}, which precision {cls.precision!r} cannot hold; load the model in {dtypes}"
            )

    def exact(self, rows: Rows = ALL, columns: slice = ALL) -> torch.Tensor:
        return noise.to_float(*self.kernel_storage(rows, columns))

    def store(self, rows: slice, values: torch.Tensor, rounding: Address) -> None:
        weight, remainder = self.kernel_storage(rows)
        noise.store(weight, remainder, values, self._numbers(rows), self._rounding(rounding))

    def stored(self) -> dict[str, torch.Tensor]:
        tensors = {"": self.parameter.detach()}
        return tensors if self.remainder is None else tensors | {".remainder": self.remainder}

    def kernel_storage(self, rows: Rows = ALL, columns: slice = ALL) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight = self.weight()[rows, columns]
        if self.remainder is None:
            return weight, None
        return weight, self.remainder.view(self.flat_rows, self.view[2])[rows, columns]

    def perturber(self, distribution: str, address: Address, rows: slice, columns: slice) -> PerturbRows:
        weight, remainder = self.kernel_storage(rows, columns)
        first = columns.indices(self.view[2])[0]
        made: PerturbRows = noise.backend(weight).perturber(weight, remainder, distribution, address, rows.start, first)
        return made

    def perturbed_rows(
        self, distribution: str, address: Address, coefficient: float, rows: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        weight, remainder = self.kernel_storage(rows)
        made = torch.empty_like(weight, dtype=dtype)
        noise.backend(weight).perturb([made], [coefficient], weight, remainder, distribution, address, rows, 0)
        return made

    def subtract_noise(
        self, distribution: str, addresses: Sequence[Address], multipliers: Sequence[float], decay: float, rounding: Address
    ) -> None:
        weight, remainder = self.kernel_storage()
        noise.backend(weight).update(weight, remainder, distribution, addresses, multipliers, decay, self._rounding(rounding))

    def subtract_products(self, rows: slice, left: torch.Tensor, right: torch.Tensor, decay: float, rounding: Address) -> None:
        weight, remainder = self.kernel_storage(rows)
        kernels = noise.backend(weight)
        kernels.update_low_rank(weight, remainder, left, right, decay, self._rounding(rounding), rows.start)

    def _rounding(self, rounding: Address) -> Address | None:
        return rounding if self.rounds else None


class Float32(Floats):
    """The parameter itself, in float32."""

    precision = "float32"
    takes = (torch.float32,)


class Split(Floats):
    """The nearest bfloat16 in the parameter and an int16 remainder beside it: as exact as float32."""

    precision = "split"
    takes = (torch.float32, torch.bfloat16)

    def adopt(self) -> None:
        if self.parameter.dtype == torch.float32:
            self.parameter.data, self.remainder = noise.split(self.parameter.detach())
        else:
            self.remainder = torch.zeros(self.parameter.shape, dtype=torch.int16, device=self.parameter.device)


class Rounded(Floats):
    """A bfloat16 parameter alone; every stored value is rounded stochastically by noise with an address."""

    precision = "bfloat16"
    takes = (torch.float32, torch.bfloat16)
    rounds = True

    def adopt(self) -> None:
        self.parameter.data = self.parameter.detach().to(torch.bfloat16)
