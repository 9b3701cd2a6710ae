"""As many examples at a time as fit in memory, and half as many when they did not."""

from __future__ import annotations

import warnings

import pytest
import torch

import zerograd as zg
from tests.oracles.methods import Net, batch, every_query, exact, same, stored
from zerograd.evaluate.micro_batch import MicroBatch, PeakBytes
from zerograd.machine import memory

OUT_OF_MEMORY = {
    "accelerator": torch.OutOfMemoryError("CUDA out of memory"),
    "python": MemoryError(),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
}


class Limited:
    """An objective that has memory for so many rows, and remembers how many it was given."""

    def __init__(self, net: Net, rows: int, error: BaseException) -> None:
        self.net, self.rows, self.error = net, rows, error
        self.seen: list[int] = []

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(tokens))
        if len(tokens) > self.rows:
            raise self.error
        return self.net.losses(tokens)


@every_query
def test_out_of_memory_halves_the_examples_and_gives_the_same_step(method):
    halved(method, OUT_OF_MEMORY["accelerator"])


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_every_kind_of_memory_runs_out_alike(error):
    halved(zg.optim.MeZO, error)


def halved(method, error):
    net, twin = Net(), Net()
    opt, whole = (method(n, lr=0.1, self_check=False) for n in (net, twin))
    branches = opt.method.query.plan(1, opt.draws.at(opt.steps)).branches
    objective = Limited(net, 2 * branches, error)
    with pytest.warns(UserWarning, match="out of memory with 8 examples at a time; going on with 4"):
        opt.step(objective, batch(8))
    objective.seen.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(objective, batch(8, seed=1))  # what did not fit is not tried again
    assert max(objective.seen) <= objective.rows
    assert sum(objective.seen) == 8 * (branches + 3 * (method is zg.optim.Conservative))  # whose candidates are three
    for seed in range(2):
        whole.step(twin.losses, batch(8, seed=seed), micro_batch=2)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(exact(opt), exact(whole), strict=True))


def test_one_example_that_does_not_fit_is_an_error_that_leaves_the_weights():
    net = Net()
    opt = zg.optim.MeZO(net, self_check=False)
    before = stored(opt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(torch.OutOfMemoryError):
            opt.step(Limited(net, 0, OUT_OF_MEMORY["accelerator"]), batch())
    assert same(stored(opt), before)


def test_another_error_is_not_taken_for_want_of_memory():
    net = Net()
    opt = zg.optim.MeZO(net, self_check=False)
    objective = Limited(net, 4, RuntimeError("out of range"))
    opt.attach(net.losses, batch())
    with pytest.raises(RuntimeError, match="out of range"):
        opt.step(objective, batch())
    assert objective.seen == [8]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.1])
def test_auto_keeps_a_pass_within_the_memory_it_was_given(share):
    model = torch.nn.Sequential(torch.nn.Linear(50, 400), torch.nn.Tanh(), torch.nn.Linear(400, 1))
    x = torch.randn(32, 50)
    opt = zg.optim.PerExample(model, lr=0.1, self_check=False)
    passes: list[tuple[int, int]] = []

    def losses(rows: torch.Tensor) -> torch.Tensor:
        with PeakBytes() as live:
            made = model(rows).square().mean(1)
        passes.append((len(rows), live.peak))
        return made

    opt.attach(losses, x)
    largest = passes[-1][1]
    opt.fit.memory = int(share * largest)
    opt.step(losses, x, micro_batch="auto")
    passes.clear()
    opt.step(losses, x, micro_batch="auto")
    rows = [n for n, _ in passes]
    assert sum(rows) == 64
    assert all(peak <= max(opt.fit.memory, largest / 32 * 1.01) for _, peak in passes)
    assert rows[0] == 64 if share > 1 else rows[0] < 64
    if share:
        assert rows[0] > 64 * share / 2  # and it is not timid


def test_longer_examples_are_measured_again():
    asked: list[int] = []

    def measure(per_element: int, elements: int):
        def bytes_of(examples: int) -> int:
            asked.append(examples)
            return 1000 + per_element * elements * examples

        return bytes_of

    known = MicroBatch(memory=11_000)
    assert known.examples(100, 10, measure(10, 10)) == 100
    assert known.examples(1000, 11, measure(10, 11)) == 90
    assert asked == [1, 2]
    assert known.examples(1000, 20, measure(50, 20)) == 10
    assert asked == [1, 2, 1, 2]


@pytest.mark.parametrize("value", ["many", "2"])
def test_a_micro_batch_that_is_no_number_is_refused(value):
    net = Net()
    with pytest.raises(ValueError, match=f"micro_batch is '{value}'; it must be a number of at least 1, or 'auto'"):
        zg.optim.MeZO(net).step(net.losses, batch(), micro_batch=value)


def test_free_memory_is_what_the_machine_has():
    assert 1 << 20 < memory.free_bytes() < 1 << 50
