"""Which back end draws the noise never shows in the numbers: Numba, any number of threads, and torch agree bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import ROOT
from tests.noise.tensors import AT, FAMILIES, STORAGES, addresses, same, stored, weights, words
from tests.oracles.methods import digest_of_updates
from zerograd import noise
from zerograd.noise import compiled, reference, to_float

families = st.sampled_from(FAMILIES)
storages = st.sampled_from(STORAGES)
coefficients = st.floats(-4, 4, width=32)
shapes = st.tuples(st.integers(1, 7), st.integers(1, 300))


def updated(module: Any, name: str, exact: torch.Tensor, storage: str, *arguments: Any, first_row: Any = ()) -> Any:
    """The storage after module.update or module.update_low_rank."""
    weight, remainder, rounding = stored(exact, storage)
    getattr(module, name)(weight, remainder, *arguments, rounding, *first_row)
    return weight, remainder


@given(families, addresses, st.lists(words, min_size=1, max_size=3), st.lists(st.integers(0, 2**31)), st.integers(0, 5000), shapes)
def test_numba_fills_the_bits_of_the_reference(family, at, directions, rows, first, shape):
    rows = torch.tensor([*rows, 0])
    mine, torchs = (torch.full((len(directions), len(rows), shape[1]), torch.nan) for _ in range(2))
    compiled.fill(mine, family, at, directions, rows, first)
    reference.fill(torchs, family, at, directions, rows, first)
    assert same(mine, torchs)


@given(
    *(families, storages, addresses, shapes, st.lists(coefficients, min_size=1, max_size=2)),
    *(st.sampled_from((torch.float32, torch.bfloat16)), st.integers(0, 2**31), st.integers(0, 5000), st.integers(0, 99)),
)
def test_numba_perturbs_to_the_bits_of_the_reference(family, storage, at, shape, signs, dtype, row, first, seed):
    weight, remainder, _ = stored(weights(shape, seed), storage)
    rows = torch.arange(row, row + shape[0]).flip(0)
    made = []
    for module in (compiled, reference):
        outs = [torch.full(shape, torch.nan, dtype=dtype) for _ in signs]
        module.perturb(outs, signs, weight, remainder, family, at, rows, first)
        made.append(outs)
    assert all(same(a, b) for a, b in zip(*made, strict=True))


@given(
    *(families, storages, shapes, st.lists(st.tuples(addresses, coefficients), max_size=3)),
    *(st.sampled_from((1.0, 0.99, 0.5, 1 - 1e-9)), st.integers(0, 99)),
)
def test_numba_updates_to_the_bits_of_the_reference(family, storage, shape, directions, decay, seed):
    exact = weights(shape, seed)
    arguments = (family, [at for at, _ in directions], [m for _, m in directions], decay)
    mine, torchs = (updated(module, "update", exact, storage, *arguments) for module in (compiled, reference))
    assert same(mine[0], torchs[0])
    assert same(mine[1], torchs[1])


@given(families, shapes, addresses, coefficients, st.integers(0, 99))
def test_a_split_weight_is_updated_to_the_bits_of_a_float32_one(family, shape, at, multiplier, seed):
    exact = weights(shape, seed)
    arguments = (family, [at], [multiplier], 0.99)
    assert same(
        to_float(*updated(compiled, "update", exact, "split", *arguments)),
        updated(compiled, "update", exact, "float32", *arguments)[0],
    )


@given(storages, shapes, st.integers(1, 19), st.sampled_from((1.0, 0.99)), st.integers(0, 10**6), st.integers(0, 99))
def test_numba_updates_low_rank_to_the_bits_of_the_reference(storage, shape, factors, decay, first_row, seed):
    exact = weights(shape, seed)
    left, right = torch.randn(factors, shape[0]), torch.randn(factors, shape[1])
    left[seed % factors] = 0  # a direction with no coefficient
    mine, torchs = (
        updated(module, "update_low_rank", exact, storage, left, right, decay, first_row=(first_row,))
        for module in (compiled, reference)
    )
    assert same(mine[0], torchs[0])
    assert same(mine[1], torchs[1])


@pytest.mark.parametrize("module", [reference, compiled], ids=["torch", "numba"])
@pytest.mark.parametrize("multiplier", [0.0, -0.0, 1e-60, -1e-60])
def test_a_multiplier_that_is_zero_in_float32_leaves_every_bit(module, multiplier):
    exact = weights((4, 200), 0)
    for storage in STORAGES:
        before = stored(exact, storage)
        after = updated(module, "update", exact, storage, "rademacher", [AT, AT._replace(direction=1)], [multiplier] * 2, 1.0)
        assert same(after[0], before[0])
        assert same(after[1], before[1])


# Blocks and threads: shapes that cross the kernels' blocks of columns and that are split over threads.


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("columns", [127, 129, 2047, 2049, 4099])
def test_numba_equals_the_reference_across_column_blocks(family, storage, columns):
    exact = weights((3, columns), columns)
    arguments = (family, [AT, AT._replace(direction=1)], [0.3, -0.7], 0.9)
    mine, torchs = (updated(module, "update", exact, storage, *arguments) for module in (compiled, reference))
    assert same(mine[0], torchs[0])
    assert same(mine[1], torchs[1])
    weight, remainder, _ = stored(exact, storage)
    outs = [torch.empty_like(weight) for _ in range(2)]
    for module, out in zip((compiled, reference), outs, strict=True):
        module.perturb([out], [0.01], weight, remainder, family, AT, torch.arange(3), 77)
    assert same(*outs)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_number_of_threads_never_shows(storage, threads):
    exact = weights((517, 1019), 1)
    rows = torch.arange(517)
    left, right = torch.randn(10, 517), torch.randn(10, 1019)

    def everything(module: Any) -> list[torch.Tensor | None]:
        weight, remainder, _ = stored(exact, storage)
        noise_, out = torch.empty(1, 517, 1019), torch.empty_like(weight)
        module.fill(noise_, "rademacher", AT, [4], rows, 0)
        module.perturb([out], [0.01], weight, remainder, "gaussian", AT, rows, 0)
        dense = updated(module, "update", exact, storage, "rademacher", [AT], [0.3], 0.9)
        low = updated(module, "update_low_rank", exact, storage, left, right, 0.9, first_row=(0,))
        return [noise_, out, *dense, *low]

    threads(1)
    expected = everything(reference)
    for count in (1, 2, 3, 4):
        threads(count)
        assert all(same(a, b) for a, b in zip(everything(compiled), expected, strict=True))


@pytest.mark.parametrize("module", [reference, compiled], ids=["torch", "numba"])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_low_rank_update_does_not_depend_on_how_rows_are_chunked(module, storage):
    exact, left, right = weights((50, 70), 2), torch.randn(3, 50), torch.randn(3, 70)
    whole = updated(module, "update_low_rank", exact, storage, left, right, 0.9, first_row=(0,))
    for first, stop in ((0, 13), (13, 14), (14, 50)):
        part = updated(module, "update_low_rank", exact[first:stop], storage, left[:, first:stop], right, 0.9, first_row=(first,))
        assert same(part[0], whole[0][first:stop])
        assert part[1] is None or same(part[1], whole[1][first:stop])


def test_the_reference_gives_the_same_bits_however_it_chunks_rows(monkeypatch):
    exact = weights((9, 300), 3)
    results = []
    for at_once in (1 << 18, 700):
        monkeypatch.setattr(reference, "_VALUES_AT_ONCE", at_once)
        results.append([updated(reference, "update", exact, s, "gaussian", [AT], [0.3], 0.9) for s in STORAGES])
    for one, other in zip(*results, strict=True):
        assert same(one[0], other[0])
        assert same(one[1], other[1])


def test_numba_serves_float32_and_bfloat16_on_the_cpu_and_the_reference_the_rest():
    assert noise.backend(torch.empty(2, 2)) is compiled
    assert noise.backend(torch.empty(2, 2, dtype=torch.bfloat16)) is compiled
    assert noise.backend(torch.empty(2, 2, dtype=torch.float64)) is reference
    assert noise.backend(torch.empty(2, 2, device="meta")) is reference


# Without Numba.

RUN = """
import sys, warnings
if sys.argv[1] == "absent":
    sys.modules["numba"] = None  # the import system's own way to say that a module is not there
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from tests.oracles import methods
    result = methods.digest_of_updates()
print(*result, sum("Numba" in str(w.message) for w in caught))
"""


def updated_by(how: str, **environment: str) -> list[str]:
    """What `digest_of_updates` gives in a fresh interpreter, and how many warnings spoke of Numba."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "ZEROGRAD_NOISE": "", **environment}
    done = subprocess.run([sys.executable, "-c", RUN, how], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.full
def test_without_numba_updates_give_the_same_weights_and_warns_exactly_once():
    name, digest = digest_of_updates()
    assert name == "zerograd.noise.compiled"
    assert updated_by("absent") == ["zerograd.noise.reference", digest, "1"]


@pytest.mark.full
def test_the_environment_chooses_torch_with_the_same_weights_and_no_warning():
    _, digest = digest_of_updates()
    assert updated_by("present", ZEROGRAD_NOISE="torch") == ["zerograd.noise.reference", digest, "0"]


def test_kernels_are_compiled_where_no_cache_can_be_written_and_it_is_said(monkeypatch):
    real = compiled.njit

    def njit(cache: bool = False, **options):
        def refuse(function):
            raise RuntimeError(f"cannot cache function {function.__name__!r}: no locator available")

        return refuse if cache else real(**options)

    monkeypatch.setattr(compiled, "njit", njit)
    compiled._say_uncached.cache_clear()
    with pytest.warns(UserWarning, match="set NUMBA_CACHE_DIR") as said:
        add, double = compiled.jit(lambda x: x + 1), compiled.jit(lambda x: 2 * x)
    assert (add(1), double(3), len(said)) == (2, 6, 1)
