"""Float32 split into two halves of 16 bits, and stochastic rounding to bfloat16."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.noise.tensors import AT, addresses, finite, same
from zerograd.noise import ROUNDING, reference, split, to_float


@given(st.lists(finite, min_size=1, max_size=50))
def test_split_and_back_is_bitwise_for_any_finite_float32(patterns):
    exact = torch.tensor(patterns).to(torch.int32).view(torch.float32)
    high, remainder = split(exact)
    assert (high.dtype, remainder.dtype) == (torch.bfloat16, torch.int16)
    assert same(to_float(high, remainder), exact)


@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=50))
def test_the_16_bit_half_of_a_split_is_a_nearest_bfloat16(values):
    exact = torch.tensor(values, dtype=torch.float32)
    high = split(exact)[0]
    error = (high.double() - exact.double()).abs()
    assert torch.equal(error, (exact.bfloat16().double() - exact.double()).abs())


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=50), addresses)
def test_stochastic_rounding_leaves_bfloat16_values_alone(values, at):
    exact = torch.tensor(values, dtype=torch.float32).bfloat16().float().view(1, -1)
    assert same(reference.stochastic_round(exact, torch.zeros(1, dtype=torch.int64), at).float(), exact)


@pytest.mark.parametrize("fraction", [2**-16, 0.01, 0.25, 0.5, 0.9, 1 - 2**-16])
@pytest.mark.parametrize("sign", [1, -1])
def test_stochastic_rounding_is_unbiased_and_hits_only_the_two_neighbours(fraction, sign):
    ulp, low = 2.0**-7, 1.0 + 5 * 2.0**-7
    value = sign * torch.tensor(low + fraction * ulp, dtype=torch.float32)
    exact = value.repeat(200, 2000)
    rounded = reference.stochastic_round(exact, torch.arange(200), AT._replace(domain=ROUNDING)).double() * sign
    assert set(rounded.unique().tolist()) <= {low, low + ulp}
    probability = float(value * sign - low) / ulp  # of rounding away from zero
    away = float((rounded > low).double().mean())
    assert abs(away - probability) < 4.5 * (probability * (1 - probability) / exact.numel()) ** 0.5


def test_stochastic_rounding_of_neighbours_is_independent():
    exact = torch.full((400, 1000), 1 + 2.0**-8)  # half way
    up = reference.stochastic_round(exact, torch.arange(400), AT._replace(domain=ROUNDING)).double().sub(exact).sign()
    for a, b in ((up[:, 1:], up[:, :-1]), (up[1:], up[:-1]), (up[:, 2:], up[:, :-2])):
        assert abs(float((a * b).mean())) < 4.5 / a.numel() ** 0.5
