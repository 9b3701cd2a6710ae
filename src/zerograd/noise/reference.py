"""The pure-torch back end: the definition that every other back end is tested against, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from zerograd.noise.address import GAUSSIAN_BLOCK, RADEMACHER_BLOCK, Address, stream
from zerograd.noise.gaussian import quantiles

_MASK = 0xFFFFFFFF
_VALUES_AT_ONCE = 1 << 18


def philox(counter: Sequence[torch.Tensor], key: tuple[int, int]) -> list[torch.Tensor]:
    """Philox4x32-10 on four broadcastable int64 tensors of 32-bit words."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 products wrap; the 64 bits are right
        c0, c1 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK
        c2, c3 = ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return [c0, c1, c2, c3]


def words(address: Address, rows: torch.Tensor, first_block: int, blocks: int) -> torch.Tensor:
    """Stage two for the given rows and `blocks` column blocks: int64 of shape (rows, blocks, 4)."""
    k0, k1, k2, k3 = stream(address)
    block = torch.arange(first_block, first_block + blocks, device=rows.device)
    constant = [torch.tensor(k, device=rows.device) for k in (k2, k3)]
    return torch.stack(philox([block[None, :], rows[:, None], *constant], (k0, k1)), dim=-1)


def uniform(address: Address, rows: torch.Tensor, columns: int) -> torch.Tensor:
    """Numbers in (0, 1), odd multiples of 2^-33, of the given rows: float64 of shape (rows, columns). A word gives a number."""
    w = words(address, rows, 0, -(-columns // 4)).view(len(rows), -1)[:, :columns]
    return (w.double() + 0.5) * 2.0**-32


def rademacher(address: Address, rows: torch.Tensor, first: int, columns: int) -> torch.Tensor:
    """Signs -1 or +1 (bit 1 is -1) at columns first .. first + columns: float32 of shape (rows, columns)."""
    skip = first % RADEMACHER_BLOCK
    blocks = -(-(skip + columns) // RADEMACHER_BLOCK)
    w = words(address, rows, first // RADEMACHER_BLOCK, blocks)  # (rows, blocks, 4)
    bits = (w[..., None] >> torch.arange(32, device=w.device)) & 1  # (rows, blocks, 4, 32)
    return (1 - 2 * bits).float().view(len(rows), -1)[:, skip : skip + columns]


def gaussian(address: Address, rows: torch.Tensor, first: int, columns: int) -> torch.Tensor:
    """Standard normals at columns first .. first + columns: float32 of shape (rows, columns)."""
    skip = first % GAUSSIAN_BLOCK
    groups = -(-(skip + columns) // GAUSSIAN_BLOCK)
    w = words(address, rows, first // GAUSSIAN_BLOCK * 16, groups * 16)  # (rows, 16 groups, 4)
    w = w.view(len(rows), groups, 16, 4).transpose(2, 3).reshape(len(rows), -1)
    total = (w & 255) + ((w >> 8) & 255) + ((w >> 16) & 255) + (w >> 24)
    return quantiles().to(w.device)[total[:, skip : skip + columns]]


FAMILIES = {"rademacher": rademacher, "gaussian": gaussian}


def fill(out: torch.Tensor, family: str, address: Address, directions: Sequence[int], rows: torch.Tensor, first: int) -> None:
    """out[d] <- z of directions[d] at (rows, first .. first + columns). out: float32 (directions, rows, columns).

    The address's own direction is ignored.
    """
    for one, direction in zip(out, directions, strict=True):
        for i in _row_chunks(one):
            one[i] = FAMILIES[family](address._replace(direction=direction), rows[i], first, one.shape[1])


def perturb(
    outs: Sequence[torch.Tensor],
    coefficients: Sequence[float],
    weight: torch.Tensor,
    remainder: torch.Tensor | None,
    family: str,
    address: Address,
    rows: torch.Tensor,
    first: int,
) -> None:
    """outs[k] <- weight + coefficients[k] * z, formed in float32 and rounded once to the dtype of outs[k]."""
    for i in _row_chunks(weight):
        z = FAMILIES[family](address, rows[i], first, weight.shape[1])
        exact = to_float(weight[i], None if remainder is None else remainder[i])
        for out, coefficient in zip(outs, coefficients, strict=True):
            out[i] = (exact + z * coefficient).to(out.dtype)


PerturbRows = Callable[[Sequence[torch.Tensor], Sequence[float], int, int], None]


def perturber_by(run: Callable[..., None]) -> Callable[..., PerturbRows]:
    """The function perturber(weight, remainder, family, address, first_row, first) of a back end, by its `perturb`.

    perturber returns a function (outs, coefficients, start, stop) that perturbs rows start .. stop of the weight as
    `perturb` does. first_row, first: row and column in the address of the weight's first value.
    """

    def perturber(
        weight: torch.Tensor, remainder: torch.Tensor | None, family: str, address: Address, first_row: int, first: int
    ) -> PerturbRows:
        def perturb_rows(outs: Sequence[torch.Tensor], coefficients: Sequence[float], start: int, stop: int) -> None:
            low = None if remainder is None else remainder[start:stop]
            at = torch.arange(first_row + start, first_row + stop, device=weight.device)
            run(outs, coefficients, weight[start:stop], low, family, address, at, first)

        return perturb_rows

    return perturber


perturber = perturber_by(perturb)


def update(
    weight: torch.Tensor,
    remainder: torch.Tensor | None,
    family: str,
    addresses: Sequence[Address],
    multipliers: Sequence[float],
    decay: float,
    rounding: Address | None,
) -> None:
    """weight <- decay * weight - sum_i multipliers[i] * z_i, in order, by plain multiply and subtract in float32.

    weight: (rows, columns) float32, or 16-bit with an int16 remainder, or 16-bit with a rounding address.
    A decay of 1 and a multiplier of 0 leave every bit as it is.
    """
    rounded = torch.tensor(multipliers, dtype=torch.float32).tolist()
    for i in _row_chunks(weight):
        rows = torch.arange(weight.shape[0], device=weight.device)[i]
        exact = _decayed(weight, remainder, i, decay)
        for address, multiplier in zip(addresses, rounded, strict=True):
            if multiplier != 0:
                exact = exact - FAMILIES[family](address, rows, 0, weight.shape[1]) * multiplier
        store(weight[i], None if remainder is None else remainder[i], exact, rows, rounding)


def update_low_rank(
    weight: torch.Tensor,
    remainder: torch.Tensor | None,
    left: torch.Tensor,
    right: torch.Tensor,
    decay: float,
    rounding: Address | None,
    first_row: int,
) -> None:
    """weight <- decay * weight - sum_q left[q] right[q]^T, in order, each product rounded before it is subtracted.

    left: (q, rows) and right: (q, columns), float32. first_row: the row that the rounding noise counts from.
    A row of left that is all zero leaves every bit as it is.
    """
    used = left.ne(0).any(1).tolist()
    for i in _row_chunks(weight):
        rows = torch.arange(first_row, first_row + weight.shape[0], device=weight.device)[i]
        exact = _decayed(weight, remainder, i, decay)
        for q in range(left.shape[0]):
            if used[q]:
                exact = exact - left[q, i, None] * right[q]
        store(weight[i], None if remainder is None else remainder[i], exact, rows, rounding)


def to_float(weight: torch.Tensor, remainder: torch.Tensor | None) -> torch.Tensor:
    """The float32 value that a stored weight stands for; a remainder adds the 16 bits below a bfloat16."""
    if remainder is None:
        return weight.float()
    return ((weight.view(torch.int16).int() << 16) + remainder.int()).view(torch.float32)


def split(exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A float32 tensor as its nearest bfloat16 (ties away from zero) and the int16 remainder that makes it exact."""
    bits = exact.view(torch.int32)
    high = ((bits.long() + 0x8000) >> 16).to(torch.int16)
    return high.view(torch.bfloat16), (bits - (high.int() << 16)).to(torch.int16)


def stochastic_round(exact: torch.Tensor, rows: torch.Tensor, address: Address) -> torch.Tensor:
    """Round float32 of shape (rows, columns) to bfloat16, up with the probability of the discarded fraction.

    Sixteen bits decide each value: a stage-two word serves two neighbours, low half first.
    """
    columns = exact.shape[1]
    w = words(address, rows, 0, -(-columns // 8)).view(len(rows), -1)
    noise = torch.stack([w & 0xFFFF, w >> 16], dim=-1).view(len(rows), -1)[:, :columns]
    bits = exact.view(torch.int32).long() & _MASK
    return ((bits + noise) >> 16).to(torch.int16).view(torch.bfloat16)


def _decayed(weight: torch.Tensor, remainder: torch.Tensor | None, i: slice, decay: float) -> torch.Tensor:
    exact = to_float(weight[i], None if remainder is None else remainder[i])
    return exact if decay == 1 else exact * decay


def store(
    weight: torch.Tensor, remainder: torch.Tensor | None, exact: torch.Tensor, rows: torch.Tensor, rounding: Address | None
) -> None:
    """Store float32 values: as float32, in two halves, or rounded stochastically by the noise of their rows."""
    if remainder is not None:
        high, low = split(exact)
        weight.copy_(high)
        remainder.copy_(low)
    else:
        weight.copy_(exact if rounding is None else stochastic_round(exact, rows, rounding))


def _row_chunks(tensor: torch.Tensor) -> list[slice]:
    step = max(1, _VALUES_AT_ONCE // max(1, tensor.shape[1]))
    return [slice(i, min(i + step, tensor.shape[0])) for i in range(0, tensor.shape[0], step)]
