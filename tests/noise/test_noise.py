"""Noise is an address: known answers, the layout of bits, ranges, and the distributions."""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from zerograd import noise
from zerograd.noise import DENSE, LEFT, ORDER, RIGHT, ROUNDING, Address, address, compiled, gaussian, reference, stream
from zerograd.noise.vectors import sixteen_calls

LIMIT = 4.5  # standard errors that a mean of many draws may be off; the addresses are fixed, so no test is flaky
SEED = 0x0123456789ABCDEF
HERE = Address(SEED, 7, 1, 5)
FAMILIES = ("rademacher", "gaussian")

words = st.integers(0, 2**32 - 1)
addresses = st.builds(Address, st.integers(0, 2**64 - 1), words, words, words, st.sampled_from((DENSE, LEFT, RIGHT, ROUNDING)))


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def draw(family: str, at: Address, rows: list[int] | range, first: int, columns: int) -> torch.Tensor:
    """Noise by whichever back end is chosen here: float32 (rows, columns)."""
    out = torch.empty(1, len(rows), columns)
    noise.backend(out).fill(out, family, at, [at.direction], torch.tensor(list(rows)), first)
    return out[0]


# Philox4x32-10, the known answers of Random123's kat_vectors.

RANDOM123 = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_torch(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    return tuple(int(w) for w in reference.philox([torch.tensor(c) for c in counter], key))


def philox_numba(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    out = np.empty(64, np.uint32)
    calls(*counter[:2], np.array([*key, *counter[2:]], np.uint64), out)
    return tuple(int(w) for w in out[:4])


@njit
def calls(first, row, key, out):
    sixteen_calls(first, row, key, out, False)


@njit
def calls_by_word(first, row, key, out):
    sixteen_calls(first, row, key, out, True)


IMPLEMENTATIONS = {"python": address.philox, "torch": philox_torch, "numba": philox_numba}


@pytest.mark.parametrize("philox", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
@pytest.mark.parametrize(("counter", "key", "answer"), RANDOM123)
def test_philox_gives_the_known_answers_of_random123(philox, counter, key, answer):
    assert philox(counter, key) == answer


@given(st.tuples(words, words, words, words), st.tuples(words, words))
def test_the_three_philox_implementations_agree(counter, key):
    assert address.philox(counter, key) == philox_torch(counter, key) == philox_numba(counter, key)


@given(st.integers(0, 2**32 - 16), words, st.lists(words, min_size=4, max_size=4))
def test_sixteen_calls_are_those_of_consecutive_counters_in_either_order(first, row, key):
    expected = np.array([address.philox((first + q, row, *key[2:]), tuple(key[:2])) for q in range(16)], np.uint32)
    for run, order in ((calls, expected), (calls_by_word, expected.T)):
        out = np.empty(64, np.uint32)
        run(first, row, np.array(key, np.uint64), out)
        assert np.array_equal(out, order.reshape(-1))


# Our own known answers: a change of any of these breaks recorded runs and must raise noise.LAYOUT.


def test_layout_version_belongs_to_the_known_answers_below():
    assert noise.LAYOUT == 1
    assert (DENSE, LEFT, RIGHT, ROUNDING, ORDER) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("at", "answer"),
    [
        (Address(0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (Address(1, 2, 3, 4, LEFT), (0x9ED27146, 0x147D8663, 0x9B2A7FBE, 0x17E0FFF3)),
        (Address(SEED, 7, 1, 5, ROUNDING), (0x29E5F924, 0x9A363545, 0x4A1B2F44, 0xAD9AA03A)),
        (Address(2**64 - 1, *[2**32 - 1] * 4), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ],
)
def test_stream_is_frozen(at, answer):
    assert stream(at) == answer


def test_rademacher_rows_are_frozen():
    z = draw("rademacher", HERE, [0, 70_000], 0, 152)
    text = ["".join("-+"[int(v > 0)] for v in row) for row in z]
    assert text[0][:64] == "----+-+-+---++++--++-+-+---+-+---+-+++-++------++----+---++---++"
    assert text[1][120:152] == "-+-+-+-+-+--+-+-+++++----++-++--"


def test_gaussian_rows_are_frozen():
    z = draw("gaussian", HERE, [0, 70_000], 0, 66) * gaussian.GRID
    assert z[0, :6].tolist() == [-157406, 1440117, -1264717, -13690, 1388636, -472373]
    assert z[1, 60:].tolist() == [1192539, -623671, 1955069, -859579, 102664, 1543888]


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("rademacher", "97ff1f4c0e73339b9b9ca0b1475cb6279a83713a80c9a38b2e8556abe335105f"),
        ("gaussian", "78a8dc1f4a74f63e8d61ecaffddaa8b9c6406ebc57a4c0c20aa4f696e1df4f74"),
    ],
)
def test_a_block_of_noise_is_frozen(family, answer):
    assert digest(draw(family, HERE, range(5, 69), 37, 1000)) == answer


def test_stochastic_rounding_is_frozen():
    exact = (torch.arange(64_000) - 31_700).view(64, 1000) * 2.0**-10
    rounded = reference.stochastic_round(exact, torch.arange(5, 69), HERE._replace(domain=ROUNDING))
    assert digest(rounded.view(torch.int16)) == "f245cb3c70732200192a2c4b4c54a1e1f558211e522df2765b49d7839980bc98"


# The layout, in Python integers.


@given(addresses, st.integers(0, 2**20), st.integers(0, 500))
def test_rademacher_column_is_the_documented_bit(at, row, column):
    k0, k1, k2, k3 = stream(at)
    word = address.philox((column // 128, row, k2, k3), (k0, k1))[column % 128 // 32]
    assert draw("rademacher", at, [row], column, 1).item() == 1 - 2 * (word >> column % 32 & 1)


@given(addresses, st.integers(0, 2**20), st.integers(0, 500))
def test_gaussian_column_is_the_table_at_the_documented_byte_sum(at, row, column):
    k0, k1, k2, k3 = stream(at)
    g, w, q = column // 64, column % 64 // 16, column % 16
    word = address.philox((16 * g + q, row, k2, k3), (k0, k1))[w]
    assert draw("gaussian", at, [row], column, 1).item() == gaussian.quantiles()[sum(word.to_bytes(4))].item()


@given(addresses, st.integers(0, 2**20), st.integers(0, 100), st.floats(-100, 100, width=32))
def test_stochastic_rounding_adds_the_documented_sixteen_bits(at, row, column, value):
    k0, k1, k2, k3 = stream(at)
    word = address.philox((column // 8, row, k2, k3), (k0, k1))[column % 8 // 2]
    bits = int(np.float32(value).view(np.uint32)) + (word >> 16 * (column % 2) & 0xFFFF)
    rounded = reference.stochastic_round(torch.full((1, column + 1), value), torch.tensor([row]), at)
    assert int(rounded.view(torch.int16)[0, column]) & 0xFFFF == bits >> 16 & 0xFFFF


# Addresses.


@given(st.sets(addresses, min_size=2, max_size=6))
def test_distinct_addresses_of_one_seed_have_distinct_streams(many):
    same_seed = {at._replace(seed=SEED) for at in many}
    assert len({stream(at) for at in same_seed}) == len(same_seed)


@given(addresses, st.sampled_from(FAMILIES))
def test_every_part_of_an_address_changes_the_noise(at, family):
    mine = draw(family, at, [3], 0, 256)
    parts = [at._replace(**{name: getattr(at, name) ^ 1}) for name in Address._fields]
    parts.append(at._replace(seed=at.seed ^ 1 << 63))  # the high half of the seed counts too
    for other in parts:
        assert not torch.equal(draw(family, other, [3], 0, 256), mine)


@pytest.mark.parametrize("part", Address._fields)
@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_part_outside_its_range_raises_one_clear_value_error(part, value):
    with pytest.raises(ValueError, match=rf"{part} {value} is outside 0 \.\. 2\*\*"):
        stream(HERE._replace(**{part: value}))


@pytest.mark.parametrize("direction", [-1, 2**32])
@pytest.mark.parametrize("module", [reference, compiled], ids=["torch", "numba"])
def test_a_direction_outside_its_range_raises_in_fill(module, direction):
    with pytest.raises(ValueError, match=f"direction {direction} is outside"):
        module.fill(torch.empty(1, 1, 4), "rademacher", HERE, [direction], torch.zeros(1, dtype=torch.int64), 0)


@pytest.mark.parametrize("integer", [np.int64, np.uint64], ids=lambda t: t.__name__)
def test_a_numpy_integer_in_an_address_means_the_same_number(integer):
    assert tuple(map(int, stream(Address(integer(3), integer(1), 2, 3)))) == stream(Address(3, 1, 2, 3))


# Slices: the noise of a part is the part of the noise.


@given(
    st.sampled_from(FAMILIES),
    addresses,
    st.lists(st.integers(0, 2**31), min_size=1, max_size=6),
    st.integers(0, 700),
    st.integers(1, 400),
)
def test_noise_of_a_chunk_is_the_slice_of_the_whole(family, at, rows, first, columns):
    whole = draw(family, at, rows, 0, first + columns)
    chunk = draw(family, at, rows[len(rows) // 2 :], first, columns)
    assert torch.equal(chunk, whole[len(rows) // 2 :, first:])


@given(st.sampled_from(FAMILIES), addresses, st.permutations(range(5)))
def test_noise_of_rows_follows_their_order(family, at, order):
    assert torch.equal(draw(family, at, order, 0, 50), draw(family, at, range(5), 0, 50)[order])


def test_drawing_noise_consumes_no_global_random_state():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2], random.getstate()
    weight = torch.ones(300, 300)
    for module in (reference, compiled):
        for family in FAMILIES:
            module.fill(torch.empty(2, 3, 300), family, HERE, [0, 1], torch.arange(3), 0)
            module.perturb([torch.empty_like(weight)], [0.1], weight, None, family, HERE, torch.arange(300), 0)
            module.update(weight, None, family, [HERE], [0.1], 1.0, None)
            module.update(weight.bfloat16(), None, family, [HERE], [0.1], 1.0, HERE)
    state = np.random.get_state()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (state[1] == before[1]).all()
    assert state[2] == before[2]
    assert random.getstate() == before[3]


# Distributions.


def z_score(samples: torch.Tensor, expected: float) -> float:
    """How many standard errors the mean of independent samples is from what it should be."""
    samples = samples.double()
    return float((samples.mean() - expected) / (samples.std() / math.sqrt(samples.numel())))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at", [HERE, Address(0, 0, 0, 0), Address(2**64 - 1, 1, 0, 3, LEFT)], ids=["here", "zero", "end"])
def test_noise_has_mean_0_and_the_documented_moments(family, at):
    z = draw(family, at, range(400), 0, 500)
    assert abs(z_score(z, 0)) < LIMIT
    if family == "rademacher":
        assert z.abs().unique().tolist() == [1]
    else:
        for power, moment in ((2, 1), (3, 0), (4, 3), (6, 15)):
            assert abs(z_score(z**power, moment)) < LIMIT


@pytest.mark.full
def test_gaussian_noise_is_normal_by_kolmogorov_and_smirnov():
    from scipy import stats

    z = draw("gaussian", HERE, range(100), 0, 1000).flatten().double().numpy()
    jitter = np.linspace(-0.5, 0.5, len(z)) * 0.006528  # spreads the table's cells, whose width is that at the centre
    assert stats.kstest(z + np.random.default_rng(0).permutation(jitter), "norm").pvalue > 1e-4


def neighbours(z: torch.Tensor, lag: int) -> tuple[torch.Tensor, torch.Tensor]:
    return z[:, :-lag], z[:, lag:]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lag", [1, 2, 16, 32, 64, 128])
def test_neighbouring_columns_are_uncorrelated(family, lag):
    a, b = neighbours(draw(family, HERE, range(200), 0, 1000), lag)
    assert abs(z_score(a * b, 0)) < LIMIT
    if family == "gaussian":
        assert abs(z_score((a * a - 1) * (b * b - 1), 0)) < LIMIT


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["row", *Address._fields])
def test_noise_at_neighbouring_addresses_is_uncorrelated(family, part):
    a = draw(family, HERE, range(200), 0, 1000)
    if part == "row":
        b = draw(family, HERE, range(1, 201), 0, 1000)
    else:
        b = draw(family, HERE._replace(**{part: getattr(HERE, part) + 1}), range(200), 0, 1000)
    assert abs(z_score(a * b, 0)) < LIMIT
    if family == "gaussian":
        assert abs(z_score((a * a - 1) * (b * b - 1), 0)) < LIMIT


@pytest.mark.parametrize("family", FAMILIES)
def test_the_two_factors_of_a_low_rank_direction_are_uncorrelated(family):
    a = draw(family, HERE._replace(domain=LEFT), range(200), 0, 1000)
    b = draw(family, HERE._replace(domain=RIGHT), range(200), 0, 1000)
    assert abs(z_score(a * b, 0)) < LIMIT


# The Gaussian table.


def table_moment(power: int) -> float:
    weights = gaussian.byte_sum_counts()
    return math.fsum(n / 2**32 * float(v) ** power for n, v in zip(weights, gaussian.quantiles().double(), strict=True))


def test_byte_sum_counts_are_those_of_four_fair_bytes():
    counts = np.array([1], dtype=object)
    for _ in range(4):
        counts = np.convolve(counts, np.ones(256, dtype=object))
    assert gaussian.byte_sum_counts() == list(counts)
    assert sum(gaussian.byte_sum_counts()) == 2**32


def test_gaussian_table_has_unit_variance_and_normal_kurtosis():
    assert abs(table_moment(2) - 1) < 1e-7
    assert abs(table_moment(4) - 3) < 1e-3
    assert abs(table_moment(6) - 15) < 2e-2


def test_gaussian_table_is_odd_and_increases():
    table = gaussian.quantiles()
    assert table.shape == (1021,)
    assert torch.equal(table, -table.flip(0))
    assert bool((table.diff() > 0).all())


def test_gaussian_table_lies_on_its_grid_so_that_float32_holds_it_exactly():
    scaled = gaussian.quantiles().double() * gaussian.GRID
    assert torch.equal(scaled, scaled.round())
    assert float(scaled.abs().max()) < 2**24


def test_gaussian_table_is_frozen():
    assert digest(gaussian.quantiles()) == "0e6570cf32a23f20d6e281ba7dbffe2d79a376a66a8567cc788c5e61a6d8c1a8"
