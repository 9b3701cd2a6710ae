"""Blocks decode to the bits of GGUF's own library, by torch and by Numba, and weights are packed to its bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from tests.quantised.tiny import ALL, random_rows
from zerograd.quantised import encode, matrix
from zerograd.quantised.formats import FORMATS, K

ROWS, COLUMNS = 7, 512


def library(rows: torch.Tensor, name: str) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(rows.numpy(), gguf.GGMLQuantizationType[name]))


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.int32 if values.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("name", ALL)
def test_a_format_has_the_number_and_the_sizes_of_the_library(name: str) -> None:
    kind, format = gguf.GGMLQuantizationType[name], FORMATS[name]
    assert (format.type, (format.weights, format.bytes)) == (kind.value, gguf.GGML_QUANT_SIZES[kind])


@pytest.mark.parametrize("name", ALL)
def test_rows_decode_to_the_bits_of_the_library(name: str) -> None:
    format = FORMATS[name]
    rows = random_rows(format, ROWS, COLUMNS)
    expected = library(rows, name)
    assert torch.equal(bits(format.unpacked(rows)), bits(expected))
    assert torch.equal(bits(matrix.unpacked(rows, format, torch.float32)), bits(expected))
    assert torch.equal(bits(matrix.unpacked(rows, format, torch.bfloat16)), bits(expected.bfloat16()))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_chunk_for_several_gains_has_the_bits_of_each_alone(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    format = FORMATS[name]
    rows = random_rows(format, ROWS, COLUMNS)
    gains = torch.randn(3, ROWS, COLUMNS // format.weights) * 0.1
    expected = (library(rows, name).view(1, ROWS, -1, format.weights) * (1 + gains)[..., None]).flatten(2).to(dtype)
    for backend in ("numba", "torch"):
        if backend == "torch":
            monkeypatch.setattr(matrix.noise, "is_fast", lambda *tensors: False)
        outs = torch.empty(3, ROWS, COLUMNS, dtype=dtype)
        matrix.unpack_into(outs, rows, format, gains, dtype == torch.bfloat16)
        assert torch.equal(bits(outs), bits(expected)), backend
    wide = torch.empty(3, ROWS, COLUMNS)
    monkeypatch.undo()
    matrix.unpack_into(wide, rows, format, gains, True)
    assert torch.equal(wide, expected.bfloat16().float())


@pytest.mark.parametrize("name", ["Q4_1", "Q6_K"])
def test_scales_that_are_zero_infinite_or_nan_decode_as_in_the_library(name: str) -> None:
    format = FORMATS[name]
    rows = random_rows(format, 4, COLUMNS)
    odd = torch.tensor([0.0, -0.0, float("inf"), float("nan")], dtype=torch.float16)
    format.blocks(rows)[:, 0, format.scales[0] : format.scales[0] + 2] = odd.view(4, 1).view(torch.uint8)
    with np.errstate(invalid="ignore"):
        expected = library(rows, name)
    for made in (format.unpacked(rows), matrix.unpacked(rows, format, torch.float32)):
        assert torch.equal(made.isnan(), expected.isnan())
        assert torch.equal(bits(made.nan_to_num(7.0)), bits(expected.nan_to_num(7.0)))


@pytest.mark.parametrize("name", ALL)
def test_scaled_blocks_differ_in_their_scales_alone_and_a_factor_of_one_leaves_every_byte(name: str) -> None:
    format = FORMATS[name]
    rows = random_rows(format, ROWS, COLUMNS)
    factors = 1 + torch.randn(ROWS, COLUMNS // format.weights) * 0.1
    factors[0] = 1
    made = format.scaled(rows, factors)
    assert torch.equal(made[0], rows[0])
    kept = [i for i in range(format.bytes) if not any(at <= i < at + 2 for at in format.scales)]
    assert torch.equal(format.blocks(made)[..., kept], format.blocks(rows)[..., kept])
    for which in range(len(format.scales)):
        assert torch.equal(format.scale(made, which), (format.scale(rows, which).float() * factors).half())


def test_a_scale_that_is_not_finite_stays_as_it_is() -> None:
    format = FORMATS["Q4_0"]
    rows = random_rows(format, 3, 64)
    odd = torch.tensor([float("inf"), -float("inf"), float("nan")], dtype=torch.float16)
    format.blocks(rows)[:, 0, :2] = odd.view(3, 1).view(torch.uint8)
    assert torch.equal(format.scaled(rows, torch.full((3, 2), 1.5))[:, :18], rows[:, :18])


@pytest.mark.parametrize("name", encode.WRITABLE)
def test_weights_are_packed_to_the_bytes_of_the_library(name: str) -> None:
    torch.manual_seed(0)
    weights = torch.randn(33, 320) * 0.1
    weights[3, :32], weights[4, :32], weights[5, :32] = 0, 0.5, -0.25
    expected = gguf.quants.quantize(weights.numpy(), gguf.GGMLQuantizationType[name])
    assert np.array_equal(encode.packed(weights, FORMATS[name]).numpy(), expected)


@pytest.mark.parametrize("name", K)
def test_nothing_quantises_to_a_k_type_and_the_error_names_those_that_are_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"nothing here quantises to {name}; choose one of Q8_0"):
        encode.packed(torch.zeros(1, 256), FORMATS[name])


def test_a_row_that_blocks_do_not_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 40 weights cannot be Q4_0, whose blocks have 32"):
        FORMATS["Q4_0"].row_bytes(40)
