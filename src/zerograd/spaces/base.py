"""What a space is: one trained tensor, however it is stored.

A space gives the float32 values that are optimised, their perturbed copies, and takes changes. Nothing outside a space
knows how its values are stored. A subclass says `exact`, `store` and `stored`; the fused forms of the other methods are
optional.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import nn

from zerograd import noise
from zerograd.machine.interrupts import uninterrupted
from zerograd.noise import Address
from zerograd.noise.reference import PerturbRows

Rows = slice | torch.Tensor
"""Some flat rows of a space: a slice, or int64 (rows,)."""

ALL = slice(None)

CHUNK = 1 << 16
"""Values that the unfused methods hold at a time."""


class Space(ABC):
    """One trained tensor.

    id: its number in the run's table of tensors, a part of every noise address. name, aliases: its names in the model.
    parameter: the tensor that the model's operations read. view: (stack, rows, columns), the shape that noise and
    low-rank factors have: (1, 1, n) for a vector, (1, m, n) for a matrix, (experts, m, n) for stacked matrices, the
    output channels as rows for a convolution. Flat rows are the stack * rows of all matrices. scale: the length of a
    unit of direction in this tensor: 1, or the tensor's rms.
    """

    precision: ClassVar[str]
    """Its name in settings and in journals."""

    rounds: ClassVar[bool] = False
    """Whether storing a value rounds it, at random or not, so that two steps cannot share a pass over the tensor."""

    def __init__(self, id: int, name: str, parameter: nn.Parameter, view: tuple[int, int, int]) -> None:
        self.id = id
        self.name = name
        self.aliases: tuple[str, ...] = ()
        self.parameter = parameter
        self.view = view
        self.scale = 1.0

    @classmethod
    def require_storable(cls, name: str, parameter: nn.Parameter) -> None:
        """Raises ValueError for a parameter that this space cannot hold."""
        return

    def adopt(self) -> None:
        """Bring the parameter into this storage, once every parameter has been found storable."""
        return

    @abstractmethod
    def exact(self, rows: Rows = ALL, columns: slice = ALL) -> torch.Tensor:
        """The values that are optimised: float32 (rows, columns). It may be a view; it is not written to."""

    @abstractmethod
    def store(self, rows: slice, values: torch.Tensor, rounding: Address) -> None:
        """Take new values of some flat rows, float32 (rows, columns). rounding: the address of the noise that may round
        them.

        Values that `exact` gave are stored as the bits that they came from.
        """

    @abstractmethod
    def stored(self) -> dict[str, torch.Tensor]:
        """Every tensor that `store` writes, by a suffix of the name; the parameter's own data has the suffix ""."""

    def weight(self, rows: Rows = ALL) -> torch.Tensor:
        """Unperturbed flat rows as the model's operations read them: (rows, columns), a view where rows is a slice."""
        return self.parameter.detach().view(self.flat_rows, self.view[2])[rows]

    def kernel_storage(self, rows: Rows = ALL, columns: slice = ALL) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """(weight, remainder) of some flat rows, for fused kernels that read floats; None where they cannot."""
        return None

    def perturber(self, distribution: str, address: Address, rows: slice, columns: slice) -> PerturbRows:
        """A function (outs, coefficients, start, stop): outs[k] <- W + coefficients[k] z, of rows start .. stop of
        `rows`.
        """
        first = columns.indices(self.view[2])[0]

        def perturb(outs: Sequence[torch.Tensor], coefficients: Sequence[float], start: int, stop: int) -> None:
            within = slice(rows.start + start, rows.start + stop)
            exact = self.exact(within, columns)
            z = drawn(distribution, address, self._numbers(within), first, exact.shape[1])
            for out, coefficient in zip(outs, coefficients, strict=True):
                out.copy_(exact + z * coefficient)

        return perturb

    def perturbed_rows(
        self, distribution: str, address: Address, coefficient: float, rows: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """W + coefficient z of some flat rows: (rows, columns) of a dtype. rows: int64 (rows,)."""
        z = drawn(distribution, address, rows, 0, self.view[2])
        return (self.exact(rows) + z * coefficient).to(dtype)

    def subtract(self, rows: slice, change: torch.Tensor, decay: float, rounding: Address) -> None:
        """w <- decay w - change for some flat rows. change: float32 (rows, columns); 0 leaves a value's bits."""
        exact = self.exact(rows)
        exact = exact if decay == 1 else exact * decay
        self.store(rows, torch.where(change == 0, exact, exact - change), rounding)  # a change of 0 leaves -0.0

    def subtract_noise(
        self, distribution: str, addresses: Sequence[Address], multipliers: Sequence[float], decay: float, rounding: Address
    ) -> None:
        """w <- decay w - sum_i multipliers[i] z_i, in order, by plain float32 multiply and subtract."""
        rounded = torch.tensor(multipliers, dtype=torch.float32).tolist()
        for rows in self.chunks():
            exact = self.exact(rows)
            exact = exact if decay == 1 else exact * decay
            for address, multiplier in zip(addresses, rounded, strict=True):
                if multiplier != 0:
                    exact = exact - drawn(distribution, address, self._numbers(rows), 0, self.view[2]) * multiplier
            self.store(rows, exact, rounding)

    def subtract_products(self, rows: slice, left: torch.Tensor, right: torch.Tensor, decay: float, rounding: Address) -> None:
        """w <- decay w - sum_q left_q right_q^T of flat rows that lie in one matrix, each product rounded before it is
        subtracted.

        left: float32 (q, rows). right: float32 (q, columns).
        """
        exact = self.exact(rows)
        exact = exact if decay == 1 else exact * decay
        for a, b in zip(left, right, strict=True):
            if a.any():
                exact = exact - a[:, None] * b
        self.store(rows, exact, rounding)

    @contextlib.contextmanager
    def shown(self, values: torch.Tensor) -> Iterator[None]:
        """While the block runs, the parameter holds these values, rounded to its dtype: float32 (stack * rows, columns).

        Its bits are put back whatever ends the block.
        """
        data = self.parameter.data
        before = data.clone()
        try:
            data.copy_(values.view(data.shape))
            yield
        finally:
            with uninterrupted():
                self.parameter.data = data  # a forward may have put other data there
                data.copy_(before)

    def saved(self) -> dict[str, torch.Tensor]:
        """The stored tensors that the model does not hold: what must be saved beside its parameters."""
        return {suffix: tensor for suffix, tensor in self.stored().items() if suffix}

    def zeros(self) -> torch.Tensor:
        """A float32 tensor of the flat shape, (stack * rows, columns), of zeros."""
        return torch.zeros(self.flat_rows, self.view[2], dtype=torch.float32, device=self.device)

    def chunks(self) -> list[slice]:
        """The flat rows in parts of about CHUNK values."""
        each = max(1, CHUNK // self.view[2])
        return [slice(first, min(first + each, self.flat_rows)) for first in range(0, self.flat_rows, each)]

    def set_scale(self, relative: bool) -> None:
        """A unit of direction is the tensor's rms when relative, else 1; or what the parameter gives as its own `unit`.

        A tensor of zeros has no rms: it takes 1 / sqrt(columns) as a matrix and 0.02 as a vector, the usual initial
        scales, so that LoRA's B and fresh biases move.
        """
        own: float | None = getattr(self.parameter, "unit", None)
        self.scale = 1.0 if own is None else own
        if relative and own is None:
            rms = math.sqrt(float(self.exact().square().mean(dtype=torch.float64)))
            fallback = 1 / math.sqrt(self.view[2]) if self.is_matrix else 0.02
            self.scale = float(torch.tensor(rms or fallback, dtype=torch.float32))

    @property
    def is_matrix(self) -> bool:
        """Whether a low-rank direction of this tensor has factors; a vector's direction is dense."""
        return self.view[1] > 1

    @property
    def flat_rows(self) -> int:
        """Rows of all matrices of the stack."""
        return self.view[0] * self.view[1]

    @property
    def numel(self) -> int:
        """Values that are trained."""
        return self.flat_rows * self.view[2]

    @property
    def multiplied(self) -> int:
        """Weights that a pass multiplies with; a parameter may stand for more than it has values, as its `multiplies` says."""
        return self.numel * int(getattr(self.parameter, "multiplies", 1))

    @property
    def nbytes(self) -> int:
        """Bytes of every stored tensor."""
        return sum(tensor.nbytes for tensor in self.stored().values())

    @property
    def shape(self) -> torch.Size:
        """The shape that the model sees."""
        return self.parameter.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model's operations read."""
        return self.parameter.dtype

    @property
    def read_as(self) -> torch.dtype:
        """The dtype in which its values meet activations: the parameter's own, unless it says another as its `read_as`."""
        found: torch.dtype = getattr(self.parameter, "read_as", self.parameter.dtype)
        return found

    @property
    def device(self) -> torch.device:
        return self.parameter.device

    def _numbers(self, rows: slice) -> torch.Tensor:
        return torch.arange(rows.start, rows.stop, device=self.device)


def drawn(distribution: str, address: Address, rows: torch.Tensor, first: int, columns: int) -> torch.Tensor:
    """z of one direction at some rows and columns: float32 (rows, columns)."""
    out = torch.empty(1, len(rows), columns, dtype=torch.float32, device=rows.device)
    noise.backend(out).fill(out, distribution, address, [address.direction], rows, first)
    return out[0]
